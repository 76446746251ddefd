"""Your own corpus: a CSV with one row a clip.

Columns: `clip,speaker,label` and at least one of `audio,video` (paths relative to the
manifest's folder); `saliency` names a video file with a saliency map for every moment of
`video`; `start` and `end` (seconds) say which part of longer files the clip is; columns named
`feature:NAME` hold clip-level features; any other column is kept as an attribute of the clip.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus, DataError, Part
from datasets.features import FeatureTable, read_features

_REQUIRED = ("clip", "speaker", "label")
_MEDIA = ("audio", "video")
_FILES = (*_MEDIA, "saliency")
_TIMES = ("start", "end")
_FEATURE = "feature:"
_LARGEST = float(np.finfo(np.float32).max)


def load_manifest(
    root: Path,
    *,
    name: str = "manifest",
    labels: tuple[str, ...] | None = None,
    features: Path | None = None,
) -> Corpus:
    """Reads `manifest.csv` (or the CSV that `root` names).

    Args:
        root: A folder with `manifest.csv`, or the CSV itself.
        name: The corpus's name.
        labels: The class order; by default the labels found, sorted.
        features: A CSV of features, see `read_features`, joined by clip.

    Raises:
        DataError: Names every bad row with its number.
    """
    path = root / "manifest.csv" if root.is_dir() else root
    if not path.is_file():
        raise DataError(f"No manifest at '{path}' (--root: a folder with manifest.csv, or a CSV).")
    columns, rows = _read_rows(path)
    missing = [column for column in _REQUIRED if column not in columns]
    if missing or not any(column in columns for column in _MEDIA):
        shown = " ".join(", ".join(columns).split()) or "none"  # a quote may span lines
        raise DataError(
            f"'{path}' needs the columns clip,speaker,label and audio and/or video; "
            f"it has: {shown if len(shown) <= 300 else shown[:300] + '…'}."
        )
    feature_names = tuple(c.removeprefix(_FEATURE) for c in columns if c.startswith(_FEATURE))
    if feature_names and features:
        raise DataError(
            f"'{path}' has columns of features ('{_FEATURE}{feature_names[0]}'); leave them out, "
            "or --features."
        )
    table = read_features(features) if features else FeatureTable(feature_names, {})
    clips: list[ClipRecord] = []
    bad: list[str] = []
    first_row: dict[str, int] = {}
    for number, row in rows:
        problem = _problem(row, path.parent, first_row, labels)
        if problem:
            bad.append(f"row {number}: {problem}")
            continue
        first_row[row["clip"].strip()] = number
        clips.append(_record(row, path.parent, feature_names, table))
    if bad:
        listed = "\n  ".join(bad[:50]) + (
            f"\n  … and {len(bad) - 50} more" if len(bad) > 50 else ""
        )
        raise DataError(f"'{path}' has {len(bad)} bad rows:\n  {listed}")
    found = tuple(sorted({record.label for record in clips}))
    skipped = table.without_partner({r.clip: r.clip for r in clips}) if features else []
    return Corpus(
        name=name,
        labels=labels or found,
        clips=tuple(clips),
        feature_names=table.names,
        skipped=tuple(skipped),
    )


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns, and every row with its number in the file (blank lines count)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            return columns, [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' is not a CSV in UTF-8: {error}.") from error


def _problem(
    row: dict[str, str], folder: Path, first_row: dict[str, int], labels: tuple[str, ...] | None
) -> str | None:
    """What is wrong with a row, or None."""
    if None in row or None in row.values():
        return "the number of fields differs from the header's"
    clip = row["clip"].strip()
    for column in _REQUIRED:
        if not row[column].strip():
            return f"'{column}' is empty"
    if clip in first_row:
        return f"clip '{clip}' was already in row {first_row[clip]}"
    if labels and row["label"].strip() not in labels:
        return f"unknown label '{row['label'].strip()}' (known: {', '.join(labels)})"
    media = [row[column].strip() for column in _MEDIA if row.get(column, "").strip()]
    if not media:
        return "neither audio nor video is given"
    if row.get("saliency", "").strip() and not row.get("video", "").strip():
        return "a saliency map without video"
    for name in (row[column].strip() for column in _FILES if row.get(column, "").strip()):
        try:
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                return f"'{name}' lies outside the manifest's folder"
            if not (folder / name).is_file():
                return f"no such file '{name}'"
        except (OSError, ValueError) as error:
            return f"{name[:60]!r} cannot be the name of a file ({error})"
    for column, value in row.items():
        if column.startswith(_FEATURE) and _number(value) is None:
            return f"'{column}' is '{value}', not a finite number"
    return _bad_times(row)


def _bad_times(row: dict[str, str]) -> str | None:
    given = [column for column in _TIMES if row.get(column, "").strip()]
    if not given:
        return None
    if len(given) < len(_TIMES):
        return f"'{given[0]}' is given, but not the other of start and end"
    try:
        _part(row)
    except DataError as error:
        return str(error).rstrip(".")
    return None


def _part(row: dict[str, str]) -> Part | None:
    """The part of its files that a row is; raises DataError."""
    if not all(row.get(column, "").strip() for column in _TIMES):
        return None
    times = [_number(row[column]) for column in _TIMES]
    for column, value in zip(_TIMES, times, strict=True):
        if value is None:
            raise DataError(f"'{column}' is '{row[column]}', not a finite number")
    start, end = times
    assert start is not None
    assert end is not None
    return Part(start_s=start, end_s=end)


def _number(text: str) -> float | None:
    """A number that float32 can hold, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None


def _record(
    row: dict[str, str], folder: Path, feature_names: tuple[str, ...], table: FeatureTable
) -> ClipRecord:
    features: NDArray[np.float32] | None = table.rows.get(row["clip"].strip())
    if feature_names:
        features = np.asarray([float(row[_FEATURE + name]) for name in feature_names], np.float32)
    paths = {c: folder / row[c].strip() for c in _FILES if row.get(c, "").strip()}
    known = {*_REQUIRED, *_FILES, *_TIMES}
    part = _part(row)
    return ClipRecord(
        clip=row["clip"].strip(),
        speaker=row["speaker"].strip(),
        label=row["label"].strip(),
        audio=paths.get("audio"),
        video=paths.get("video"),
        audio_part=part,
        video_part=part,
        saliency=paths.get("saliency"),
        features=features,
        attributes={
            c: v.strip() for c, v in row.items() if c not in known and not c.startswith(_FEATURE)
        },
    )
