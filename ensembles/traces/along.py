"""What an exported ensemble of traces says along a recording of any length."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.media import MediaError
from datasets.windows import Window, Windows, read_windows
from ensembles import EnsembleError
from ensembles.metrics import Array
from ensembles.predictor import Clip, Predictor, collate

_BATCH_SECONDS = 60.0
_OVERLAP = 2
"""Windows that say something of each step."""


@dataclass(frozen=True)
class Trace:
    """What is said of a recording.

    Attributes:
        name: Its file.
        seconds: (S,) where each step ends, from the recording's beginning.
        values: (S, D).
        experts: Those that took part.
        notes: Inputs that were missing, and why.
    """

    name: str
    seconds: Array
    values: Array
    experts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def trace_of(predictor: Predictor, path: Path) -> Trace:
    """Predicts a recording, window by window; where windows overlap it is their mean.

    Each expert's trace is told as much later as its raters were taken to be late. Post-processing is of
    the whole ensemble; where an input is missing, what takes over is left as it is.

    Raises:
        MediaError: Nothing in it can be used, or it breaks off.
        EnsembleError: It lacks what the ensemble needs.
    """
    artifact = predictor.artifact
    assert artifact.answers == "traces", "this ensemble says nothing over time"
    if not path.is_file():
        raise MediaError("no such file")
    seconds, step = artifact.window_seconds, artifact.step_seconds
    windows = read_windows(
        path,
        Windows(seconds, seconds / _OVERLAP),
        sample_rate_hz=artifact.sample_rate_hz,
        frames=artifact.frames,
        frame_size=artifact.frame_size,
        rate_hz=artifact.frame_rate,
        faces=predictor.faces,
    )
    joined: dict[str, _Joined] = {}
    taken: tuple[str, ...] = ()
    fused, notes = None, {}
    size = max(1, int(_BATCH_SECONDS / seconds))
    while some := list(islice(windows, size)):
        clips = [_clip(window, str(path)) for window in some]
        if fused is None:
            fused = artifact.ensemble_for(clips[0].inputs)
            taken, notes = fused.experts, dict(clips[0].lacking)
            joined = {name: _Joined(artifact.members[name].label_delay) for name in taken}
        if not all(artifact.inputs_of(fused) <= clip.inputs for clip in clips):
            raise MediaError("has sound and pictures of different length")
        batch = collate(clips)
        counts = [max(1, round((window.end - window.start) / step)) for window in some]
        batch["trace_lengths"] = torch.tensor(counts)
        for name in taken:
            said = predictor.said_by(name, batch)
            for window, values, count in zip(some, said, counts, strict=True):
                joined[name].add(round(window.start / step), values[:count])
    if fused is None:
        raise EnsembleError("has nothing to predict")
    each = {name: one.trace() for name, one in joined.items()}
    length = min(map(len, each.values()))
    values = fused.apply({name: trace[:length] for name, trace in each.items()})
    if artifact.processing and fused.experts == artifact.fused.experts:
        values = artifact.processing.apply(values, [(0, length)])
    return Trace(
        str(path),
        np.asarray((np.arange(length) + 1) * step, np.float64),
        values,
        taken,
        tuple(f"no {kind}: {why}" for kind, why in notes.items()),
    )


class _Joined:
    """One expert's windows, laid over each other."""

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self._windows: list[tuple[int, Array]] = []

    def add(self, start: int, values: Array) -> None:
        """(s, D) from a step on."""
        self._windows.append((start, values))

    def trace(self) -> Array:
        """(S, D), delayed; the beginning holds what was said first."""
        length = max(start + len(values) for start, values in self._windows)
        total = np.zeros((length, self._windows[0][1].shape[1]))
        times = np.zeros((length, 1))
        for start, values in self._windows:
            total[start : start + len(values)] += values
            times[start : start + len(values)] += 1
        trace = total / np.maximum(times, 1)
        late = min(self.delay, length - 1)
        return np.concatenate([np.repeat(trace[:1], late, axis=0), trace[: length - late]])


def _clip(window: Window, name: str) -> Clip:
    """A window as networks take it; silence says something too."""
    arrays: dict[str, NDArray[np.generic]] = {}
    if window.audio is not None:
        arrays["audio"] = window.audio.astype(np.float32) / 32768.0
    if window.video is not None:
        arrays["video"] = window.video
    return Clip(name, arrays, dict(window.lacking))
