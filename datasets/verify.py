"""Checks prepared shards against their index: `python -m datasets.verify DIR`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from datasets.checks.class_counts import (
    class_rows,
    describe_speakers,
    per_fold,
    per_speaker,
    print_table,
    speaker_rows,
)
from datasets.checks.published_counts import compare_counts, published_classes
from datasets.checks.quality import Suspects, drifting, durations, source_rates
from datasets.clips import DataError
from datasets.media.fingerprint import fingerprint, near_duplicates
from datasets.protocols.folds import Folds
from datasets.protocols.split import make_folds
from datasets.sharding.index import ClipEntry, ShardIndex, read_index
from datasets.sharding.stream import Sample, content_hashes, content_sizes, stream_clips

_NAMED = 5
_SPEAKERS_SHOWN = 32


@dataclass
class Findings:
    """Findings of a check of a corpus: violations make it unusable, notes do not.

    Attributes:
        clips: That are in the shards.
        suspects: Whose content is suspicious.
        near_duplicates: Pairs of recordings that are nearly the same.
        folds: The corpus's split, where it has one.
    """

    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clips: int = 0
    suspects: Suspects = field(default_factory=Suspects)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    folds: Folds | None = None


def verify(index: ShardIndex, protocol: str | None = None) -> Findings:
    """Reads every shard and compares it with the index."""
    findings = Findings()
    for shard in index.shards:
        try:
            with fsspec.open(f"{index.root}/{shard.name}", "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            if digest != shard.sha256:
                findings.violations.append(f"shard '{shard.name}' does not match its checksum")
        except OSError as error:
            findings.violations.append(f"shard '{shard.name}' cannot be read: {error}")
    _check_clips(index, findings)
    _note_suspects(index, findings)
    for what, counts in compare_counts(index).items():
        findings.notes.append(
            f"{what} has {counts['found']} clips, published: {counts['published']}"
        )
    if line := index.faces_found():
        findings.notes.append(line)
    for reason, count in Counter(skipped.reason for skipped in index.left_out).items():
        findings.notes.append(f"{count} clips are left out: {reason}")
    for group in index.duplicates():
        findings.notes.append("same recording: " + " = ".join(e.clip for e in group))
    for kind in ("audio", "video", "features"):
        if 0 < index.has(kind) < len(index.clips):
            findings.notes.append(f"{len(index.clips) - index.has(kind)} clips have no {kind}")
    try:
        folds = make_folds(index, protocol)
        findings.folds = folds
        if folds.leak:
            findings.violations.append(folds.leak)
        findings.notes.append(_describe(folds))
        _judge_near_duplicates(index, folds, findings)
    except DataError as error:
        findings.violations.append(str(error))
    return findings


def _describe(folds: Folds) -> str:
    sizes = "/".join(
        f"{len(folds.test_rows(k))}{f' ({folds.names[k]})' if folds.names else ''}"
        for k in range(folds.count)
    )
    apart = (
        f"; {len(folds.unseen_rows)} clips of {len(folds.test_speakers)} test speakers are in none"
        if folds.test_speakers
        else ""
    )
    return f"protocol {folds.protocol}: {folds.count} folds of {sizes} clips{apart}"


def _judge_near_duplicates(index: ShardIndex, folds: Folds, findings: Findings) -> None:
    """On two sides of the split they are a leak."""
    fold_of = {e.clip: int(f) for e, f in zip(index.clips, folds.fold_of_clip, strict=True)}
    for one, other in findings.near_duplicates:
        if fold_of[one] == fold_of[other]:
            findings.notes.append(f"nearly the same recording: {one} = {other}")
        else:
            findings.violations.append(
                f"Leak: '{one}' and '{other}' are nearly the same recording, on several sides "
                f"(folds {fold_of[one]} and {fold_of[other]}). Remove one, or give them the same speaker."
            )


def _check_clips(index: ShardIndex, findings: Findings) -> None:
    expected = {entry.clip: entry for entry in index.clips}
    seen: Counter[str] = Counter()
    corrupt: list[str] = []
    heard: dict[str, NDArray[np.uint32]] = {}  # a set takes thirty times as much
    for sample in stream_clips(
        index, handler=lambda culprit, error: corrupt.append(f"{culprit}: {error}")
    ):
        seen[sample["clip"]] += 1
        entry = expected.get(sample["clip"])
        if entry is None or entry.content_hash != content_hashes(sample)[0]:
            corrupt.append(f"clip '{sample['clip']}' is not what the index says")
        elif not _sizes_fit(index, entry, sample):
            corrupt.append(f"clip '{sample['clip']}' has another shape than the index says")
        else:
            findings.suspects.look_at(sample)
        if "audio" in sample and entry is not None:
            words = fingerprint(sample["audio"], index.sample_rate_hz)
            heard[entry.clip] = np.fromiter(words, np.uint32)
    same = {frozenset((a.clip, b.clip)) for g in index.duplicates() for a in g for b in g}
    findings.near_duplicates = [p for p in near_duplicates(heard) if frozenset(p) not in same]
    findings.clips = len(seen)
    findings.violations += corrupt
    lost = [clip for clip in expected if clip not in seen]
    twice = [clip for clip, times in seen.items() if times > 1]
    if lost:
        findings.violations.append(
            f"{len(lost)} clips of the index are in no shard: {', '.join(lost[:5])}"
        )
    if twice:
        findings.violations.append(
            f"{len(twice)} clips are in the shards twice: {', '.join(twice[:5])}"
        )


def _sizes_fit(index: ShardIndex, entry: ClipEntry, sample: Sample) -> bool:
    """Whether lengths, channels and features are those that the cache will make room for."""
    sizes = content_sizes(sample)
    frame_shape = sample["video"].shape[1:] if "video" in sample else index.frame_shape
    return frame_shape == index.frame_shape and all(
        getattr(entry, name) == size for name, size in sizes.items()
    )


def _note_suspects(index: ShardIndex, findings: Findings) -> None:
    """One note for each kind of what is suspicious, with the first clips' names."""
    suspects = findings.suspects
    found: list[tuple[str, Collection[str]]] = [
        ("are silent (peak below -60 dB)", suspects.silent),
        ("are clipped", suspects.clipped),
        ("have pictures that never change", suspects.frozen),
        ("have black pictures", suspects.black),
        (
            "have sound and pictures of different length",
            [f"{c} ({s['audio']:.2f} and {s['video']:.2f} s)" for c, s in drifting(index).items()],
        ),
    ]
    for kind, spread in durations(index).items():
        lengths = [f"{clip} ({seconds:.2f} s)" for clip, seconds in spread["outliers"].items()]
        found.append((f"have {kind} of unusual length", lengths))
    low = [e.clip for e in index.clips if 0 < e.source_rate_hz < index.sample_rate_hz]
    found.append((f"were recorded at less than {index.sample_rate_hz} Hz", low))
    found.append(("have raters that tie", [e.clip for e in index.clips if "tie" in e.attributes]))
    for what, clips in found:
        if clips:
            first = ", ".join(list(clips)[:_NAMED]) + (" …" if len(clips) > _NAMED else "")
            findings.notes.append(f"{len(clips)} clips {what}: {first}")


def document(index: ShardIndex, findings: Findings) -> dict[str, Any]:
    """Everything that was counted and found, for `--json`."""
    return {
        "corpus": index.corpus,
        "sample_rate_hz": index.sample_rate_hz,
        **index.summary(),
        "per_speaker_and_class": per_speaker(index),
        "protocol": findings.folds.protocol if findings.folds else None,
        "per_fold": per_fold(index, findings.folds),
        "published": published_classes(index),
        "differs_from_published": compare_counts(index),
        "durations": durations(index),
        "source_rates_hz": source_rates(index.clips),
        **asdict(findings.suspects),
        "drifting": drifting(index),
        "near_duplicates": findings.near_duplicates,
        "left_out": [asdict(skipped) for skipped in index.left_out],
        "skipped": len(index.skipped),
        "skipped_clips": [asdict(skipped) for skipped in index.skipped],
        "clips_in_shards": findings.clips,
        "violations": findings.violations,
        "notes": findings.notes,
    }


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: usable; 1: violations; 2: not a prepared corpus."""
    parser = argparse.ArgumentParser(prog="python -m datasets.verify", description=__doc__)
    parser.add_argument("data", help="folder or URL of the shards")
    parser.add_argument(
        "--protocol", help="also split under this protocol (default: the corpus's own)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    try:
        index = read_index(options.data)
        findings = verify(index, options.protocol)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(document(index, findings), indent=1))
    else:
        _print(index, findings)
    return 1 if findings.violations else 0


def _print(index: ShardIndex, findings: Findings) -> None:
    console = Console()
    # As they are: a name may hold what rich takes for markup, and may be searched for.
    plain = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    summary = index.summary()
    plain(
        f"{index.corpus}: {summary['clips']} clips, {len(summary['per_speaker'])} speakers, "
        f"{summary['seconds_of_audio'] / 3600:.2f} h at {index.sample_rate_hz} Hz"
    )
    if corpora := summary.get("per_corpus"):
        plain("clips of " + ", ".join(f"{name} {count}" for name, count in corpora.items()))
    print_table(
        console, class_rows(index, findings.folds), "clips of each class and fold", sums=True
    )
    speakers = speaker_rows(index)
    if len(speakers) <= _SPEAKERS_SHOWN + 1:
        print_table(console, speakers, "clips of each speaker and class")
    else:
        plain(describe_speakers(speakers[1:]))
    for kind, spread in durations(index).items():
        plain(
            f"{kind}: {spread['min']:.2f} to {spread['max']:.2f} s a clip, median {spread['median']:.2f} s"
        )
    if rates := source_rates(index.clips):
        plain("recorded at " + ", ".join(f"{rate} Hz ({n})" for rate, n in rates.items()))
    plain(
        "with "
        + ", ".join(f"{kind} {count}" for kind, count in summary["with"].items())
        + ("; video with saliency maps" if index.saliency_maps else "")
        + f"; skipped at preparation: {len(index.skipped)}"
    )
    for note in findings.notes:
        plain(f"note: {note}")
    for violation in findings.violations:
        plain(f"violation: {violation}", style="red")
    console.print("ok" if not findings.violations else f"{len(findings.violations)} violations")


if __name__ == "__main__":
    sys.exit(main())
