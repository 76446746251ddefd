"""Masks of frames that lie behind a clip's end."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_mask(lengths: Tensor, count: int) -> Tensor:
    """(B,) lengths → (B, count) bool, True = padding."""
    return torch.arange(count, device=lengths.device)[None, :] >= lengths[:, None]
