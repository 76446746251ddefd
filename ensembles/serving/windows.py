"""A clip cut into windows, for its probabilities over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensembles.artifact import Artifact
from ensembles.predictor import Clip

PICTURES = "pictures"
"""Array of the decoder: frames of the whole clip, at `picture_rate_hz`."""

_MOST = 120
"""Windows of a clip; a longer one is looked at in larger steps."""
_SILENCE = 10 ** (-60 / 20)
"""As for whole files."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upload, decoded.

    Attributes:
        clip: The whole, as `Predictor.load` gives it.
        pictures: (N, H, W, 3) uint8 over the whole, or None.
        seconds: How long it lasts; 0 if that is not known.
    """

    clip: Clip
    pictures: NDArray[np.generic] | None
    seconds: float


@dataclass(frozen=True)
class Window:
    """A part of a clip, from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    clip: Clip


def picture_rate_hz(artifact: Artifact, window_seconds: float) -> float:
    """Pictures a second of which a window has as many as the networks take."""
    return artifact.frames / window_seconds


def cut_windows(
    decoded: Decoded, artifact: Artifact, *, window_seconds: float, hop_seconds: float
) -> list[Window]:
    """Windows of like length, the last one ending with the clip.

    Args:
        decoded: The clip.
        artifact: Its rate and number of frames.
        window_seconds: Their length; a clip that is no longer has no windows.
        hop_seconds: From one to the next; more, where that would be too many.
    """
    starts = window_starts(decoded.seconds, window_seconds, hop_seconds)
    return [
        Window(
            start,
            start + window_seconds,
            Clip(decoded.clip.name, *_cut(decoded, artifact, start, window_seconds)),
        )
        for start in starts
    ]


def window_starts(seconds: float, window_seconds: float, hop_seconds: float) -> list[float]:
    """Seconds at which windows begin; evenly spread, the last one ends at `seconds`."""
    last = seconds - window_seconds
    if last <= 0:
        return []
    steps = min(int(np.ceil(last / hop_seconds)), _MOST - 1)
    return [float(start) for start in np.linspace(0.0, last, steps + 1)]


def _cut(
    decoded: Decoded, artifact: Artifact, start_s: float, seconds: float
) -> tuple[dict[str, NDArray[np.generic]], Mapping[str, str]]:
    """What a window has of the clip's inputs, and why it lacks the others."""
    arrays: dict[str, NDArray[np.generic]] = {}
    lacking = dict(decoded.clip.lacking)
    if (waveform := decoded.clip.arrays.get("audio")) is not None:
        rate_hz = artifact.sample_rate_hz
        first = round(start_s * rate_hz)
        part = waveform[first : first + round(seconds * rate_hz)]
        if np.abs(part).max(initial=0.0) < _SILENCE:
            lacking["audio"] = "is silent"
        else:
            arrays["audio"] = part
    if (pictures := decoded.pictures) is not None:
        count = artifact.frames
        first = round(start_s * picture_rate_hz(artifact, seconds))
        first = max(min(first, len(pictures) - count), 0)
        arrays["video"] = pictures[first : first + count]
    return arrays, lacking
