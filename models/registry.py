"""The one list of architectures. Adding one: one file, `@register(...)`, one import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from models.base import BackboneEncoder, Encoder, Fusion

Modality = Literal["audio", "video", "early"]
Answers = Literal["classes", "values", "traces"]
Settings = Mapping[str, Any]


class ModelError(ValueError):
    """An unknown architecture, or a setting that it cannot take."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Shape of a corpus's clips; the fixed part of every network's shape.

    Attributes:
        num_classes: K; of values and traces, how many there are.
        sample_rate_hz: Of the waveform; 0 without audio.
        seconds: A typical clip's length, for cost estimates.
        frames: V, video frames of a typical clip; 0 without video.
        frame_size: (H, W) in pixels.
        num_features: F, features of a clip; 0 without any.
        feature_steps: S of a typical clip where features come frame by frame; 0 where there
            are only means.
        saliency_maps: Whether frames have a fourth channel, a precomputed saliency map.
        answers: What a network says of a clip: `classes`, their logits; `values`, K numbers such as
            its valence; `traces`, K numbers at every step.
        trace_steps: S of a typical clip's trace.
    """

    num_classes: int
    sample_rate_hz: int = 0
    seconds: float = 3.0
    frames: int = 0
    frame_size: tuple[int, int] = (60, 100)
    num_features: int = 0
    feature_steps: int = 0
    saliency_maps: bool = False
    answers: Answers = "classes"
    trace_steps: int = 0

    def has(self, kind: str) -> bool:
        """Whether clips have `audio`, `video`, `features` or a `feature_sequence`."""
        size = {
            "audio": self.sample_rate_hz,
            "video": self.frames,
            "features": self.num_features,
            "feature_sequence": self.num_features * self.feature_steps,
        }
        return bool(size[kind])


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights that an architecture can start from.

    Attributes:
        files: Names under the weights' folder, the original's first; a name without suffix
            is a folder in the Hugging Face layout (`config.json` and safetensors).
        source: Where people get it, for the lists.
        settings: Constructor settings that these weights need.
        read: Folder or file → settings that depend on its content (a `config.json`).
    """

    files: tuple[str, ...]
    source: str
    settings: Settings
    read: Callable[[Path], Settings] | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A registered architecture.

    Attributes:
        name: Its name in the search space and on the command line.
        modality: Which expert it makes; early fusion is both.
        inputs: What it reads of a clip: audio, video, features. Early fusion reads what
            its parts read.
        build: (shape, **settings) → Encoder; of early fusion, (encoders, **settings) → Fusion.
        default: Known-good settings, which every search tries first.
        training: Known-good training settings that differ from the trainer's own.
        cost: (settings, shape) → multiply-accumulates of one clip's forward pass.
        convolutional: Whether convolutions dominate, so that bfloat16 and channels-last pay.
        paper: Authors and year, for lists.
        checkpoints: Pretrained weights that its backbone can start from; not empty for every
            encoder that has a backbone.
        from_scratch: Whether it is worth training from random weights, unasked.
        costly_front_end: Whether its front end takes many times as long as its network. The search
            then leaves waveforms as they were recorded, so that its output stays cached.
    """

    name: str
    modality: Modality
    inputs: tuple[str, ...]
    build: Callable[..., Encoder | Fusion]
    default: Settings
    training: Settings
    cost: Callable[[Settings, ClipShape], float]
    convolutional: bool
    paper: str
    checkpoints: tuple[Checkpoint, ...]
    from_scratch: bool
    costly_front_end: bool

    @property
    def further_settings(self) -> tuple[str, ...]:
        """Settings beside the constructor's, which `build_encoder` carries out."""
        if self.modality == "early":
            return ("audio", "video", "modality_dropout")
        transfer = ("transfer", "checkpoint") if self.checkpoints else ()
        return transfer + (("noise_removal",) if "audio" in self.inputs else ())

    @property
    def over_time(self) -> bool:
        """Whether it can say something at every step: early fusion can, if its parts can.

        Not what has one vector for a whole clip, nor what reads a part of a clip of its own choice.
        """
        if self.modality == "early":
            return True
        assert isinstance(self.build, type) and issubclass(self.build, Encoder)
        own = self.build.steps not in (Encoder.steps, BackboneEncoder.steps)
        of_head = issubclass(self.build, BackboneEncoder) and (
            self.build.head_steps is not BackboneEncoder.head_steps
        )
        return (own or of_head) and "crop_seconds" not in self.arguments

    @property
    def arguments(self) -> tuple[str, ...]:
        """Settings that its constructor takes."""
        parameters = inspect.signature(self.build).parameters
        return tuple(name for name in parameters if name not in ("shape", "encoders"))

    def check(self, settings: Settings) -> None:
        """Raises ModelError on a setting that the constructor does not take."""
        known = [*self.arguments, *self.further_settings]
        for key in settings:
            if key not in known:
                raise ModelError(
                    f"Unknown setting '{key}' of '{self.name}'. Known: {', '.join(known)}."
                )


_ARCHITECTURES: dict[str, Architecture] = {}
Builder = TypeVar("Builder", bound=Callable[..., Any])


def register(
    name: str,
    *,
    modality: Modality,
    inputs: tuple[str, ...],
    cost: Callable[[Settings, ClipShape], float],
    default: Settings | None = None,
    training: Settings | None = None,
    convolutional: bool = False,
    paper: str = "",
    checkpoints: tuple[Checkpoint, ...] = (),
    from_scratch: bool = True,
    costly_front_end: bool = False,
) -> Callable[[Builder], Builder]:
    """Class decorator: makes an encoder available to the search under a name."""

    def add(build: Builder) -> Builder:
        assert name not in _ARCHITECTURES, f"architecture '{name}' is registered twice"
        _ARCHITECTURES[name] = Architecture(
            name=name,
            modality=modality,
            inputs=inputs,
            build=build,
            default=default or {},
            training=training or {},
            cost=cost,
            convolutional=convolutional,
            paper=paper,
            checkpoints=checkpoints,
            from_scratch=from_scratch,
            costly_front_end=costly_front_end,
        )
        return build

    return add


def get_architecture(name: str) -> Architecture:
    """Looks an architecture up; raises ModelError with the known names."""
    if name not in _ARCHITECTURES:
        raise ModelError(f"Unknown architecture '{name}'. Known: {', '.join(_ARCHITECTURES)}.")
    return _ARCHITECTURES[name]


def architectures(modality: Modality | None = None) -> list[Architecture]:
    """Every architecture, or those of one modality, in the order of registration."""
    return [a for a in _ARCHITECTURES.values() if modality in (None, a.modality)]
