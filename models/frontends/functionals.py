"""Statistics over a clip of low-level descriptors, as openSMILE's functionals."""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from models.base import FrontEnd
from models.frontends.masks import frame_mask
from models.frontends.spectral import LogMel, trim_silence


class Functionals(FrontEnd):
    """Statistics of spectral and pitch contours over a clip: (B, L) → (B, F).

    Contours: 40 mel bands and 20 MFCC (in units of 10 dB), log energy, pitch (octaves over
    62.5 Hz, by autocorrelation, 0 where unvoiced), voicing, spectral centroid, spectral
    flux. Over each and over its deltas: mean, deviation, skewness and five quantiles; of
    the static ones also the slope over time. F = `num_functionals`.
    """

    worth_caching = True
    _MELS, _MFCC, _FURTHER = 40, 20, 5
    _LOW_HZ, _HIGH_HZ, _OCTAVE_COST = 62.5, 500.0, 0.05

    def __init__(self, *, sample_rate_hz: int, trim_db: float = 0.0) -> None:
        super().__init__()
        self.sample_rate_hz, self.trim_db = sample_rate_hz, trim_db
        self.log_mel = LogMel(
            sample_rate_hz=sample_rate_hz, num_mels=self._MELS, normalisation="none"
        )
        transform = torchaudio.functional.create_dct(self._MFCC, self._MELS, norm="ortho")
        self.register_buffer("transform", transform, persistent=False)
        self.transform: Tensor
        self._prepare_pitch()
        self.num_functionals = (self._MELS + self._MFCC + self._FURTHER) * 17
        self.name = f"functionals with pitch at an octave cost {sample_rate_hz} {trim_db}"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; the returned lengths are all 1."""
        static, frames = self.contours(x, lengths)
        if self.trim_db:
            behind = frame_mask(frames, static.shape[1])
            loudness = 10.0 * static[:, :, : self._MELS].amax(dim=2)
            loudness = loudness.masked_fill(behind, float("-inf"))
            loud = loudness >= loudness.amax(dim=1, keepdim=True) - self.trim_db
            static, frames = trim_silence(static, frames, loud, self.log_mel.margin)
        # The last frame repeated behind the end: deltas there see no other clip's padding.
        last = (frames - 1).clamp(min=0)
        position = torch.minimum(
            torch.arange(static.shape[1], device=x.device)[None], last[:, None]
        )
        held = static.gather(1, position[:, :, None].expand_as(static))
        deltas = (held.roll(-2, 1) - held.roll(2, 1)) / 4.0
        mask = frame_mask(frames, static.shape[1])
        edge = frame_mask(frames - 2, static.shape[1])
        edge[:, :2] = True
        deltas = deltas.masked_fill(edge[:, :, None], 0.0)
        values = torch.cat(
            [_moments(static, mask), _moments(deltas, mask), _slope(static, mask)], dim=1
        )
        return values, torch.ones_like(lengths)

    def contours(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) → (B, T, 65), and (B,) frames."""
        power, frames = self.log_mel.stft(x, lengths)
        decibels = 10.0 * torch.log10(torch.clamp(power @ self.log_mel.filters, min=1e-8))
        pitch, voicing = self._pitch(power)
        total = power.sum(dim=2) + 1e-8
        bins = torch.linspace(0.0, 1.0, power.shape[2], device=x.device)
        centroid = (power * bins).sum(dim=2) / total
        shape = power.sqrt() / power.sum(dim=2, keepdim=True).add(1e-8).sqrt()
        flux = functional.pad((shape[:, 1:] - shape[:, :-1]).square().sum(dim=2), (1, 0))
        further = torch.stack([total.log(), pitch, voicing, centroid, flux], dim=2)
        return torch.cat(
            [decibels / 10.0, decibels @ self.transform / 10.0, further], dim=2
        ), frames

    def _prepare_pitch(self) -> None:
        """Cosines that turn a power spectrum into its autocorrelation at lag 0 and each period."""
        size = self.log_mel.stft.fft_size
        shortest = int(self.sample_rate_hz / self._HIGH_HZ)
        longest = min(int(self.sample_rate_hz / self._LOW_HZ), size // 2)
        lags = torch.arange(shortest, longest)
        turns = torch.arange(size // 2 + 1)[:, None] * torch.cat([lags.new_zeros(1), lags])
        weight = torch.full((size // 2 + 1, 1), 2.0 / size, dtype=torch.float64)
        weight[0] = weight[-1] = 1.0 / size  # bins without a negative twin
        cosines = weight * torch.cos((turns % size) * (2.0 * math.pi / size)).double()
        taper = torch.fft.irfft(torch.fft.rfft(self.log_mel.stft.window).abs().square())
        self.register_buffer("cosines", cosines.float(), persistent=False)
        self.register_buffer("lags", lags.float(), persistent=False)
        self.register_buffer(
            "taper", (taper[shortest:longest] / taper[0]).clamp(min=0.05), persistent=False
        )
        self.cosines: Tensor
        self.lags: Tensor
        self.taper: Tensor

    def _pitch(self, power: Tensor) -> tuple[Tensor, Tensor]:
        """Highest peak of the autocorrelation, over that of the window itself (Boersma, 1993).

        Both are circular, as a spectrum of the window's own length gives them. A tone's
        multiples of the period tie, so a longer lag costs something (Boersma's octave cost).
        """
        correlation = power @ self.cosines
        strength = correlation[:, :, 1:] / (correlation[:, :, :1] * self.taper + 1e-8)
        best = (strength - self._OCTAVE_COST * torch.log2(self.lags)).argmax(dim=2)
        voicing = strength.gather(2, best[:, :, None])[:, :, 0].clamp(0.0, 1.0)
        octaves = torch.log2(self.sample_rate_hz / self.lags[best] / self._LOW_HZ)
        return octaves * (voicing > 0.5), voicing


def _moments(x: Tensor, mask: Tensor) -> Tensor:
    """Eight statistics over the unmasked frames: (B, T, F) → (B, 8F)."""
    keep = (~mask).to(x.dtype)[:, :, None]
    count = keep.sum(dim=1)
    mean = (x * keep).sum(dim=1) / count
    centred = (x - mean[:, None]) * keep
    deviation = (centred.square().sum(dim=1) / count).sqrt()
    skewness = centred.pow(3).sum(dim=1) / count / (deviation.pow(3) + 1e-3)
    ordered = x.masked_fill(mask[:, :, None], float("inf")).sort(dim=1).values
    quantiles = [
        ordered.gather(
            1, ((count - 1) * q).round().to(torch.int64)[:, None].expand(-1, 1, x.shape[2])
        )[:, 0]
        for q in (0.0, 0.1, 0.5, 0.9, 1.0)
    ]
    return torch.cat([mean, deviation, skewness, *quantiles], dim=1)


def _slope(x: Tensor, mask: Tensor) -> Tensor:
    """Least-squares slope over a clip's own frames, per whole clip: (B, T, F) → (B, F)."""
    keep = (~mask).to(x.dtype)[:, :, None]
    count = keep.sum(dim=1, keepdim=True)
    time = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[None, :, None] / count - 0.5
    time = (time - (time * keep).sum(dim=1, keepdim=True) / count) * keep
    return (time * x).sum(dim=1) / (time.square().sum(dim=1) + 1e-6)
