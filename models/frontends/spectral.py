"""STFTs, log-mel spectrograms and spectrogram images."""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from models.base import FrontEnd
from models.frontends.frames import resize_matrix
from models.frontends.masks import frame_mask
from models.registry import ModelError

_NORMALISATIONS = ("clip", "bin", "none")


class Stft(FrontEnd):
    """Power spectrogram, (B, L) → (B, T, window // 2 + 1), T = 1 + L // hop.

    Args:
        fft_size: Samples of the Hann window.
        hop: Samples between frames.
        reflect: Continue a clip behind its own ends by its mirror image, where it is otherwise
            followed by zeros; a clip then needs more than `fft_size // 2` samples.
    """

    def __init__(self, *, fft_size: int, hop: int, reflect: bool = False) -> None:
        super().__init__()
        self.fft_size, self.hop, self.reflect = fft_size, hop, reflect
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)
        self.window: Tensor

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Padded at both ends of each clip, so that its edge is the same in any batch."""
        frames = 1 + torch.div(lengths, self.hop, rounding_mode="floor")
        half = self.fft_size // 2
        padded = _mirror(x, lengths, half) if self.reflect else functional.pad(x, (half, half))
        if torch.onnx.is_in_onnx_export():
            return self._as_convolution(padded), frames
        # Frame by frame in memory, as all that follows reads it; torch.stft lays out bin by bin.
        spectrum = torch.fft.rfft(padded.unfold(1, self.fft_size, self.hop) * self.window)
        return spectrum.real.square().add_(spectrum.imag.square()), frames

    def _as_convolution(self, padded: Tensor) -> Tensor:
        """The same without complex numbers, which the ONNX exporter does not know."""
        bins = self.fft_size // 2 + 1
        angle = torch.arange(bins, dtype=torch.float64)[:, None] * torch.arange(self.fft_size)
        angle = (angle % self.fft_size) * (2.0 * math.pi / self.fft_size)
        basis = torch.cat([angle.cos(), angle.sin()]).to(torch.float32) * self.window.cpu()
        parts = functional.conv1d(
            padded[:, None], basis[:, None].to(padded.device), stride=self.hop
        )
        power = parts[:, :bins].square() + parts[:, bins:].square()
        return power.transpose(1, 2)


class LogMel(FrontEnd):
    """Log-mel spectrogram, (B, L) → (B, T, F) with F = `num_mels`.

    Args:
        sample_rate_hz: Of the waveform.
        num_mels: F, mel bands (Slaney scale and normalisation).
        window_ms: Hann window.
        hop_ms: Step between frames.
        low_hz: Lower edge of the lowest band; the highest ends at half the sample rate.
        normalisation: `clip` subtracts one mean and divides by one deviation a clip, `bin`
            does so for every band, `none` leaves decibels / 20.
        trim_db: Cuts off what lies before the first and after the last frame that comes
            this close to the loudest (but 100 ms); 0 keeps all.
        range_db: Raises what is further below the clip's loudest point; 0 keeps all.
    """

    worth_caching = True

    def __init__(
        self,
        *,
        sample_rate_hz: int,
        num_mels: int = 64,
        window_ms: float = 32.0,
        hop_ms: float = 10.0,
        low_hz: float = 50.0,
        normalisation: str = "clip",
        trim_db: float = 0.0,
        range_db: float = 0.0,
    ) -> None:
        super().__init__()
        _check_normalisation(normalisation)
        for setting, value in (("trim_db", trim_db), ("range_db", range_db)):
            if value < 0:
                raise ModelError(f"{setting} must be 0 or more, got {value}.")
        self.trim_db, self.range_db = trim_db, range_db
        self.margin = round(100.0 / hop_ms)
        window, hop = (
            round(sample_rate_hz * window_ms / 1000),
            round(sample_rate_hz * hop_ms / 1000),
        )
        self.stft = Stft(fft_size=window, hop=hop)
        self.normalisation = normalisation
        filters = torchaudio.functional.melscale_fbanks(
            window // 2 + 1,
            low_hz,
            sample_rate_hz / 2,
            num_mels,
            sample_rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", filters, persistent=False)
        self.filters: Tensor
        self.frames_per_second = sample_rate_hz / hop
        self.name = f"log-mel {sample_rate_hz} {num_mels} {window} {hop} {low_hz} {normalisation}"
        if trim_db or range_db:
            self.name += f" {trim_db} {range_db}"

    def decibels(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) in dB, before normalisation."""
        power, frames = self.stft(x, lengths)
        return 10.0 * torch.log10(torch.clamp(power @ self.filters, min=1e-8)), frames

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        decibels, frames = self.decibels(x, lengths)
        if self.trim_db or self.range_db:
            behind = frame_mask(frames, decibels.shape[1])
            loudness = decibels.amax(dim=2).masked_fill(behind, float("-inf"))
            peak = loudness.amax(dim=1)
            if self.range_db:
                decibels = torch.maximum(decibels, (peak - self.range_db)[:, None, None])
            if self.trim_db:
                loud = loudness >= (peak - self.trim_db)[:, None]
                decibels, frames = trim_silence(decibels, frames, loud, self.margin)
        return normalise(decibels / 20.0, frames, self.normalisation), frames


class SpectrogramImage(FrontEnd):
    """S1's picture of a spectrogram: (B, L) → (B, T, F), 10 ms a frame.

    The paper's (Singh & Fang 2020) is 200 × 300 for 3 s: an STFT drawn on a decibel scale
    clipped to ±60 dB. Here the bins up to half the sample rate are averaged to F rows.

    Args:
        sample_rate_hz: Of the waveform.
        num_bins: F, rows of the picture.
        normalisation: As in `LogMel`; `none` maps ±60 dB to 0…1.
    """

    worth_caching = True

    def __init__(
        self, *, sample_rate_hz: int, num_bins: int = 200, normalisation: str = "clip"
    ) -> None:
        super().__init__()
        _check_normalisation(normalisation)
        hop = sample_rate_hz // 100
        # 2048 points at the paper's 44.1 kHz are 46 ms.
        self.stft = Stft(fft_size=2 ** round(math.log2(sample_rate_hz * 0.046)), hop=hop)
        self.num_bins, self.normalisation = num_bins, normalisation
        self.register_buffer(
            "rows",
            resize_matrix(self.stft.fft_size // 2 + 1, num_bins, antialias=False),
            persistent=False,
        )
        self.rows: Tensor
        self.frames_per_second = sample_rate_hz / hop
        self.name = f"spectrogram {sample_rate_hz} {num_bins} {normalisation}"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        power, frames = self.stft(x, lengths)
        # ±60 dB become 0…1; rows are weighted means, so that the order does not matter.
        levels = power.clamp_(1e-6, 1e6).log10_().add_(6.0).div_(12.0)
        return normalise(levels @ self.rows, frames, self.normalisation), frames


def _mirror(x: Tensor, lengths: Tensor, count: int) -> Tensor:
    """(B, L) → (B, L + 2·count): each clip reflected at its own ends, zero behind that."""
    position = torch.arange(-count, x.shape[1] + count, device=x.device)[None]
    keep = position < lengths[:, None] + count
    last = lengths[:, None] - 1
    position = last - (last - position.abs()).abs()
    return x.gather(1, position.clamp(min=0)) * keep.to(x.dtype)


def trim_silence(x: Tensor, lengths: Tensor, wanted: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Keeps (B, T, F) from the first wanted frame to the last, and `margin` frames around."""
    steps = x.shape[1]
    first = wanted.to(torch.float32).argmax(dim=1)
    last = steps - 1 - wanted.flip(1).to(torch.float32).argmax(dim=1)
    start = (first - margin).clamp(min=0)
    kept = torch.minimum(last + margin + 1, lengths) - start
    # Padding does no harm, but a graph must not hold one batch's longest clip as a constant.
    longest = steps if torch.onnx.is_in_onnx_export() else int(kept.max())
    position = start[:, None] + torch.arange(longest, device=x.device)[None]
    position = position.clamp(max=steps - 1)
    return x.gather(1, position[:, :, None].expand(-1, -1, x.shape[2])), kept


def normalise(x: Tensor, lengths: Tensor, how: str) -> Tensor:
    """Scales (B, T, F) by statistics of each clip's own frames; zero behind its end."""
    keep = (~frame_mask(lengths, x.shape[1])).to(x.dtype)[:, :, None]
    if how != "none":
        dims = (1, 2) if how == "clip" else (1,)
        count = keep.sum(dim=1, keepdim=True) * (x.shape[2] if how == "clip" else 1)
        mean = (x * keep).sum(dim=dims, keepdim=True) / count
        variance = ((x - mean).square() * keep).sum(dim=dims, keepdim=True) / count
        x = (x - mean) / (variance.sqrt() + 1e-3)
    return x * keep


def _check_normalisation(name: str) -> None:
    if name not in _NORMALISATIONS:
        raise ModelError(f"Unknown normalisation '{name}'. Known: {', '.join(_NORMALISATIONS)}.")
