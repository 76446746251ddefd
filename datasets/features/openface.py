"""OpenFace's CSV, one a clip: the action units of the frames in which it found a face."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.features.table import LACKS, Rows, bad_rows
from datasets.features.text import Layout, read_rows

_ACTION_UNIT = re.compile(r"AU\d\d_[rc]")
"""OpenFace's intensities (r, 0 to 5) and presences (c, 0 or 1)."""


def is_openface(header: list[str]) -> bool:
    """Whether a CSV's columns are those that FeatureExtraction writes."""
    return "success" in header and "confidence" in header


def read_openface(
    path: Path, header: list[str], delimiter: str, skip: int, missing: str
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names of the action units, and (S, F) of the face that is tracked in most frames.

    Args:
        path: The file.
        header: Its columns.
        delimiter: Between them.
        skip: Lines of the header.
        missing: `error`, or `skip` to keep rows that lack a value, as NaN.

    Raises:
        DataError: It has no action units, or names the rows that are wrong.
    """
    units = tuple(name for name in header if _ACTION_UNIT.fullmatch(name))
    if not units:
        raise DataError(
            f"'{path}' is a CSV of OpenFace's without action units such as AU01_r (--features)."
        )
    place = {name: number for number, name in enumerate(header)}
    named = ("success", *(("face_id",) if "face_id" in place else ()), *units)
    columns = tuple(place[name] for name in named)
    layout = Layout(len(header), named, columns, None, None, skip, delimiter)
    rows = read_rows(path, layout)
    problems = _problems(rows, len(units), missing)
    if problems and rows.numbers is None:
        rows = read_rows(path, layout, numbered=True)
        problems = _problems(rows, len(units), missing)
    if problems:
        raise bad_rows(path, problems)
    tracked = rows.values[rows.values[:, 0] >= 1]
    faces = tracked[:, 1] if "face_id" in place else np.zeros(len(tracked), np.float32)
    return units, tracked[faces == _longest(faces)][:, -len(units) :]


def _problems(rows: Rows, units: int, missing: str) -> dict[int, str]:
    """Number of a row → what is wrong with it; where the numbers are not known, of any."""
    problems = dict(rows.bad)
    lacking = ~np.isfinite(rows.values[:, -units:]).all(axis=1) & ~(rows.values[:, 0] < 1)
    unknown = np.isnan(rows.values[:, 0])
    numbers = np.arange(len(rows.values)) if rows.numbers is None else rows.numbers
    for row in np.flatnonzero(unknown | (lacking if missing == "error" else False)):
        problems[int(numbers[row])] = (
            "'success' is empty" if unknown[row] else f"an action unit {LACKS}"
        )
    return problems


def _longest(faces: NDArray[np.float32]) -> float:
    """Return the face that is in most rows; of two, the one that came first."""
    found, first, counts = np.unique(faces, return_index=True, return_counts=True)
    return float(found[np.lexsort((first, -counts))[0]]) if len(found) else 0.0
