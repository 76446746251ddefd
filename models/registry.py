"""The one list of architectures. Adding one: one file, `@register(...)`, one import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from models.expert import Encoder

Modality = Literal["audio", "video", "early"]
Settings = Mapping[str, Any]


class ModelError(ValueError):
    """An unknown architecture, or a setting that it cannot take."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """What a corpus's clips look like; the fixed part of every network's shape.

    Attributes:
        num_classes: K.
        sample_rate_hz: Of the waveform; 0 without audio.
        seconds: A typical clip's length, for cost estimates.
        frames: V, video frames a clip; 0 without video.
        frame_size: (H, W) in pixels.
        num_features: F, clip-level features; 0 without any.
    """

    num_classes: int
    sample_rate_hz: int = 0
    seconds: float = 3.0
    frames: int = 0
    frame_size: tuple[int, int] = (60, 100)
    num_features: int = 0

    def has(self, kind: str) -> bool:
        """Whether clips have `audio`, `video` or `features`."""
        return bool(
            {"audio": self.sample_rate_hz, "video": self.frames, "features": self.num_features}[
                kind
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A registered architecture.

    Attributes:
        name: Its name in the search space and on the command line.
        modality: Which expert it makes; early fusion is both.
        inputs: What it reads of a clip: audio, video, features. Early fusion reads what
            its parts read.
        build: (shape, **settings) → Encoder.
        default: Known-good settings, which every search tries first.
        training: Known-good training settings that differ from the trainer's own.
        cost: (settings, shape) → multiply-accumulates of one clip's forward pass.
        convolutional: Whether convolutions dominate, so that bfloat16 and channels-last pay.
    """

    name: str
    modality: Modality
    inputs: tuple[str, ...]
    build: Callable[..., Encoder]
    default: Settings
    training: Settings
    cost: Callable[[Settings, ClipShape], float]
    convolutional: bool

    def check(self, settings: Settings) -> None:
        """Raises ModelError on a setting that the constructor does not take."""
        known = [p for p in inspect.signature(self.build).parameters if p != "shape"]
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
