"""Clip-level features from a CSV: `clip,<feature>,…`, one row a clip."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError

_RAVDESS_NAME = re.compile(r"0[123]((-\d\d){6})")


@dataclass(frozen=True)
class FeatureTable:
    """Features by clip.

    Attributes:
        names: (F,) columns.
        rows: Key of a clip → (F,) values.
    """

    names: tuple[str, ...]
    rows: dict[str, NDArray[np.float32]]

    def find(self, clip: str) -> NDArray[np.float32] | None:
        """A clip's features; RAVDESS's sound, picture and both are one clip under three names."""
        if clip in self.rows:
            return self.rows[clip]
        match = _RAVDESS_NAME.fullmatch(clip)
        names = (f"0{modality}{match[1]}" for modality in (1, 2, 3)) if match else ()
        return next((self.rows[name] for name in names if name in self.rows), None)


def read_features(
    path: Path, key_of: Callable[[str], str | None] = lambda clip: clip
) -> FeatureTable:
    """Reads the CSV.

    Args:
        path: The file.
        key_of: Clip name → key that its row is found by, or None for a name that is none.

    Raises:
        DataError: Names the file, and the rows that are wrong.
    """
    if not path.is_file():
        raise DataError(f"No such file: '{path}' (--features).")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' is not a CSV in UTF-8: {error} (--features).") from error
    if len(lines) < 2 or lines[0][1][0].strip() != "clip" or len(lines[0][1]) < 2:
        raise DataError(f"'{path}' must have a header 'clip,<feature>,…' and rows (--features).")
    names = tuple(name.strip() for name in lines[0][1][1:])
    table = FeatureTable(names, {})
    bad: list[str] = []
    for number, row in lines[1:]:
        clip = row[0].strip()
        key = key_of(clip)
        try:
            values = np.asarray([float(value) for value in row[1:]], np.float32)
        except ValueError:
            values = np.full(0, np.nan, np.float32)
        if len(values) != len(names) or not np.isfinite(values).all():
            bad.append(f"row {number}")
        elif key is None:
            bad.append(f"row {number} (clip '{clip}')")
        elif key in table.rows:
            bad.append(f"row {number} (clip '{clip}' a second time)")
        else:
            table.rows[key] = values
    if bad:
        raise DataError(f"'{path}' has {len(bad)} bad rows: {', '.join(bad[:20])}.")
    return table
