"""Predict arousal and valence along a recording of any length."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.media.containers import MediaError
from datasets.media.windows import Window, Windows, read_windows
from datasets.targets import join_windows
from ensembles import EnsembleError
from ensembles.inference.predictor import Clip, Predictor, collate
from ensembles.metrics import Array

_BATCH_SECONDS = 60.0
_NO_FEATURES = "features of every frame are not read along a recording"
_OVERLAP = 2
"""Windows that say something of each step."""


@dataclass(frozen=True)
class Trace:
    """Predicted trace of a recording.

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
        hold=True,
    )
    starts: list[int] = []
    said: dict[str, list[Array]] = {}
    length = 0
    fused, notes = None, {}
    size = max(1, int(_BATCH_SECONDS / seconds))
    while some := list(islice(windows, size)):
        clips = [_clip(window, str(path), artifact.all_inputs) for window in some]
        if fused is None:
            fused, notes = artifact.ensemble_for(clips[0].inputs), dict(clips[0].lacking)
            said = {name: [] for name in fused.experts}
        batch = collate(clips)
        counts = [max(1, round((window.end - window.start) / step)) for window in some]
        batch["trace_lengths"] = torch.tensor(counts)
        starts += [round(window.start / step) for window in some]
        length = starts[-1] + counts[-1]
        for name, windows_of in said.items():
            by_clip = predictor.said_by(name, batch)
            windows_of += [values[:n] for values, n in zip(by_clip, counts, strict=True)]
    if fused is None:
        raise EnsembleError("has nothing to predict")
    values = fused.apply(
        {
            name: join_windows(starts, each, length, artifact.members[name].label_delay)
            for name, each in said.items()
        }
    )
    if artifact.processing and fused.experts == artifact.fused.experts:
        values = artifact.processing.apply(values, [(0, length)])
    return Trace(
        str(path),
        np.asarray((np.arange(length) + 1) * step, np.float64),
        values,
        fused.experts,
        tuple(f"no {kind}: {why}" for kind, why in notes.items()),
    )


def _clip(window: Window, name: str, read: frozenset[str]) -> Clip:
    """A window as networks take it; silence says something too."""
    lacking = dict(window.lacking)
    lacking.update(dict.fromkeys(sorted({"features", "feature_sequence"} & read), _NO_FEATURES))
    arrays: dict[str, NDArray[np.generic]] = {}
    if window.audio is not None:
        arrays["audio"] = window.audio.astype(np.float32) / 32768.0
    if window.video is not None:
        arrays["video"] = window.video
    return Clip(name, arrays, lacking)
