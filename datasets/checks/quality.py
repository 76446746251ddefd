"""Suspicious clips: silence, clipping, frozen or black video, lengths, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.sharding.index import ClipEntry, ShardIndex
from datasets.sharding.stream import Sample

_SILENT_PEAK = 33  # of 32768: -60 dB
_CLIPPED_SAMPLES = 8
_STILL = 0.6
"""Mean over a frame, of 255. One still picture in H.264 and MPEG moves by 0.01 to 0.53, the calmest of
eight real talking faces (RAVDESS, GRID, CREMA-D) by 2.7 from its first frame."""
_BLACK = 8.0
_DRIFT_SECONDS, _DRIFT_SHARE = 0.2, 0.05
_FAR_OUT = 3.0
"""Tukey's far-out values: so many interquartile ranges beyond the quartiles, of the logarithm."""


@dataclass
class Suspects:
    """Names of clips whose content is suspicious.

    Attributes:
        silent: Peak below -60 dB.
        clipped: Several samples at full scale.
        frozen: Frames that never change.
        black: Frames that are all black.
    """

    silent: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    black: list[str] = field(default_factory=list)

    def look_at(self, sample: Sample) -> None:
        """A decoded clip."""
        clip = sample["clip"]
        if "audio" in sample:
            loudness = abs(sample["audio"].astype("int32"))
            if int(loudness.max(initial=0)) < _SILENT_PEAK:
                self.silent.append(clip)
            if int((loudness >= 32767).sum()) > _CLIPPED_SAMPLES:
                self.clipped.append(clip)
        if "video" in sample:
            if is_black(sample["video"]):
                self.black.append(clip)
            elif is_frozen(sample["video"]):
                self.frozen.append(clip)


def is_black(frames: NDArray[np.uint8]) -> bool:
    """Whether (V, H, W, 3 or 4) frames are all black; saliency maps do not count."""
    return bool(frames[..., :3].mean(axis=(1, 2, 3)).max() < _BLACK)


def is_frozen(frames: NDArray[np.uint8]) -> bool:
    """Whether (V, H, W, 3 or 4) frames show one picture; of one frame alone nobody can say."""
    if len(frames) < 2:
        return False
    first = frames[0, ..., :3].astype(np.int16)
    return all(abs(frame[..., :3] - first).mean() < _STILL for frame in frames[1:])


def durations(index: ShardIndex) -> dict[str, Any]:
    """`audio` and `video`: shortest, median and longest clip in seconds, their sum, and `outliers`."""
    seconds = {
        "audio": {e.clip: e.samples / index.sample_rate_hz for e in index.clips if e.samples},
        "video": {e.clip: e.video_seconds for e in index.clips if e.video_seconds},
    }
    return {kind: _spread(of_clip) for kind, of_clip in seconds.items() if of_clip}


def _spread(seconds: Mapping[str, float]) -> dict[str, Any]:
    values = np.asarray(list(seconds.values()))
    logs = np.log(np.maximum(values, 1e-3))
    low, high = np.quantile(logs, (0.25, 0.75))
    reach = _FAR_OUT * max(high - low, np.log(1.1))  # clips of all the same length are no reason
    far = np.flatnonzero((logs < low - reach) | (logs > high + reach))
    names = list(seconds)
    return {
        "min": round(float(values.min()), 3),
        "median": round(float(np.median(values)), 3),
        "max": round(float(values.max()), 3),
        "sum": round(float(values.sum()), 1),
        "outliers": {names[n]: round(float(values[n]), 3) for n in far[np.argsort(-values[far])]},
    }


def drifting(index: ShardIndex) -> dict[str, dict[str, float]]:
    """Clip → seconds of `audio` and `video`, where they differ by more than 0.2 s and 5 %; worst first."""
    found: dict[str, dict[str, float]] = {}
    for entry in index.clips:
        if not (entry.samples and entry.video_seconds):
            continue
        seconds = entry.samples / index.sample_rate_hz
        apart = abs(seconds - entry.video_seconds)
        if apart > max(_DRIFT_SECONDS, _DRIFT_SHARE * max(seconds, entry.video_seconds)):
            found[entry.clip] = {"audio": round(seconds, 3), "video": entry.video_seconds}
    return dict(sorted(found.items(), key=lambda item: -abs(item[1]["audio"] - item[1]["video"])))


def source_rates(clips: Sequence[ClipEntry]) -> dict[int, int]:
    """Sample rate of the sources in Hz → clips; those of older shards are not known."""
    rates, counts = np.unique(
        [e.source_rate_hz for e in clips if e.source_rate_hz], return_counts=True
    )
    return {int(rate): int(count) for rate, count in zip(rates, counts, strict=True)}
