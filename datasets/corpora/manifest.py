"""Your own corpus: a CSV with one row a clip.

Columns: `clip,speaker,label` and at least one of `audio,video` (paths relative to the
manifest's folder); `saliency` names a video file with a saliency map for every moment of
`video`; `start` and `end` (seconds) say which part of longer files the clip is; columns named
`feature:NAME` hold clip-level features, or `features` a file of each clip's own; a label may be
several raters' votes (`happy:3;sad:1`, `happy|sad`); `split` is train, dev or test; `arousal`,
`valence` and `dominance` are numbers. These four and any other column are kept as attributes of
the clip.
"""

from __future__ import annotations

import csv
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import SPLITS, ClipRecord, Corpus, DataError, Part, Skipped
from datasets.corpora.registry import register_corpus
from datasets.features import FeatureTable, read_clip, read_features
from datasets.features.table import left_out_reason
from datasets.rater_votes import TIES, parse_votes, winners

_REQUIRED = ("clip", "speaker", "label")
_MEDIA = ("audio", "video")
_FILES = (*_MEDIA, "saliency", "features")
_TIMES = ("start", "end")
_FEATURE = "feature:"
RATINGS = ("arousal", "valence", "dominance")
"""Numbers that a clip as a whole is rated with."""
_LARGEST = float(np.finfo(np.float32).max)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--ties",
        choices=list(TIES),
        default="error",
        help="clips whose raters agree on no emotion: an error (the default), left out and named "
        "(drop), or kept under the first named (soft; for search.run --soft-labels)",
    )


@register_corpus(
    "manifest",
    "your own corpus: a folder with manifest.csv, or a CSV, one row a clip",
    options=_add_options,
    reads_features=True,
)
def _load(options: Namespace) -> Corpus:
    return load_manifest(
        options.root,
        features=options.features,
        missing_features=options.missing_features,
        ties=options.ties,
    )


def load_manifest(
    root: Path,
    *,
    name: str = "manifest",
    labels: tuple[str, ...] | None = None,
    features: Path | None = None,
    missing_features: str = "error",
    ties: str = "error",
) -> Corpus:
    """Reads `manifest.csv` (or the CSV that `root` names).

    Args:
        root: A folder with `manifest.csv`, or the CSV itself.
        name: The corpus's name.
        labels: The class order; by default the labels found, sorted.
        features: A table of features, see `read_features`, joined by clip.
        missing_features: See `read_features`.
        ties: Of clips whose raters agree on no label: `error`; `drop` leaves them out, and names
            them; `soft` keeps them, under the label that was named first.

    Raises:
        DataError: Names every bad row with its number.
    """
    path = root / "manifest.csv" if root.is_dir() else root
    if not path.is_file():
        raise DataError(f"No manifest at '{path}' (--root: a folder with manifest.csv, or a CSV).")
    if ties not in TIES:
        raise DataError(f"Unknown ties '{ties}'. Known: {', '.join(TIES)} (--ties).")
    columns, rows = _read_rows(path)
    _check_columns(path, columns, features)
    names = tuple(c.removeprefix(_FEATURE) for c in columns if c.startswith(_FEATURE))
    table = FeatureTable(names, {})
    if features:
        table = read_features(features, missing=missing_features)
    reader = _Reader(path.parent, labels, ties, missing_features, table, bool(names))
    for number, row in rows:
        reader.take(number, row)
    if reader.bad:
        listed = "\n  ".join(reader.bad[:50]) + (
            f"\n  … and {len(reader.bad) - 50} more" if len(reader.bad) > 50 else ""
        )
        raise DataError(f"'{path}' has {len(reader.bad)} bad rows:\n  {listed}")
    clips = tuple(reader.clips)
    if features:
        reader.skipped += table.without_partner({record.clip: record.clip for record in clips})
    return Corpus(
        name=name,
        labels=labels or tuple(sorted({record.label for record in clips})),
        clips=clips,
        feature_names=reader.file_names or table.names,
        skipped=tuple(reader.skipped),
    )


def _check_columns(path: Path, columns: list[str], features: Path | None) -> None:
    missing = [column for column in _REQUIRED if column not in columns]
    if missing or not any(column in columns for column in _MEDIA):
        shown = " ".join(", ".join(columns).split()) or "none"  # a quote may span lines
        raise DataError(
            f"'{path}' needs the columns clip,speaker,label and audio and/or video; "
            f"it has: {shown if len(shown) <= 300 else shown[:300] + '…'}."
        )
    of_rows = [c for c in columns if c.startswith(_FEATURE)][:1]
    of_files = ["features"] if "features" in columns else []
    if of_rows and features:
        raise DataError(
            f"'{path}' has columns of features ('{of_rows[0]}'); leave them out, or --features."
        )
    if of_files and (of_rows or features):
        other = of_rows[0] if of_rows else "--features"
        raise DataError(f"'{path}' has a column 'features' of files; leave it out, or {other}.")


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


@dataclass
class _Reader:
    """Takes rows: the good ones become clips, what is wrong with the others is listed.

    Attributes:
        folder: The manifest's.
        labels: Those allowed, where they are given.
        ties: See `load_manifest`.
        missing: Of features.
        table: Of features, by clip.
        in_columns: Whether they are in columns of the manifest instead.
        file_names: (F,) names of the features that each row's file holds.
    """

    folder: Path
    labels: tuple[str, ...] | None
    ties: str
    missing: str
    table: FeatureTable
    in_columns: bool
    clips: list[ClipRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    file_names: tuple[str, ...] = ()
    _row_of: dict[str, int] = field(default_factory=dict)
    _first_file: str = ""

    def take(self, number: int, row: dict[str, str]) -> None:
        """A row, and its number."""
        problem = _problem(row, self.folder, self._row_of)
        if problem:
            self.bad.append(f"row {number}: {problem}")
            return
        row = {column: value.strip() for column, value in row.items()}
        self._row_of[row["clip"]] = number
        try:
            record = self._record(row)
        except DataError as error:
            problem = str(error).rstrip(".").replace(" (--features)", "")
            self.bad.append(f"row {number}: {problem}")
            return
        if record is not None:
            self.clips.append(record)

    def _record(self, row: dict[str, str]) -> ClipRecord | None:
        """A clip; None if its raters disagree and such clips are left out."""
        votes = self._votes(row["label"])
        label, *tied = winners(votes) if votes else [row["label"]]
        named = " and ".join(f"'{name}'" for name in (label, *tied))
        if tied and self.ties == "error":
            raise DataError(
                f"a tie of {named}; leave such clips out or keep them (--ties drop, soft)"
            )
        if tied and self.ties == "drop":
            self.skipped.append(Skipped(row["clip"], f"its raters tie: {named} (--ties drop)"))
            return None
        paths = {c: self.folder / row[c] for c in _FILES if row.get(c)}
        part = _part(row)
        known = {*_REQUIRED, *_FILES, *_TIMES}
        attributes = {c: v for c, v in row.items() if c not in known and not c.startswith(_FEATURE)}
        return ClipRecord(
            clip=row["clip"],
            speaker=row["speaker"],
            label=label,
            audio=paths.get("audio"),
            video=paths.get("video"),
            audio_part=part,
            video_part=part,
            saliency=paths.get("saliency"),
            features=self._features(row, paths.get("features")),
            attributes=attributes | ({"tie": "|".join((label, *tied))} if tied else {}),
            votes=votes,
        )

    def _votes(self, text: str) -> dict[str, float]:
        try:
            votes = parse_votes(text)
        except ValueError as error:
            raise DataError(f"'label' is '{text}': {error}") from error
        for label in votes or (text,):
            if self.labels and label not in self.labels:
                raise DataError(f"unknown label '{label}' (known: {', '.join(self.labels)})")
        return votes

    def _features(self, row: dict[str, str], path: Path | None) -> NDArray[np.float32] | None:
        if self.in_columns:
            return np.asarray(
                [float(row[_FEATURE + name]) for name in self.table.names], np.float32
            )
        if path is None:
            if "features" in row:
                why = "no file of features is given (kept without features)"
                self.skipped.append(Skipped(row["clip"], why))
            return self.table.rows.get(row["clip"])
        found, values = read_clip(path, missing=self.missing)
        names = found or tuple(f"feature_{number}" for number in range(values.shape[-1]))
        if self.file_names and names != self.file_names:
            raise DataError(
                f"'{row['features']}' has {len(names)} features, '{self._first_file}' other ones: "
                f"{len(self.file_names)}"
            )
        self.file_names, self._first_file = names, self._first_file or row["features"]
        return self._whole(row, values)

    def _whole(
        self, row: dict[str, str], values: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """The features without what lacks a value; None if nothing is left."""
        finite = np.asarray(np.isfinite(np.atleast_2d(values)).all(axis=1))
        if finite.all() and len(finite):
            return values
        if len(finite) and self.missing == "error":
            first = int(np.flatnonzero(~finite)[0]) + 1
            raise DataError(
                f"'{row['features']}', row {first}, lacks a finite value (--missing-features skip leaves it out)"
            )
        why = left_out_reason(len(finite), int(finite.sum()))
        self.skipped.append(Skipped(row["clip"], why))
        return values[finite] if finite.any() else None


def _problem(row: dict[str, str], folder: Path, first_row: dict[str, int]) -> str | None:
    """Return what is wrong with a row, or None."""
    if None in row or None in row.values():
        return "the number of fields differs from the header's"
    clip = row["clip"].strip()
    for column in _REQUIRED:
        if not row[column].strip():
            return f"'{column}' is empty"
    if clip in first_row:
        return f"clip '{clip}' was already in row {first_row[clip]}"
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
        if (column.startswith(_FEATURE) or column in RATINGS) and _number(value) is None:
            return f"'{column}' is '{value}', not a finite number"
    if "split" in row and row["split"].strip() not in SPLITS:
        return f"'split' is '{row['split'].strip()}', not one of {', '.join(SPLITS)}"
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
