"""Spectrograms as colour pictures, for networks that read three channels."""

from __future__ import annotations

import torch
from torch import Tensor

from models.frontends.masks import frame_mask

_DEVIATIONS = 3.0
"""On either side of a clip's mean, which span the picture's range."""


def picture(spectrogram: Tensor) -> Tensor:
    """A spectrogram of zero mean and unit variance (one a clip) as brightness, 0…1."""
    return (0.5 + spectrogram / (2 * _DEVIATIONS)).clamp(0.0, 1.0)


def colour_map(brightness: Tensor) -> Tensor:
    """(B, H, W) in 0…1 → (B, 3, H, W) in 0…1: dark blue, cyan, yellow, dark red ("jet")."""
    distances = [(4.0 * brightness - peak).abs() for peak in (3.0, 2.0, 1.0)]  # red, green, blue
    return (1.5 - torch.stack(distances, dim=1)).clamp(0.0, 1.0)


def draw(x: Tensor, frames: Tensor, *, colours: bool) -> Tensor:
    """(B, T, F) spectrograms, (B,) → (B, 1 or 3, F, T) pictures, zero behind each clip's end.

    Args:
        x: Of zero mean and unit variance, and zero behind each clip's end.
        frames: Of each clip.
        colours: A colour map over the brightness, instead of the values as they are.
    """
    if not colours:
        return x.transpose(1, 2)[:, None]
    behind = frame_mask(frames, x.shape[1])[:, None, None]
    return colour_map(picture(x.transpose(1, 2))).masked_fill(behind, 0.0)
