"""Features from a CSV: `clip,<feature>,…`, one row a clip; or `clip,frame,<feature>,…`, one a frame.

Or from a folder of CSV files as OpenFace's FeatureExtraction writes them, one a clip: then the action
units of every frame in which it found a face.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import Corpus, DataError, Skipped

_RAVDESS_NAME = re.compile(r"0[123]((-\d\d){6})")


@dataclass(frozen=True)
class FeatureTable:
    """Features by clip.

    Attributes:
        names: (F,) columns.
        rows: Key of a clip → (F,) values; (S, F) of a table with one row a frame.
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

    def without_partner(self, clip_of: Mapping[str, str]) -> list[Skipped]:
        """Rows of no clip, and clips without a row, as a loader reports them.

        Args:
            clip_of: Key → the clip's name, of every clip of the corpus.
        """
        strangers = sorted(set(self.rows) - set(clip_of))
        lacking = [clip for key, clip in clip_of.items() if key not in self.rows]
        return [
            *(Skipped(f"features row {key}", "no clip of that name") for key in strangers),
            *(
                Skipped(clip, "no row in the features table (kept without features)")
                for clip in lacking
            ),
        ]


def with_features(corpus: Corpus, path: Path) -> Corpus:
    """A corpus with features from a table, joined by clip; see `read_features`."""
    table = read_features(path)
    clips = tuple(replace(record, features=table.rows.get(record.clip)) for record in corpus.clips)
    skipped = table.without_partner({record.clip: record.clip for record in clips})
    return replace(
        corpus, clips=clips, feature_names=table.names, skipped=(*corpus.skipped, *skipped)
    )


def clip_means(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(F,) as it is; (S, F) → (F,), the mean over the frames."""
    if features.ndim == 1:
        return features
    return np.asarray(features.mean(axis=0, dtype=np.float64), np.float32)


def read_features(
    path: Path, key_of: Callable[[str], str | None] = lambda clip: clip
) -> FeatureTable:
    """Reads the CSV, or OpenFace's CSV files in a folder.

    With a column `frame` right after `clip`, a clip has a row a frame; the numbers there order
    its rows. Without, it has one row.

    Args:
        path: The file, or the folder; a clip's file there has its name.
        key_of: Clip name → key that its rows are found by, or None for a name that is none.

    Raises:
        DataError: Names the file, and the rows that are wrong.
    """
    if path.is_dir():
        return _read_openface(path, key_of)
    if not path.is_file():
        raise DataError(f"No such file: '{path}' (--features).")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = ((reader.line_num, row) for row in reader if row)
            _, header = next(lines, (0, [""]))
            by_frame = len(header) > 1 and header[1].strip() == "frame"
            names = tuple(name.strip() for name in header[2 if by_frame else 1 :])
            found = _Rows(len(names), by_frame, key_of)
            if header[0].strip() == "clip" and names:
                found.take(lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' is not a CSV in UTF-8: {error} (--features).") from error
    if not (found.clips or found.bad):
        raise DataError(
            f"'{path}' must have a header 'clip,<feature>,…' and rows, or 'clip,frame,<feature>,…' "
            "and a row a frame (--features)."
        )
    if found.bad:
        raise DataError(f"'{path}' has {len(found.bad)} bad rows: {', '.join(found.bad[:20])}.")
    return FeatureTable(names, found.joined())


_ACTION_UNIT = re.compile(r"AU\d\d_[rc]")
"""OpenFace's intensities (r, 0 to 5) and presences (c, 0 or 1)."""


def _read_openface(folder: Path, key_of: Callable[[str], str | None]) -> FeatureTable:
    """A clip's frames are those of the face that is tracked in most; a clip without any has no rows."""
    names: tuple[str, ...] | None = None
    first = ""
    rows: dict[str, NDArray[np.float32]] = {}
    files = sorted(path for path in folder.rglob("*.csv") if not path.name.startswith("._"))
    for path in files:
        key = key_of(path.stem)
        if key is None:
            raise DataError(f"'{path}' is named after no clip of this corpus (--features).")
        if key in rows:
            raise DataError(f"'{path}' is of clip '{path.stem}' a second time (--features).")
        units, frames = _openface_frames(path)
        names, first = names or units, first or path.name
        if units != names:
            raise DataError(f"'{path}' has other action units than '{first}' (--features).")
        if len(frames):
            rows[key] = frames
    if names is None or not rows:
        raise DataError(f"No CSV of OpenFace's with a tracked face under '{folder}' (--features).")
    return FeatureTable(names, rows)


def _openface_frames(path: Path) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names of the action units, and (S, F) of the frames in which a face was found."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]  # OpenFace puts spaces in front
            units = tuple(name for name in header if _ACTION_UNIT.fullmatch(name))
            if not units or "success" not in header:
                raise DataError(
                    f"'{path}' is no CSV of OpenFace's: it has no column 'success', or no action "
                    "units such as AU01_r (--features)."
                )
            place = {name: number for number, name in enumerate(header)}
            faces: dict[str, list[list[float]]] = {}
            for row in reader:
                if not row:
                    continue
                try:
                    if float(row[place["success"]]) < 1:
                        continue
                    face = row[place["face_id"]].strip() if "face_id" in place else ""
                    values = [float(row[place[name]]) for name in units]
                except (ValueError, IndexError):
                    values = [math.nan]
                if not all(map(math.isfinite, values)):
                    raise DataError(f"'{path}', row {reader.line_num}, is bad (--features).")
                faces.setdefault(face, []).append(values)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' is not a CSV in UTF-8: {error} (--features).") from error
    longest = max(faces.values(), key=len, default=[])
    return units, np.asarray(longest, np.float32).reshape(-1, len(units))


@dataclass
class _Rows:
    """The rows of a table as they come; a whole one, frame by frame, is large as text."""

    count: int
    by_frame: bool
    key_of: Callable[[str], str | None]
    clips: dict[str, tuple[str, dict[float, NDArray[np.float32]]]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def take(self, lines: Iterator[tuple[int, list[str]]]) -> None:
        """Sorts the rows into those of a clip and those that are wrong."""
        for number, row in lines:
            problem = self._add(row)
            if problem is not None:
                self.bad.append(f"row {number}{problem}")

    def _add(self, row: list[str]) -> str | None:
        """What is wrong with a row, beside its number; None if it was taken."""
        clip = row[0].strip()
        key = self.key_of(clip)
        try:
            numbers = [float(value) for value in row[1:]]
        except ValueError:
            return ""
        frame = numbers.pop(0) if self.by_frame and numbers else 0.0
        values = np.asarray(numbers, np.float32)
        if len(values) != self.count or not (np.isfinite(values).all() and math.isfinite(frame)):
            return ""
        if key is None:
            return f" (clip '{clip}')"
        first, frames = self.clips.setdefault(key, (clip, {}))
        if frames and (first != clip or not self.by_frame):
            return f" (clip '{clip}' a second time)"
        if frame in frames:
            return f" (frame {frame:g} of clip '{clip}' a second time)"
        frames[frame] = values
        return None

    def joined(self) -> dict[str, NDArray[np.float32]]:
        """Key → the clip's row, or its rows in the order of their frames."""
        return {
            key: np.stack([frames[number] for number in sorted(frames)])
            if self.by_frame
            else frames[0.0]
            for key, (_, frames) in self.clips.items()
        }
