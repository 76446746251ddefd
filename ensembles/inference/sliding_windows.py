"""Predictions of an exported ensemble along a recording of any length, window by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.media.audio import as_waveform
from datasets.media.containers import MediaError
from datasets.media.windows import Window, Windows, read_windows
from ensembles.inference.predictor import Answer, Clip, Predictor

_BATCH_SECONDS = 60.0
_NO_FEATURES = "features are of whole clips, not of windows"
_NO_MAPS = "new clips come without a saliency map"


@dataclass(frozen=True)
class Moment:
    """The answer to one window.

    Attributes:
        start: In seconds from the recording's beginning.
        end: As `start`.
        answer: As of a clip: fused and calibrated for the inputs that the window has.
        silent: Whether its sound is silent; then what there is of an answer is by pictures.
    """

    start: float
    end: float
    answer: Answer
    silent: bool

    @property
    def reason(self) -> str | None:
        """Why there is no answer: silence, which is no error, or another."""
        return "is silent" if self.silent and self.answer.error else self.answer.error


def timeline(
    predictor: Predictor,
    path: Path,
    window_seconds: float,
    hop_seconds: float | None = None,
    *,
    fold: int | None = None,
) -> Iterator[Moment]:
    """Predicts overlapping windows of a recording, each like a clip, in order, a few at a time.

    Args:
        predictor: The ensemble.
        path: A sound or video file, also one longer than a clip may be.
        window_seconds: Of each window. The last one ends with the recording.
        hop_seconds: From a window's start to the next one's; a third of the window without.
        fold: Predict as this cross-validation fold's networks and fusion did.

    Raises:
        DataError: Windows that cannot be, or are too long to be cropped to a face.
        EnsembleError: No such fold.
        MediaError: If nothing in it can be used, or it breaks off.
    """
    windows = Windows(window_seconds, window_seconds / 3 if hop_seconds is None else hop_seconds)
    artifact = predictor.artifact
    artifact.check_fold(fold)
    if not path.is_file():
        raise MediaError("no such file")
    cut = read_windows(
        path,
        windows,
        sample_rate_hz=artifact.sample_rate_hz,
        frames=artifact.frames,
        frame_size=artifact.frame_size,
        rate_hz=artifact.frame_rate,
        faces=predictor.faces,
    )
    size = max(1, min(16, int(_BATCH_SECONDS / windows.seconds)))
    while some := list(islice(cut, size)):
        clips = [clip_of(window, str(path), artifact.all_inputs) for window in some]
        for window, clip, answer in zip(
            some, clips, predictor.clips(clips, fold=fold), strict=True
        ):
            silent = clip.lacking.get("audio") == "is silent"
            yield Moment(window.start, window.end, answer, silent)


def clip_of(window: Window, name: str, read: frozenset[str]) -> Clip:
    """A window as networks take it.

    Args:
        window: A part of a recording.
        name: What the clip is called.
        read: Inputs that the ensemble reads.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    lacking = dict(window.lacking)
    if window.audio is not None:
        try:
            arrays["audio"] = as_waveform(window.audio)
        except MediaError as error:
            lacking["audio"] = str(error)
    if window.video is not None:
        arrays["video"] = window.video
        if "saliency" in read:
            lacking["saliency"] = _NO_MAPS
    lacking.update(dict.fromkeys(sorted({"features", "feature_sequence"} & read), _NO_FEATURES))
    return Clip(name, arrays, lacking)
