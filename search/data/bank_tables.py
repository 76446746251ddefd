"""The rows of a run's bank: the clips, or steps, that are predicted, and who speaks in them."""

from __future__ import annotations

import numpy as np

from datasets.sharding.index import ShardIndex
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.trace_table import TraceTable
from search.data.training_data import TrainingData


def trace_table(data: TrainingData) -> TraceTable:
    """Return the rows of a bank over this corpus, split and regression target."""
    traces = data.traces
    assert traces is not None
    fold_of = np.full(len(traces.recordings), -1, np.int64)
    fold_of[traces.recording_of] = data.folds.fold_of_clip
    assert (fold_of[traces.recording_of] == data.folds.fold_of_clip).all(), (
        "a recording on two sides"
    )
    lengths = np.diff(traces.offsets)
    recording_of = np.repeat(np.arange(len(lengths)), lengths)
    return TraceTable(
        classes=traces.dimensions,
        step_seconds=traces.step_seconds,
        recordings=traces.recordings,
        recording_speakers=traces.speakers,
        recording_folds=fold_of,
        recording_of=recording_of,
        steps=np.arange(len(recording_of)) - traces.offsets[recording_of],
        labels=traces.gold.astype(np.float64),
        names=() if traces.over_time else _names_by_step(data),
    )


def _names_by_step(data: TrainingData) -> tuple[str, ...]:
    """Return each step's recording, for values."""
    assert data.traces is not None
    clips = data.cache.index.clips
    return tuple(clips[row].clip for row in np.argsort(data.traces.first))


def clip_table(data: TrainingData) -> ClipTable:
    """Return the rows of a bank over the clips of this corpus and split."""
    index = data.cache.index
    return ClipTable(
        clips=tuple(entry.clip for entry in index.clips),
        speakers=tuple(entry.speaker for entry in index.clips),
        folds=data.folds.fold_of_clip,
        labels=data.cache.targets,
        classes=index.labels,
    )


_KINDS = ("corpus", "gender", "sex", "age", "language", "accent", "session")
"""Attributes of speakers that a corpus may have, by which scores are told apart."""


def people(index: ShardIndex) -> dict[str, dict[str, str]]:
    """Attribute → speaker → value, of attributes that do not change from clip to clip."""
    found: dict[str, dict[str, set[str]]] = {}
    for entry in index.clips:
        for attribute in _KINDS:
            if value := entry.attributes.get(attribute):
                found.setdefault(attribute, {}).setdefault(entry.speaker, set()).add(value)
    return {
        attribute: {speaker: next(iter(values)) for speaker, values in by_speaker.items()}
        for attribute, by_speaker in found.items()
        if all(len(values) == 1 for values in by_speaker.values())
        and 1 < len(set.union(*by_speaker.values())) < len(by_speaker)
    }
