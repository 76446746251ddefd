"""Clip records, and the clips left out: the result of every corpus loader."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "dev", "test")
"""Values of a manifest's attribute `split`."""


class DataError(ValueError):
    """A corpus, shard or manifest that cannot be used as it is; the text names the culprit."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part of a longer file that a clip is.

    Attributes:
        start_s: Seconds from the file's beginning.
        end_s: As `start_s`.
        half: Of the picture, where two people share it: left or right; None for all of it.
    """

    start_s: float
    end_s: float
    half: Literal["left", "right"] | None = None

    def __post_init__(self) -> None:
        """A part has a length."""
        if not 0 <= self.start_s < self.end_s < float("inf"):
            raise DataError(f"A part of a file cannot go from {self.start_s} to {self.end_s} s.")


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """One utterance, before decoding.

    Attributes:
        clip: Its name, unique in the corpus.
        speaker: Who speaks; folds are disjoint in this.
        label: The emotion's name.
        audio: A file with sound, or None.
        video: A file with pictures, or None (may be the same file as `audio`).
        audio_part: What of `audio` the clip is; None for all of it.
        video_part: What of `video` the clip is; None for all of it.
        saliency: A video file with a saliency map for every moment of `video`, or None.
        features: (F,) clip-level features such as mean action units, (S, F) features of every
            frame, or None.
        attributes: Whatever else the corpus says of the clip (gender, intensity, sentence).
        trace: (S, D) what raters said at every step (arousal and valence every 40 ms), or None.
        recording: Of which a clip with a trace is a window.
        first_step: Where in the recording it begins.
        votes: Label → share of its raters, where several gave one; `label` has most.
    """

    clip: str
    speaker: str
    label: str
    audio: Path | None = None
    video: Path | None = None
    audio_part: Part | None = None
    video_part: Part | None = None
    saliency: Path | None = None
    features: NDArray[np.float32] | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    trace: NDArray[np.float32] | None = None
    recording: str = ""
    first_step: int = 0
    votes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A clip that is not in the corpus, and why."""

    clip: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A named collection of clips.

    Attributes:
        name: The corpus's name; protocols are looked up by it.
        labels: The class names, in the order of the class indices; empty where clips have traces
            and no class.
        clips: The records, in a fixed order.
        feature_names: (F,) names of the features, empty without any.
        skipped: What the loader left out.
        dimensions: (D,) names of what traces tell, empty without any.
        step_seconds: From one step of a trace to the next.
    """

    name: str
    labels: tuple[str, ...]
    clips: tuple[ClipRecord, ...]
    feature_names: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    dimensions: tuple[str, ...] = ()
    step_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Checks what every later step relies on."""
        if not self.clips:
            reasons = "; ".join(f"{s.clip}: {s.reason}" for s in self.skipped[:3])
            raise DataError(
                f"No usable clip in corpus '{self.name}'."
                + (f" First skipped: {reasons}" if reasons else "")
            )
        seen: set[str] = set()
        for record in self.clips:
            if record.clip in seen:
                raise DataError(f"Clip name '{record.clip}' occurs twice in corpus '{self.name}'.")
            seen.add(record.clip)
            if self.labels and record.label not in self.labels:
                raise DataError(
                    f"Clip '{record.clip}' has the label '{record.label}'. Known: {', '.join(self.labels)}."
                )
        self._check_features()
        self._check_saliency()
        self._check_traces()

    @property
    def saliency_maps(self) -> bool:
        """Whether pictures come with saliency maps."""
        return any(record.saliency is not None for record in self.clips)

    def _check_features(self) -> None:
        """One row a clip, or one a frame: not both in one corpus."""
        kinds = {r.features.ndim: r.clip for r in self.clips if r.features is not None}
        if len(kinds) > 1:
            raise DataError(
                f"All clips of a corpus have one row of features, or all have a row a frame: clip "
                f"'{kinds[1]}' has one row, clip '{kinds[2]}' one a frame."
            )

    def _check_traces(self) -> None:
        """All clips have a trace of all dimensions, or none has."""
        for record in self.clips:
            shape = (0, 0) if record.trace is None else record.trace.shape
            if (shape[0] > 0, shape[1]) != (bool(self.dimensions), len(self.dimensions)):
                raise DataError(
                    f"Clip '{record.clip}' has a trace of {shape[1]} dimensions, the corpus has "
                    f"{len(self.dimensions)}."
                )

    def _check_saliency(self) -> None:
        """All clips with pictures have maps, or none has."""
        if not self.saliency_maps:
            return
        blind = [r.clip for r in self.clips if r.saliency is not None and r.video is None]
        if blind:
            raise DataError(f"Clip '{blind[0]}' has a saliency map, but no video that it is of.")
        lacking = [r.clip for r in self.clips if r.video is not None and r.saliency is None]
        if lacking:
            raise DataError(
                f"Every clip with video needs a saliency map, or none: {len(lacking)} lack one: "
                f"{', '.join(lacking[:5])}."
            )
