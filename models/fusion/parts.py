"""Parts of early fusion: their widths, vectors and steps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.base import Part
from models.registry import ClipShape, Settings, get_architecture

SMALLEST = 1e-2
"""Variance below which a part's vector is not scaled up: of silence, nothing but noise would be."""


def cost_of_parts(settings: Settings, shape: ClipShape) -> float:
    """Multiply-accumulates of both encoders; joining them costs little beside."""
    total = 0.0
    for part in ("audio", "video"):
        entry = get_architecture(settings[part]["architecture"])
        total += entry.cost({**entry.default, **settings[part].get("settings", {})}, shape)
    return total


def vectors_of(parts: Sequence[Part]) -> list[Tensor]:
    """(B, D) of each part."""
    vectors = [part.vector for part in parts if part.vector is not None]
    assert len(vectors) == len(parts), "this fusion reads vectors"
    return vectors


def steps_of(parts: Sequence[Part]) -> list[Tensor]:
    """(B, S, E) of each part."""
    steps = [part.steps for part in parts if part.steps is not None]
    assert len(steps) == len(parts), "this fusion reads steps"
    return steps
