"""Ratings of arousal and valence, recording by recording: the target of a search over traces.

Also numbers that were given to whole clips, such as IEMOCAP's valence, activation and dominance:
they are traces of one step, and a speaker's clips are one recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.sharding.clip_cache import ClipCache
from datasets.sharding.index import ShardIndex


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Every recording's trace, one behind the other, and where each clip lies in them.

    Attributes:
        dimensions: (D,) names.
        step_seconds: From one step to the next; 0 where each clip has one value.
        recordings: (R,) names.
        speakers: (R,) who speaks in each.
        offsets: (R + 1,) where each recording begins, and the end of the last.
        gold: (S, D) what raters said; NaN at steps that no clip covers.
        first: (N,) each clip's first step.
        steps: (N,) how many steps it has.
        recording_of: (N,) which recording it is of.
    """

    dimensions: tuple[str, ...]
    step_seconds: float
    recordings: tuple[str, ...]
    speakers: tuple[str, ...]
    offsets: NDArray[np.int64]
    gold: NDArray[np.float32]
    first: NDArray[np.int64]
    steps: NDArray[np.int64]
    recording_of: NDArray[np.int64]

    @property
    def over_time(self) -> bool:
        """Whether clips have more than one step."""
        return self.step_seconds > 0

    def targets(
        self, rows: NDArray[np.int64], delay: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the targets of some clips.

        Args:
            rows: Clips.
            delay: Raters react late: at a clip's step i they spoke of what was `delay` steps before.

        Returns:
            (B, S, D), and (B, S) where there is something to learn: within the clip, within the
            recording, and rated.
        """
        step = np.arange(int(self.steps[rows].max()))[None]
        place = self.first[rows][:, None] + step + delay
        end = self.offsets[self.recording_of[rows] + 1][:, None]
        known = (step < self.steps[rows][:, None]) & (place < end)
        values = self.gold[np.minimum(place, end - 1)]
        known &= np.isfinite(values).all(axis=2)
        return np.where(known[:, :, None], values, np.float32(0.0)), known

    def join(
        self, rows: NDArray[np.int64], predicted: Sequence[NDArray[np.float32]], delay: int = 0
    ) -> NDArray[np.float32]:
        """Join predictions of clips → (S, D) along the recordings, NaN where there is none.

        See `join_windows`; NaN along a recording of which nothing was said.

        Args:
            rows: (n,) clips.
            predicted: (s, D) of each.
            delay: As in `targets`.
        """
        joined = np.full(self.gold.shape, np.nan, np.float32)
        of = self.recording_of[rows]
        for recording in np.unique(of).tolist():
            begin, end = self.offsets[recording], self.offsets[recording + 1]
            mine = np.flatnonzero(of == recording)
            starts = (self.first[rows[mine]] - begin).tolist()
            each = [predicted[place] for place in mine.tolist()]
            joined[begin:end] = join_windows(starts, each, int(end - begin), delay)
        return joined


def join_windows(
    starts: Sequence[int], said: Sequence[NDArray[Any]], length: int, delay: int = 0
) -> NDArray[np.float64]:
    """Join predictions of a recording's windows, along it: in training and in prediction.

    Where windows overlap it is their mean; where none is, a straight line between their ends. With a delay
    all is told so much later, and a recording's first steps are what was said first.

    Args:
        starts: First step of each window.
        said: (s, D) of each.
        length: Steps of the recording.
        delay: In steps.

    Returns:
        (length, D).
    """
    total = np.zeros((length, said[0].shape[1]))
    times = np.zeros(length, np.int64)
    for start, values in zip(starts, said, strict=True):
        kept = values[: max(0, length - start - delay)]
        total[start + delay : start + delay + len(kept)] += kept
        times[start + delay : start + delay + len(kept)] += 1
    there = np.flatnonzero(times)
    if not len(there):  # later than the recording lasts: what was said first
        return np.repeat(np.asarray(said[0][:1], np.float64), length, axis=0)
    known = total[there] / times[there, None]
    steps = np.arange(length)
    return np.stack([np.interp(steps, there, column) for column in known.T], axis=1)


def traces_of(cache: ClipCache) -> Traces:
    """The traces of a corpus that has them, such as RECOLA."""
    index = cache.index
    assert index.dimensions, "the corpus has no traces"
    length: dict[str, int] = {}
    speaker: dict[str, str] = {}
    for entry in index.clips:
        end = entry.first_step + entry.trace_steps
        length[entry.recording] = max(length.get(entry.recording, 0), end)
        speaker[entry.recording] = entry.speaker
    names = tuple(length)
    offsets = np.concatenate([[0], np.cumsum([length[name] for name in names])]).astype(np.int64)
    number = {name: place for place, name in enumerate(names)}
    recording_of = np.asarray([number[entry.recording] for entry in index.clips], np.int64)
    first = offsets[recording_of] + np.asarray([e.first_step for e in index.clips], np.int64)
    steps = np.asarray([entry.trace_steps for entry in index.clips], np.int64)
    gold = np.full((int(offsets[-1]), len(index.dimensions)), np.nan, np.float32)
    for row in np.flatnonzero(~cache.missing).tolist():
        gold[first[row] : first[row] + steps[row]] = cache.trace(row)
    return Traces(
        dimensions=index.dimensions,
        step_seconds=index.step_seconds,
        recordings=names,
        speakers=tuple(speaker[name] for name in names),
        offsets=offsets,
        gold=gold,
        first=first,
        steps=steps,
        recording_of=recording_of,
    )


def values_of(index: ShardIndex, dimensions: tuple[str, ...]) -> Traces:
    """Numbers that a corpus gives to whole clips: attributes such as IEMOCAP's valence.

    Raises:
        DataError: A clip has no such number; names it.
    """
    order = sorted(range(len(index.clips)), key=lambda row: (index.clips[row].speaker, row))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    gold = np.empty((len(order), len(dimensions)), np.float32)
    for row, entry in enumerate(index.clips):
        for column, name in enumerate(dimensions):
            gold[place[row], column] = _value(entry.clip, entry.attributes, name)
    speakers = sorted({entry.speaker for entry in index.clips})
    number = {name: place for place, name in enumerate(speakers)}
    recording_of = np.asarray([number[entry.speaker] for entry in index.clips], np.int64)
    counts = np.bincount(recording_of, minlength=len(speakers))
    return Traces(
        dimensions=dimensions,
        step_seconds=0.0,
        recordings=tuple(speakers),
        speakers=tuple(speakers),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        gold=gold,
        first=place,
        steps=np.ones(len(order), np.int64),
        recording_of=recording_of,
    )


def _value(clip: str, attributes: dict[str, str], name: str) -> float:
    text = attributes.get(name)
    if text is None:
        raise DataError(
            f"Clip '{clip}' has no '{name}'. It has: {', '.join(sorted(attributes)) or 'nothing'} "
            "(--target)."
        )
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"Clip '{clip}' has '{name}' '{text}', which is no number (--target).")
    return value
