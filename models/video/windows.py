"""Attention in the shifted windows of a video's map."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class WindowAttention(nn.Module):
    """Attention in the windows of maps of one size: (B, T, H, W, C) → the same.

    It takes torchvision's layer's place and weights (Liu et al., 2022, arXiv:2106.13230).
    Torchvision's works the windows out of the map at every call, which the ONNX exporter
    makes tens of thousands of nodes and minutes of.

    Args:
        original: Torchvision's `ShiftedWindowAttention3d`.
        size: (T, H, W) of the maps.
    """

    def __init__(self, original: Any, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = original.qkv, original.proj, original.num_heads
        self.relative_position_bias_table = original.relative_position_bias_table
        self.register_buffer("relative_position_index", original.relative_position_index)
        self.relative_position_index: Tensor
        axes = list(zip(size, original.window_size, original.shift_size, strict=True))
        # An axis that fits into one window is one window, which nothing shifts.
        self.window = [min(length, window) for length, window, _ in axes]
        self.shift = [0 if length <= window else shift for length, window, shift in axes]
        self.size = size
        self.counts = [-(-n // w) for n, w in zip(size, self.window, strict=True)]
        self.padded = [n * w for n, w in zip(self.counts, self.window, strict=True)]
        self.register_buffer("regions", self._regions(), persistent=False)
        self.regions: Tensor

    def _regions(self) -> Tensor:
        """(windows, places): places of unlike numbers met by shifting, and are kept apart."""
        cuts = [
            (slice(0, -w), slice(-w, -s), slice(-s, None)) if s else (slice(None),)
            for w, s in zip(self.window, self.shift, strict=True)
        ]
        regions = torch.zeros(self.padded)
        for number, (t, h, w) in enumerate(product(*cuts)):
            regions[t, h, w] = number
        return self._divide(regions[None, ..., None])[..., 0]

    def _divide(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) → (B·windows, places, C)."""
        (t, h, w), (u, v, z) = self.counts, self.window
        parts = x.reshape(-1, t, u, h, v, w, z, x.shape[-1]).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return parts.reshape(-1, u * v * z, x.shape[-1])

    def _join(self, x: Tensor) -> Tensor:
        """The inverse of `_divide`."""
        (t, h, w), (u, v, z) = self.counts, self.window
        parts = x.reshape(-1, t, h, w, u, v, z, x.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return parts.reshape(-1, *self.padded, x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        (t, h, w), channels = self.size, self.proj.out_features
        places, windows = prod(self.window), prod(self.counts)
        behind = [after - before for before, after in zip(self.size, self.padded, strict=True)]
        x = functional.pad(x, (0, 0, 0, behind[2], 0, behind[1], 0, behind[0]))
        shifted = any(self.shift)
        if shifted:
            x = torch.roll(x, [-s for s in self.shift], (1, 2, 3))
        parts = self.qkv(self._divide(x)).reshape(-1, places, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * (channels // self.heads) ** -0.5) @ key.transpose(2, 3) + self._bias()
        if shifted:
            apart = (self.regions[:, :, None] != self.regions[:, None]).to(scores.dtype) * -100.0
            by_window = scores.reshape(-1, windows, self.heads, places, places)
            scores = (by_window + apart[None, :, None]).reshape(-1, self.heads, places, places)
        mixed = (scores.softmax(dim=3) @ value).transpose(1, 2).reshape(-1, places, channels)
        x = self._join(self.proj(mixed))
        if shifted:
            x = torch.roll(x, self.shift, (1, 2, 3))
        return x[:, :t, :h, :w]

    def _bias(self) -> Tensor:
        """(1, heads, places, places)."""
        places = prod(self.window)
        index = self.relative_position_index[:places, :places].flatten()
        bias = self.relative_position_bias_table[index]
        by_head: Tensor = bias.reshape(places, places, self.heads).permute(2, 0, 1)[None]
        return by_head
