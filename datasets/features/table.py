"""Rows as a file has them, and a table of features by clip: what every format becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError, Skipped

KeyOf = Callable[[str], str | None]
"""Clip name → key that its rows are found by; None for a name that is none."""

MISSING_CHOICES = ("error", "skip")
"""Values of `--missing-features`."""

_RAVDESS_NAME = re.compile(r"0[123]((-\d\d){6})")
_NAMED = 20


@dataclass(frozen=True)
class FeatureTable:
    """Features by clip.

    Attributes:
        names: (F,) columns.
        rows: Key of a clip → (F,) values; (S, F) of a table with one row a frame.
        left_out: Key → what of it was left out, because it lacks a value.
    """

    names: tuple[str, ...]
    rows: dict[str, NDArray[np.float32]]
    left_out: dict[str, str] = field(default_factory=dict)

    def find(self, clip: str) -> NDArray[np.float32] | None:
        """A clip's features; RAVDESS's sound, picture and both are one clip under three names."""
        if clip in self.rows:
            return self.rows[clip]
        match = _RAVDESS_NAME.fullmatch(clip)
        names = (f"0{modality}{match[1]}" for modality in (1, 2, 3)) if match else ()
        return next((self.rows[name] for name in names if name in self.rows), None)

    def without_partner(self, clip_of: Mapping[str, str]) -> list[Skipped]:
        """Rows of no clip, clips without a row, and what was left out, as a loader reports them.

        Args:
            clip_of: Key → the clip's name, of every clip of the corpus.
        """
        strangers = sorted(set(self.rows) - set(clip_of))
        told = [Skipped(f"features row {key}", "no clip of that name") for key in strangers]
        for key, clip in clip_of.items():
            if key in self.left_out:
                told.append(Skipped(clip, self.left_out[key]))
            elif key not in self.rows:
                told.append(Skipped(clip, "no row in the features table (kept without features)"))
        return told


def clip_means(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(F,) as it is; (S, F) → (F,), the mean over the frames."""
    if features.ndim == 1:
        return features
    return np.asarray(features.mean(axis=0, dtype=np.float64), np.float32)


@dataclass
class Rows:
    """The rows of a file, R of them, before they are sorted by clip.

    Attributes:
        names: (F,) of the features.
        clips: The clips' names, each once.
        codes: (R,) position in `clips` of each row's.
        values: (R, F); NaN where a value is missing.
        frames: (R,) what orders the rows of a clip; None for one row a clip.
        numbers: (R,) of the rows in the file; None where they are not known.
        bad: Number of a row → what is wrong with it; such a row is not among the R.
        one_is_whole: Where every clip has one row, it is the whole clip's, and no frame's.
    """

    names: tuple[str, ...]
    clips: list[str]
    codes: NDArray[np.int64]
    values: NDArray[np.float32]
    frames: NDArray[np.float64] | None = None
    numbers: NDArray[np.int64] | None = None
    bad: dict[int, str] = field(default_factory=dict)
    one_is_whole: bool = False

    def __post_init__(self) -> None:
        """OpenSMILE's functionals come with a time, as its frames do."""
        if self.one_is_whole and len(self.codes) == len(self.clips):
            self.frames = None

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(R,) whether every value of a row is there."""
        return np.asarray(np.isfinite(self.values).all(axis=1))


def join(
    path: Path, rows: Rows, key_of: KeyOf, missing: str, again: Callable[[], Rows]
) -> FeatureTable:
    """Sorts rows by clip, and by frame; see `check_rows`."""
    check_rows(path, rows, key_of, missing, again)
    return _by_clip(rows, [key_of(clip) for clip in rows.clips])


def check_rows(
    path: Path, rows: Rows, key_of: KeyOf, missing: str, again: Callable[[], Rows]
) -> None:
    """Refuses rows of no clip, of one a second time, and (unless they are skipped) without a value.

    Args:
        path: Named in errors.
        rows: Of the file.
        key_of: See there.
        missing: `error`, or `skip` to leave out rows that lack a value.
        again: Reads the rows with their numbers, where `rows` has none and some are wrong.

    Raises:
        DataError: Names the rows that are wrong.
    """
    wrong = _wrong_rows(rows, key_of, missing)
    if not (rows.bad or wrong):
        return
    if rows.numbers is None:
        rows = again()
        wrong = _wrong_rows(rows, key_of, missing)
    assert rows.numbers is not None
    numbered = {int(rows.numbers[row]): why for row, why in wrong.items()}
    raise bad_rows(path, {**numbered, **rows.bad})


def bad_rows(path: Path, problems: Mapping[int, str]) -> DataError:
    """One line that names the first rows, and says how to leave out those that lack a value."""
    # On one line, whatever a quoted value holds.
    listed = [f"row {number} ({' '.join(problems[number].split())})" for number in sorted(problems)]
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return DataError(
        f"'{path}' has {len(listed)} bad rows: {', '.join(listed[:_NAMED])}{more}."
        + (SKIP_HINT if any(LACKS in problem for problem in problems.values()) else "")
    )


LACKS = "lacks a finite value"
SKIP_HINT = " (datasets.prepare --missing-features skip leaves out what lacks one.)"


def _wrong_rows(rows: Rows, key_of: KeyOf, missing: str) -> dict[int, str]:
    """Row → what is wrong with it."""
    keys = [key_of(clip) for clip in rows.clips]
    wrong: dict[int, str] = {}
    if missing == "error":
        for row in np.flatnonzero(~rows.finite):
            column = rows.names[int(np.flatnonzero(~np.isfinite(rows.values[row]))[0])]
            wrong[int(row)] = f"'{column}' {LACKS}"
    first: dict[str, int] = {}
    problems: dict[int, str] = {}
    for code, (clip, key) in enumerate(zip(rows.clips, keys, strict=True)):
        if not clip:
            problems[code] = "no clip's name"
        elif key is None:
            problems[code] = f"clip '{clip}'"
        elif first.setdefault(key, code) != code:
            problems[code] = f"clip '{clip}' a second time"
    if problems:
        for row in np.flatnonzero(np.isin(rows.codes, list(problems))):
            wrong[int(row)] = problems[int(rows.codes[row])]
    return wrong | _repeated(rows)


def _repeated(rows: Rows) -> dict[int, str]:
    """Rows of a clip, or of a frame of it, that was there before."""
    order = np.arange(len(rows.codes))
    if rows.frames is None:
        order = np.argsort(rows.codes, kind="stable")
        again = rows.codes[order][1:] == rows.codes[order][:-1]
        return {
            int(row): f"clip '{rows.clips[rows.codes[row]]}' a second time"
            for row in order[1:][again]
        }
    order = np.lexsort((order, rows.frames, rows.codes))
    codes, frames = rows.codes[order], rows.frames[order]
    again = (codes[1:] == codes[:-1]) & (frames[1:] == frames[:-1])
    wrong = {
        int(
            row
        ): f"frame {rows.frames[row]:g} of clip '{rows.clips[rows.codes[row]]}' a second time"
        for row in order[1:][again]
    }
    lost = np.flatnonzero(~np.isfinite(rows.frames))
    return wrong | {int(row): "the frame's number is not finite" for row in lost}


def _by_clip(rows: Rows, keys: Sequence[str | None]) -> FeatureTable:
    """The rows, none of them wrong; those that lack a value are left out."""
    times = rows.frames if rows.frames is not None else np.zeros(len(rows.codes))
    order = np.lexsort((times, rows.codes))  # of equal ones, the file's order
    ends = np.cumsum(np.bincount(rows.codes, minlength=len(rows.clips)))
    finite, table = rows.finite, FeatureTable(rows.names, {})
    for key, part in zip(keys, np.split(order, ends[:-1]), strict=True):
        assert key is not None
        kept = part[finite[part]]
        if len(kept) < len(part):
            table.left_out[key] = left_out_reason(len(part), len(kept))
        if len(kept):
            table.rows[key] = rows.values[kept[0]] if rows.frames is None else rows.values[kept]
    return table


def left_out_reason(frames: int, kept: int) -> str:
    """Return the reason for leaving out a clip whose rows lack values, some of them or all."""
    if kept:
        return (
            f"{frames - kept} of {frames} frames of its features lack a value (those are left out)"
        )
    return "its features lack a value (kept without features)"


def from_arrays(
    path: Path,
    arrays: Iterable[tuple[str, str, NDArray[np.float32]]],
    key_of: KeyOf,
    missing: str,
    names: tuple[str, ...] | None = None,
) -> FeatureTable:
    """A table of arrays, (F,) or (S, F), one a clip.

    Args:
        path: The file or folder that they are of, named in errors.
        arrays: Clip, what its array is called in errors, and the array; NaN where a value is missing.
        key_of: See there.
        missing: `error`, or `skip` to leave out frames and clips that lack a value.
        names: (F,); by default feature_0 and so on.

    Raises:
        DataError: Names the first array that is of no clip or of one a second time, has another number
            of features, or lacks a value.
    """
    rows: dict[str, NDArray[np.float32]] = {}
    left_out: dict[str, str] = {}
    first = ""
    for clip, called, values in arrays:
        key = key_of(clip)
        if key is None:
            raise DataError(
                f"'{path}': {called} is named after no clip of this corpus (--features)."
            )
        if key in rows or key in left_out:
            raise DataError(f"'{path}': {called} is of clip '{clip}' a second time (--features).")
        if names is None:
            names = tuple(f"feature_{number}" for number in range(values.shape[-1]))
        first = first or called
        if values.shape[-1] != len(names):
            raise DataError(
                f"'{path}': {called} has {values.shape[-1]} features, {first} {len(names)} (--features)."
            )
        whole = np.atleast_2d(values)
        finite = np.isfinite(whole).all(axis=1)
        if not finite.all():
            if missing == "error":
                row = int(np.flatnonzero(~finite)[0]) + 1
                raise DataError(f"'{path}': {called}, row {row} {LACKS} (--features).{SKIP_HINT}")
            left_out[key] = left_out_reason(len(whole), int(finite.sum()))
        if finite.any():
            rows[key] = values if values.ndim == 1 else values[finite]
    if not rows or names is None:
        raise DataError(f"'{path}' holds no features, or no face was found (--features).")
    return FeatureTable(names, rows, left_out)
