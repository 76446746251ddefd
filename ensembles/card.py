"""The model card of an exported ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensembles.artifact import Artifact


def model_card(artifact: Artifact, summary: Mapping[str, Any]) -> str:
    """What a user of the folder must know, in Markdown."""
    headline = summary["headline"]["fused"]
    low, high = headline["interval_95"]
    lines = [
        f"# Emotion recognition ensemble `{summary['run']}`",
        "",
        f"Recognises {', '.join(artifact.labels)} in one utterance, from "
        f"{_sentence(sorted(artifact.inputs))}.",
        "",
        "## Score",
        "",
        f"{_score(summary['metric'], headline['honest_score'])} "
        f"(95 % interval over speakers: {_number(summary['metric'], low)} to "
        f"{_number(summary['metric'], high)}): honest score on {summary['corpus']}, "
        f"{summary['clips']} clips of {summary['speakers']} speakers, protocol "
        f"{summary['protocol']}. Experts, fusion and recipe were chosen for each fold from the "
        "other folds.",
        "",
        "**That score belongs to single-fold networks, each without the scored speakers. This "
        "folder averages the fold networks of every expert, and has seen all those speakers: "
        "another predictor, which that score does not describe exactly.** "
        + _test_speakers(summary),
        "",
        "## Experts",
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
        "networks of an expert are averaged as log-posteriors (geometric mean).",
        "",
        "Where a clip lacks an input, these take over, fused anew on the same out-of-fold "
        "posteriors:",
        "",
        *(
            f"- {' and '.join(sorted(some))} alone: {', '.join(fused.experts)}"
            for some, fused in artifact.substitutes.items()
        ),
        "",
        "## Inputs",
        "",
        *_inputs(artifact),
        "",
        "## Limits",
        "",
        f"Trained on {summary['corpus']} alone: acted or recorded as that corpus is, in its "
        "languages and from its speakers. Other microphones, languages, ages and spontaneous "
        "emotion will score lower, by an amount that nobody has measured here. The licence of "
        "the corpus may restrict the use of networks trained on it.",
        "",
        f"Made by commit {summary['commit'] or 'unknown'}: `{summary['command']}`.",
        "",
    ]
    return "\n".join(lines)


def _score(metric: str, value: float) -> str:
    unit = "nats of log-loss" if metric == "log_loss" else f"% {metric}"
    return f"{_number(metric, value)} {unit}"


def _number(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric == "log_loss" else f"{100 * value:.1f}"


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
    found = summary.get("test_speakers")
    if not found and summary.get("held_out"):
        return f"Held out of all folds, but not scored yet: {', '.join(summary['held_out'])}."
    if not found:
        return "No speakers were held out of all folds to score it (`--test-speakers`)."
    return (
        f"On speakers in no fold ({', '.join(found['speakers'])}; "
        f"{found['clips']} clips) it scores {_score(summary['metric'], found['score'])}."
    )


def _inputs(artifact: Artifact) -> list[str]:
    lines = []
    if artifact.sample_rate_hz:
        lines.append(
            f"- `audio` (clips, samples) float32 in [-1, 1], mono, {artifact.sample_rate_hz} Hz, "
            "zero behind each clip's end; `audio_lengths` (clips,) int64"
        )
    if artifact.frames:
        height, width = artifact.frame_size
        lines.append(
            f"- `video` (clips, {artifact.frames}, {height}, {width}, 3) uint8 RGB, frames evenly "
            "spread; `video_lengths` (clips,) int64"
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
    return lines
