"""Reads a table of features, or a folder of files of one clip each, whatever their format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus, DataError
from datasets.features.arff import arff_layout
from datasets.features.arrays import read_array, read_npz
from datasets.features.openface import is_openface, read_openface
from datasets.features.parquet import read_parquet
from datasets.features.table import (
    MISSING_CHOICES,
    FeatureTable,
    KeyOf,
    Rows,
    check_rows,
    from_arrays,
    join,
)
from datasets.features.text import Layout, clip_layout, header_of, read_rows, read_table

_TEXT = (".csv", ".tsv", ".txt")
_TABLES = (*_TEXT, ".parquet", ".npz", ".arff")
_OF_ONE_CLIP = (".csv", ".tsv", ".parquet", ".npz", ".npy", ".arff")


def with_features(corpus: Corpus, path: Path, *, missing: str = "error") -> Corpus:
    """A corpus with features from a table, joined by clip; see `read_features`.

    Clips that are windows of a recording may have theirs under the recording's name, frame by frame:
    then each has its share of the rows.
    """
    table = read_features(path, missing=missing)
    lasts: dict[str, int] = {}
    for record in corpus.clips:
        end = record.first_step + (0 if record.trace is None else len(record.trace))
        lasts[record.recording] = max(lasts.get(record.recording, 0), end)
    clips = tuple(
        replace(record, features=_rows_of(record, table, lasts[record.recording]))
        for record in corpus.clips
    )
    skipped = table.without_partner({_key_of(record, table): record.clip for record in clips})
    return replace(
        corpus, clips=clips, feature_names=table.names, skipped=(*corpus.skipped, *skipped)
    )


def _key_of(record: ClipRecord, table: FeatureTable) -> str:
    return record.recording if record.recording in table.rows else record.clip


def _rows_of(record: ClipRecord, table: FeatureTable, last: int) -> NDArray[np.float32] | None:
    """A clip's own row or rows; of a recording of `last` steps, those of its part."""
    rows = table.rows.get(_key_of(record, table))
    if rows is None or rows.ndim == 1 or record.trace is None or record.clip in table.rows:
        return rows
    each = max(1, round(len(rows) / last))
    if abs(len(rows) - each * last) > 0.01 * len(rows) + each:
        raise DataError(
            f"'{record.recording}' has {len(rows)} rows of features for {last} steps of its trace; as many, or a "
            "whole multiple, are wanted (--features)."
        )
    first, end = record.first_step, record.first_step + len(record.trace)
    return rows[round(first / last * len(rows)) : max(round(end / last * len(rows)), 1)]


def read_features(
    path: Path, key_of: KeyOf = lambda clip: clip, *, missing: str = "error"
) -> FeatureTable:
    """Reads a table (CSV, openSMILE's CSV, Parquet, npz, ARFF), or a folder of files, one a clip.

    In a CSV with a column `frame` right after `clip`, a clip has a row a frame; the numbers there
    order its rows. Without, it has one row. The formats' own files say how it is with them.

    Args:
        path: The file, or the folder; a clip's file there has its name.
        key_of: Clip name → key that its rows are found by, or None for a name that is none.
        missing: What to do with rows that lack a value: `error`, or `skip` to leave them out.

    Raises:
        DataError: Names the file, and the rows that are wrong.
    """
    if missing not in MISSING_CHOICES:
        known = ", ".join(MISSING_CHOICES)
        raise DataError(f"Unknown missing_features '{missing}'. Known: {known}.")
    if path.is_dir():
        return _read_folder(path, key_of, missing)
    if not path.is_file():
        raise DataError(f"No such file: '{path}' (--features).")
    suffix = path.suffix.lower()
    if suffix not in _TABLES:
        raise DataError(
            f"'{path}' is of a kind that is not read as a table of features. Known: "
            f"{', '.join(_TABLES)}, or a folder of {', '.join(_OF_ONE_CLIP)}, one a clip (--features)."
        )
    if suffix == ".npz":
        return read_npz(path, key_of, missing)
    if suffix == ".parquet":
        rows = read_parquet(path)
        return join(path, rows, key_of, missing, lambda: rows)
    layout, rows = _read_text(path)
    return join(path, rows, key_of, missing, lambda: read_rows(path, layout, numbered=True))


def _read_text(path: Path) -> tuple[Layout, Rows]:
    if path.suffix.lower() in _TEXT:
        layout, rows = read_table(path)
    else:
        layout = arff_layout(path)
        rows = read_rows(path, layout)
    if not (len(rows.codes) or rows.bad):
        raise DataError(f"'{path}' has no rows (--features).")
    return layout, rows


def read_clip(
    path: Path, *, missing: str = "error"
) -> tuple[tuple[str, ...] | None, NDArray[np.float32]]:
    """Reads the features of one clip: npy, npz of one array, CSV (OpenFace's too), ARFF or Parquet.

    Returns:
        Names of the features, where the file has them, and the (F,) or (S, F) features; with
        `missing` skip, NaN where a value is missing.

    Raises:
        DataError: Names the file, and the rows that are wrong.
    """
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return None, read_array(path)
    if suffix == ".parquet":
        rows = read_parquet(path, one_clip=True)
        return rows.names, _of_one_clip(path, rows, missing, None)
    if suffix == ".arff":
        layout = arff_layout(path, one_clip=True)
    elif suffix in _TEXT:
        header, delimiter, skip = header_of(path)
        if is_openface(header):
            return read_openface(path, header, delimiter, skip, missing)
        layout = clip_layout(header, delimiter, skip)
    else:
        raise DataError(
            f"'{path}' is of a kind that is not read as a clip's features. Known: "
            f"{', '.join(_OF_ONE_CLIP)}."
        )
    if not layout.features:
        raise DataError(f"'{path}' has no columns of features (--features).")
    return layout.names, _of_one_clip(path, read_rows(path, layout), missing, layout)


def _of_one_clip(
    path: Path, rows: Rows, missing: str, layout: Layout | None
) -> NDArray[np.float32]:
    """(F,), or (S, F) in the order of the frames."""

    def again() -> Rows:
        return read_rows(path, layout, numbered=True) if layout else rows

    if not len(rows.codes) and not rows.bad:
        raise DataError(f"'{path}' has no rows (--features).")
    # What lacks a value is left out when the clips are together, so that each is counted.
    check_rows(path, rows, lambda clip: clip, missing, again)
    if rows.frames is None:
        return np.asarray(rows.values[0])
    return np.asarray(rows.values[np.argsort(rows.frames, kind="stable")])


def _read_folder(folder: Path, key_of: KeyOf, missing: str) -> FeatureTable:
    """A clip's file has its name; one in which no face was found has no rows."""
    files = sorted(
        path for path in folder.rglob("*")
        if path.suffix.lower() in _OF_ONE_CLIP and not path.name.startswith("._")
    )  # fmt: skip
    if not files:
        raise DataError(
            f"No file of features under '{folder}' ({', '.join(_OF_ONE_CLIP)}; --features)."
        )
    first: dict[tuple[str, ...], str] = {}

    def arrays() -> Iterator[tuple[str, str, NDArray[np.float32]]]:
        for path in files:
            called = f"'{path.relative_to(folder)}'"
            names, values = read_clip(path, missing=missing)
            if names is not None and first.setdefault(names, called) == called and len(first) > 1:
                other = next(iter(first.values()))
                raise DataError(
                    f"'{folder}': {called} has other features than {other} (--features)."
                )
            yield path.stem, called, values

    table = from_arrays(folder, arrays(), key_of, missing)
    return replace(table, names=next(iter(first), table.names))
