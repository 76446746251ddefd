"""Resampling of waveforms, for networks that were made for one sample rate."""

from __future__ import annotations

import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from models.frontends.masks import frame_mask


class Resampling(nn.Module):
    """(B, L), (B,) at one rate → (B, L'), (B,) at another, by a windowed sinc.

    The same numbers as `torchaudio.functional.resample` of each clip alone, and exportable.

    Args:
        before_hz: The clips' rate.
        after_hz: The rate wanted; the same rate changes nothing.
    """

    def __init__(self, before_hz: int, after_hz: int) -> None:
        super().__init__()
        self.same = before_hz == after_hz
        if self.same:
            return
        known = torchaudio.transforms.Resample(before_hz, after_hz)
        self.before, self.after = before_hz // known.gcd, after_hz // known.gcd
        self.width = int(known.width)
        self.register_buffer("kernel", known.kernel, persistent=False)
        self.kernel: Tensor

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Zero behind each clip's end."""
        if self.same:
            return x, lengths
        padded = functional.pad(x[:, None], (self.width, self.width + self.before))
        phases = functional.conv1d(padded, self.kernel, stride=self.before)
        resampled = phases.transpose(1, 2).flatten(1)
        lengths = (lengths * self.after + self.before - 1) // self.before
        keep = ~frame_mask(lengths, resampled.shape[1])
        return resampled * keep.to(x.dtype), lengths
