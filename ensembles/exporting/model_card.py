"""The model card of an exported ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets.corpora.registry import CORPORA
from ensembles.artifact.manifest import Artifact
from ensembles.metrics import get_metric


def model_card(artifact: Artifact, summary: Mapping[str, Any]) -> str:
    """Return what a user of the folder must know, in Markdown."""
    headline = summary["headline"]["fused"]
    metric, (low, high) = get_metric(summary["metric"]), headline["interval_95"]
    leak = summary.get("leak")
    lines = [
        *([f"**{leak}.**", ""] if leak else []),
        f"# Emotion recognition ensemble `{summary['run']}`",
        "",
        f"{_purpose(artifact)}, from "
        f"{_sentence(sorted(artifact.inputs))}. It is for research and for demonstrations on "
        "recordings of people who agreed to it. It is not for decisions about people (hiring, "
        "teaching, policing, health, credit), and what it says is how a clip sounds and looks to "
        "it, not what somebody feels.",
        "",
        "## Score",
        "",
        f"{metric.format_named(headline['honest_score'])} "
        f"(95 % interval over speakers: {metric.format(low)} to "
        f"{metric.format(high)}): honest score on {summary['corpus']}, "
        f"{summary['clips']} {'recordings' if artifact.answers == 'traces' else 'clips'} of "
        f"{summary['speakers']} speakers, protocol "
        f"{summary['protocol']}. Experts, fusion and recipe were chosen for each fold from the "
        "other folds.",
        "",
        "**That score belongs to single-fold networks, each without the scored speakers. This "
        "folder averages the fold networks of every expert, and has seen all those speakers: "
        "another predictor, which that score does not describe exactly.** "
        + _test_speakers(summary),
        "",
        *_more_scores(summary),
        *_detail(artifact.labels, summary),
        *_dimensions(artifact, summary),
        *_experts(artifact),
        "## Inputs",
        "",
        *_inputs(artifact),
        "",
        "## Is this the folder that its maker made?",
        "",
        "`ensemble.json` has a checksum of itself, of every file of the experts and of `predict.py` with its modules; "
        "they are checked whenever the folder is read. Whoever rewrites the folder can rewrite them "
        "too: ask its maker, by another way, for the SHA-256 of `ensemble.json`, and give it to "
        "`--verify`. This card is covered by nothing.",
        "",
        "## Limits",
        "",
        f"Trained on {summary['corpus']} alone: acted or recorded as that corpus is, in its "
        "languages and from its speakers. Other microphones, languages, ages and spontaneous "
        "emotion will score lower, by an amount that nobody has measured here. "
        f"{_licence(summary['corpus'])}",
        "",
        f"Made by commit {summary['commit'] or 'unknown'}: `{summary['command']}`.",
        "",
    ]
    return "\n".join(lines)


def _purpose(artifact: Artifact) -> str:
    names = ", ".join(artifact.labels)
    if artifact.answers == "classes":
        return f"Recognises {names} in one utterance"
    if artifact.answers == "values":
        return f"Says how much {names} is in one utterance"
    return f"Says how much {names} is in a recording, every {1000 * artifact.step_seconds:g} ms"


def _dimensions(artifact: Artifact, summary: Mapping[str, Any]) -> list[str]:
    """Held-out scores by dimension, and what is done to the numbers in the end."""
    found = summary.get("traces")
    if not found or artifact.processing is None:
        return []
    lines = [
        "By dimension, of the same held-out predictions: concordance (CCC, mean over folds), of all "
        "recordings joined, mean over recordings, and root mean squared error:",
        "",
        "| dimension | CCC | joined | each | RMSE |",
        "|---|---|---|---|---|",
    ]
    keys = ("ccc_fold_mean", "ccc", "ccc_recording_mean", "rmse")
    for name, scores in found["dimensions"]["fused"].items():
        lines.append(f"| {name} | {' | '.join(f'{scores[key]:.3f}' for key in keys)} |")
    steps = [
        f"{name}: {', '.join(chain.kept) or 'nothing'}"
        for name, chain in zip(artifact.labels, artifact.processing.chains, strict=True)
    ]
    return [
        *lines,
        "",
        f"Post-processing, fitted on all speakers of the corpus: {'; '.join(steps)}. The scores above are "
        "of chains that were fitted without the scored speakers."
        + (
            " Here two overlapping windows say each step, and their mean is taken; the scores are of windows "
            "as the corpus was cut."
            if artifact.answers == "traces"
            else ""
        ),
        "",
    ]


def _experts(artifact: Artifact) -> list[str]:
    """Who is in the folder, how they are fused, and who takes over where an input is missing."""
    return [
        "## Experts",
        "",
        f"{len(artifact.members)} experts are here, of which {len(artifact.fused.experts)} make the "
        "ensemble of a clip that has every input; the others take over where one is missing, or "
        "belong to a fold.",
        "",
        "| expert | architecture | reads | networks | parameters each |",
        "|---|---|---|---|---|",
        *(
            f"| {m.name} | {m.architecture} | {', '.join(sorted(m.inputs))} | {m.folds} | "
            f"{m.parameters:,} |"
            for m in artifact.members.values()
        ),
        "",
        f"Fusion: {artifact.fused.recipe}, of {', '.join(artifact.fused.experts)}. The fold "
        "networks of an expert are averaged"
        + (" as log-posteriors (geometric mean)." if artifact.answers == "classes" else "."),
        "",
        "Where a clip lacks an input, these take over, fused anew on the same out-of-fold "
        + ("posteriors:" if artifact.answers == "classes" else "predictions, not post-processed:"),
        "",
        *(
            f"- {' and '.join(sorted(some))} alone: {', '.join(fused.experts)}"
            for some, fused in artifact.substitutes.items()
        ),
        "",
    ]


def _more_scores(summary: Mapping[str, Any]) -> list[str]:
    """The headline without the luck of choosing, with fresh seeds, and of each modality alone."""
    metric, headline = get_metric(summary["metric"]), summary["headline"]
    lines = []
    corrected = headline["fused"].get("corrected")
    if corrected:
        low, high = corrected["interval_95"]
        lines.append(
            f"- corrected for the luck of choosing among {corrected['candidates']} recipes "
            f"(BBC-CV): {metric.format_named(corrected['score'])} (95 % interval "
            f"{metric.format(low)} to {metric.format(high)})"
        )
    else:
        lines.append("- not corrected for the luck of choosing among recipes (BBC-CV)")
    fresh = {
        seed: rows["fused"]["honest_score"]
        for seed, rows in (summary.get("confirmed") or {}).items()
        if "fused" in rows
    }
    if fresh:
        shown = ", ".join(f"{metric.format(value)} (seed {s})" for s, value in fresh.items())
        mean = sum(fresh.values()) / len(fresh)
        lines.append(f"- trained again with fresh seeds: {shown}; mean {metric.format_named(mean)}")
    else:
        lines.append("- not confirmed with fresh training seeds")
    for modality in ("audio", "video", "early"):
        if alone := headline.get(f"{modality}_alone"):
            score = metric.format_named(alone["honest_score"])
            lines.append(f"- {modality} experts alone, honest score: {score}")
    return [*lines, ""]


def _detail(labels: Sequence[str], summary: Mapping[str, Any]) -> list[str]:
    """Held-out predictions of the honest score by class and by kind of speaker."""
    found = (summary.get("detail") or {}).get("fused")
    if not found:
        return []
    confusion, recall = found["confusion"], found["recall"]
    weakest = min(labels, key=lambda label: recall[label])
    lines = [
        "By class, of the same held-out predictions:",
        "",
        "| class | clips | recall | most often mistaken for |",
        "|---|---|---|---|",
        *(
            f"| {label} | {sum(row)} | {100 * recall[label]:.1f} % | {_mistaken(labels, row, k)} |"
            for k, (label, row) in enumerate(zip(labels, confusion, strict=True))
        ),
        "",
        f"The weakest class is {weakest}.",
        "",
    ]
    for attribute, values in (found.get("groups") or {}).items():
        shown = ", ".join(f"{value} {100 * share:.1f} %" for value, share in values.items())
        lines += [f"Accuracy by {attribute} of the speaker: {shown}.", ""]
    if not found.get("groups"):
        lines += [
            "Nothing is known of the speakers (such as their gender), so that nobody knows whom it "
            "serves worse.",
            "",
        ]
    return lines


def _mistaken(labels: Sequence[str], row: Sequence[int], true: int) -> str:
    others = {label: n for k, (label, n) in enumerate(zip(labels, row, strict=True)) if k != true}
    name = max(others, key=lambda label: others[label], default=None)
    return f"{name} ({others[name]})" if name and others[name] else "–"


def _licence(corpus: str) -> str:
    known = [c.licence for c in CORPORA.values() if c.licence and _plain(c.name) in _plain(corpus)]
    if known:
        return (
            f"The corpus is under {' and '.join(known)}, which may bind networks trained on it too."
        )
    return (
        f"The licence of {corpus} is not known to this program; ask its owner whether it restricts "
        "the use of networks trained on it."
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _sentence(inputs: list[str]) -> str:
    names = {
        "audio": "sound",
        "video": "pictures",
        "features": "clip-level features",
        "feature_sequence": "features of every frame",
        "saliency": "saliency maps of the pictures",
    }
    return " and ".join(names[name] for name in inputs)


def _test_speakers(summary: Mapping[str, Any]) -> str:
    found, metric = summary.get("test_speakers"), get_metric(summary["metric"])
    corpus = summary.get("test_corpus")
    if corpus and found:
        return (
            f"On another corpus, {corpus} ({len(found['speakers'])} speakers in no fold, {found['clips']} clips), "
            f"it scores {metric.format_named(found['score'])}."
        )
    if corpus:
        return f"The corpus {corpus} was held out of all folds, but is not scored yet."
    if not found and summary.get("held_out"):
        return f"Held out of all folds, but not scored yet: {', '.join(summary['held_out'])}."
    if not found:
        return "No speakers were held out of all folds to score it (`--test-speakers`)."
    return (
        f"On speakers in no fold ({', '.join(found['speakers'])}; "
        f"{found['clips']} clips) it scores {metric.format_named(found['score'])}."
    )


def _inputs(artifact: Artifact) -> list[str]:
    lines = []
    if artifact.sample_rate_hz:
        lines.append(
            f"- `audio` (clips, samples) float32 in [-1, 1], mono, {artifact.sample_rate_hz} Hz, "
            "zero behind each clip's end; `audio_lengths` (clips,) int64"
        )
    if artifact.frames:
        (height, width), rate = artifact.frame_size, artifact.frame_rate
        count = "frames" if rate else artifact.frames
        taken = f"{rate:g} frames of every second" if rate else "frames evenly spread"
        lines.append(
            f"- `video` (clips, {count}, {height}, {width}, 3) uint8 RGB, {taken}, of "
            f"{artifact.crop}; `video_lengths` (clips,) int64"
        )
    if "saliency" in artifact.all_inputs:
        lines.append(
            "- of experts that read `saliency`, `video` has a fourth channel, the map; "
            "`ensembles.predict` makes none and leaves them out"
        )
    names, count = ", ".join(artifact.feature_names), len(artifact.feature_names)
    if "features" in artifact.all_inputs:
        lines.append(f"- `features` (clips, {count}) float32, means over the clip: {names}")
    if "feature_sequence" in artifact.all_inputs:
        lines.append(
            f"- `feature_sequence` (clips, steps, {count}) float32, zero behind each clip's end: "
            f"{names}; `feature_sequence_lengths` (clips,) int64"
        )
    if artifact.answers == "traces":
        lines.append(
            f"- `trace_lengths` (clips,) int64: how many steps are wanted of each clip; clips are windows of "
            f"{artifact.window_seconds:g} s, which `ensembles.predict` cuts and joins"
        )
    return lines
