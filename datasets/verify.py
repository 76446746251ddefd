"""Checks prepared shards against their index: `python -m datasets.verify DIR`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import fsspec
from rich.console import Console
from rich.table import Table

from datasets.clips import DataError
from datasets.fingerprint import fingerprint, near_duplicates
from datasets.index import ClipEntry, ShardIndex, read_index
from datasets.splits import Folds, make_folds
from datasets.stream import Sample, content_hashes, content_sizes, stream_clips

# Published clips of each class: Livingstone & Russo 2018, Busso et al. 2008, Cao et al. 2014 (intended).
_PUBLISHED = {
    "ravdess": {"neutral": 96}
    | dict.fromkeys(("calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"), 192),
    "iemocap": {
        "angry": 1103, "disgust": 2, "excited": 1041, "fearful": 40, "frustrated": 1849, "happy": 595,
        "neutral": 1708, "other": 3, "sad": 1084, "surprised": 107,
    },
    "crema_d": {"neutral": 1087}
    | dict.fromkeys(("angry", "disgust", "fearful", "happy", "sad"), 1271),
}  # fmt: skip
_SILENT_PEAK = 33  # of 32768: -60 dB


@dataclass
class Findings:
    """What a check of a corpus found: violations make it unusable, notes do not."""

    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clips: int = 0
    silent: int = 0
    clipped: int = 0
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)


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
    counts = Counter(entry.label for entry in index.clips)
    for label, expected in _published(index).items():
        if counts[label] != expected:
            findings.notes.append(
                f"class '{label}' has {counts[label]} clips, published: {expected}"
            )
    if line := index.faces_found():
        findings.notes.append(line)
    for group in index.duplicates():
        findings.notes.append("same recording: " + " = ".join(e.clip for e in group))
    for kind in ("audio", "video", "features"):
        if 0 < index.has(kind) < len(index.clips):
            findings.notes.append(f"{len(index.clips) - index.has(kind)} clips have no {kind}")
    try:
        folds = make_folds(index, protocol)
        if folds.leak:
            findings.violations.append(folds.leak)
        findings.notes.append(
            f"protocol {folds.protocol}: {folds.count} folds of "
            + "/".join(str(len(folds.test_rows(k))) for k in range(folds.count))
            + " clips"
        )
        _judge_near_duplicates(index, folds, findings)
    except DataError as error:
        findings.violations.append(str(error))
    return findings


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


def _published(index: ShardIndex) -> dict[str, int]:
    """Published clips; of IEMOCAP in the classes that were taken, excited ones perhaps as happy."""
    known = dict(_PUBLISHED.get(index.corpus, {}))
    if index.corpus != "iemocap":
        return known
    if "excited" not in index.labels:
        known["happy"] += known["excited"]
    return {label: count for label, count in known.items() if label in index.labels}


def _check_clips(index: ShardIndex, findings: Findings) -> None:
    expected = {entry.clip: entry for entry in index.clips}
    seen: Counter[str] = Counter()
    corrupt: list[str] = []
    heard: dict[str, frozenset[int]] = {}
    for sample in stream_clips(
        index, handler=lambda culprit, error: corrupt.append(f"{culprit}: {error}")
    ):
        seen[sample["clip"]] += 1
        entry = expected.get(sample["clip"])
        if entry is None or entry.content_hash != content_hashes(sample)[0]:
            corrupt.append(f"clip '{sample['clip']}' is not what the index says")
        elif not _sizes_fit(index, entry, sample):
            corrupt.append(f"clip '{sample['clip']}' has another shape than the index says")
        if "audio" in sample:
            if entry is not None:
                heard[entry.clip] = fingerprint(sample["audio"], index.sample_rate_hz)
            peak = int(abs(sample["audio"].astype("int32")).max())
            findings.silent += peak < _SILENT_PEAK
            findings.clipped += bool((abs(sample["audio"].astype("int32")) >= 32767).sum() > 8)
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
    if findings.silent:
        findings.notes.append(f"{findings.silent} clips are silent (peak below -60 dB)")
    if findings.clipped:
        findings.notes.append(f"{findings.clipped} clips are clipped")


def _sizes_fit(index: ShardIndex, entry: ClipEntry, sample: Sample) -> bool:
    """Whether lengths, channels and features are those that the cache will make room for."""
    sizes = content_sizes(sample)
    frame_shape = sample["video"].shape[1:] if "video" in sample else index.frame_shape
    return frame_shape == index.frame_shape and all(
        getattr(entry, name) == size for name, size in sizes.items()
    )


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
        print(
            json.dumps(
                {**index.summary(), "skipped": len(index.skipped), **findings.__dict__}, indent=1
            )
        )
    else:
        _print(index, findings)
    return 1 if findings.violations else 0


def _print(index: ShardIndex, findings: Findings) -> None:
    console = Console()
    summary = index.summary()
    print(
        f"{index.corpus}: {summary['clips']} clips, {len(summary['per_speaker'])} speakers, "
        f"{summary['seconds_of_audio'] / 3600:.2f} h at {index.sample_rate_hz} Hz"
    )
    table = Table()
    table.add_column("class")
    table.add_column("clips", justify="right")
    for label in index.labels:
        table.add_row(label, str(summary["per_class"].get(label, 0)))
    console.print(table)
    console.print(
        ", ".join(f"{kind} {count}" for kind, count in summary["with"].items())
        + ("; video with saliency maps" if index.saliency_maps else "")
        + f"; skipped at preparation: {len(index.skipped)}",
        soft_wrap=True,
    )
    # As they are: a name may hold what rich takes for markup, and may be searched for.
    plain = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for note in findings.notes:
        plain(f"note: {note}")
    for violation in findings.violations:
        plain(f"violation: {violation}", style="red")
    console.print("ok" if not findings.violations else f"{len(findings.violations)} violations")


if __name__ == "__main__":
    sys.exit(main())
