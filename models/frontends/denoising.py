"""Noise removal by spectral gating."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from models.base import FrontEnd
from models.frontends.masks import frame_mask
from models.registry import ModelError


class GatedNoise(FrontEnd):
    """Another front end behind a spectral gate: steady noise is taken out of the waveform first.

    A band's noise is the level that it keeps to in the quietest tenth of the clip's own frames;
    what stays within 6 dB of it is turned down (Boll, 1979, as a soft mask).

    Args:
        then: What reads the cleaned waveform.
        sample_rate_hz: Of the waveform.
        strength: How far noise is turned down: 0 not at all, 1 entirely.
    """

    worth_caching = True
    _QUIET_SHARE, _MARGIN_DB, _SOFTNESS_DB = 0.1, 6.0, 2.0

    def __init__(self, then: FrontEnd, *, sample_rate_hz: int, strength: float) -> None:
        super().__init__()
        if not 0 < strength <= 1:
            raise ModelError(f"noise_removal must be in [0, 1], got {strength}.")
        self.then, self.strength = then, strength
        self.size = 2 ** round(math.log2(sample_rate_hz * 0.032))
        self.hop = self.size // 4
        bins = self.size // 2 + 1
        turns = torch.arange(bins, dtype=torch.float64)[:, None] * torch.arange(self.size)
        angle = (turns % self.size) * (2.0 * math.pi / self.size)
        window = torch.hann_window(self.size, dtype=torch.float64)
        there = torch.cat([angle.cos(), -angle.sin()]) * window
        twice = torch.full((bins, 1), 2.0, dtype=torch.float64)
        twice[0] = twice[-1] = 1.0  # bins without a negative twin
        weight = torch.cat([twice, twice]) / self.size
        back = torch.cat([angle.cos(), -angle.sin()]) * weight * window
        for name, value in (("there", there), ("back", back), ("overlap", window.square()[None])):
            self.register_buffer(name, value.float()[:, None], persistent=False)
        self.there: Tensor
        self.back: Tensor
        self.overlap: Tensor
        self.name = f"gate {sample_rate_hz} {strength} | {then.name}"
        self.frames_per_second, self.storage = then.frames_per_second, then.storage
        self.has_bands, self.has_mean = then.has_bands, then.has_mean

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L), (B,) → what `then` makes of the cleaned waveform."""
        return self.then(self.clean(x, lengths), lengths)  # type: ignore[no-any-return]

    def clean(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, L) → (B, L), zero behind each clip's end."""
        pad = self.size // 2
        parts = functional.conv1d(
            functional.pad(x[:, None], (pad, pad)), self.there, stride=self.hop
        )
        real, imaginary = parts.chunk(2, dim=1)
        decibels = 10.0 * torch.log10(torch.clamp(real.square() + imaginary.square(), min=1e-10))
        frames = 1 + torch.div(lengths, self.hop, rounding_mode="floor")
        mask = frame_mask(frames, parts.shape[2])
        ordered = decibels.masked_fill(mask[:, None], float("inf")).sort(dim=2).values
        quiet = ((frames - 1) * self._QUIET_SHARE).to(torch.int64)
        level = ordered.gather(2, quiet[:, None, None].expand(-1, decibels.shape[1], 1))
        speech = torch.sigmoid((decibels - level - self._MARGIN_DB) / self._SOFTNESS_DB)
        keep = (~mask).to(x.dtype)[:, None]
        gain = (1.0 - self.strength * (1.0 - speech)) * keep
        summed = functional.conv_transpose1d(
            torch.cat([real * gain, imaginary * gain], dim=1), self.back, stride=self.hop
        )
        weight = functional.conv_transpose1d(keep, self.overlap, stride=self.hop)
        cleaned = (summed / torch.clamp(weight, min=1e-3))[:, 0, pad:]
        short = x.shape[1] - cleaned.shape[1]
        cleaned = functional.pad(cleaned, (0, max(short, 0)))[:, : x.shape[1]]
        return cleaned * (~frame_mask(lengths, x.shape[1])).to(x.dtype)
