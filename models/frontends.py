"""Front ends: plain waveform, frames and features to what the encoders read.

They live inside the network, so that an exported expert takes plain media. None has
parameters, so what they compute may be cached. A clip's result does not depend on the
clips it shares a batch with: STFTs pad with zeros (as does a batch), statistics are taken
over a clip's own frames, and everything behind a clip's end is zero.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from models.expert import FrontEnd
from models.registry import ModelError

_NORMALISATIONS = ("clip", "bin", "none")

_STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
}
"""Mean and deviation of the colours (torchvision's)."""


def frame_mask(lengths: Tensor, count: int) -> Tensor:
    """(B,) lengths → (B, count) bool, True = padding."""
    return torch.arange(count, device=lengths.device)[None, :] >= lengths[:, None]


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
                decibels, frames = _trim(decibels, frames, loud, self.margin)
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
            _resizing(self.stft.fft_size // 2 + 1, num_bins, antialias=False),
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
            static, frames = _trim(static, frames, loud, self.log_mel.margin)
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


class Frames(FrontEnd):
    """Video frames, evenly spread and scaled: (B, V, H, W, 3) uint8 → (B, V', 3, H', W').

    A fourth channel of the clips, a saliency map, is dropped unless it is asked for.

    Args:
        count: V', frames taken.
        height: H' in pixels.
        width: W' in pixels.
        scaling: `clip`: 0…1, minus one mean and over one deviation a clip (looks and light
            differ more between speakers than between emotions); `unit`: 0…1; `imagenet` and
            `kinetics`: 0…1, by the statistics that networks pretrained there expect.
        maps: Keep the saliency map, 0…1, as a fourth channel.
    """

    has_mean = False
    worth_caching = True

    def __init__(
        self, *, count: int, height: int, width: int, scaling: str = "clip", maps: bool = False
    ) -> None:
        super().__init__()
        if scaling not in ("clip", "unit", *_STATISTICS):
            known = ", ".join(("clip", "unit", *_STATISTICS))
            raise ModelError(f"Unknown scaling '{scaling}'. Known: {known}.")
        self.count, self.size, self.scaling, self.maps = count, (height, width), scaling, maps
        self.name = f"frames {count} {height} {width}"
        if scaling != "clip" or maps:
            self.name += f" {scaling} {maps}"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; the returned lengths are all V'."""
        steps = (torch.arange(self.count, device=x.device) + 0.5) / self.count
        rows = (steps[None] * lengths[:, None].to(steps.dtype)).to(torch.int64)
        rows = torch.minimum(rows, (lengths - 1).clamp(min=0)[:, None])
        taken = x[torch.arange(x.shape[0], device=x.device)[:, None], rows]
        taken = taken[..., : 4 if self.maps else 3]
        frames = taken.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        if frames.shape[-2:] != self.size:
            frames = self._resize(frames)
        clips = frames.unflatten(0, (-1, self.count))
        scaled = self._scale(clips[:, :, :3])
        if self.maps:
            scaled = torch.cat([scaled, clips[:, :, 3:]], dim=2)
        return scaled, torch.full_like(lengths, self.count)

    def _scale(self, clips: Tensor) -> Tensor:
        """(B, V', 3, H', W') in 0…1, scaled as asked."""
        if self.scaling == "unit":
            return clips
        if self.scaling == "clip":
            # onnxruntime adds 10⁵ floats one by one: of an even picture, which has no deviation,
            # the mean would be off by as much as what is then divided by 1e-3 can show.
            exact = clips.double() if torch.onnx.is_in_onnx_export() else clips
            mean = exact.mean(dim=(1, 2, 3, 4), keepdim=True).to(clips.dtype)
            deviation = exact.std(dim=(1, 2, 3, 4), keepdim=True).to(clips.dtype)
            return (clips - mean) / (deviation + 1e-3)
        known = torch.tensor(_STATISTICS[self.scaling], device=clips.device)[:, :, None, None]
        return (clips - known[0]) / known[1]

    def _resize(self, frames: Tensor) -> Tensor:
        """(n, 3, H, W) → (n, 3, H', W')."""
        if not torch.onnx.is_in_onnx_export():
            return functional.interpolate(frames, self.size, mode="bilinear", antialias=True)
        # The same as two products, for want of antialiasing in the exporter.
        (height, width), (rows, columns) = frames.shape[-2:], self.size
        across = frames @ _resizing(int(width), columns, antialias=True)
        down = across.transpose(2, 3) @ _resizing(int(height), rows, antialias=True)
        return down.transpose(2, 3)


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


class Features(FrontEnd):
    """Features as they are: (B, F) → (B, F), or of every frame, (B, S, F) → (B, S, F)."""

    name = "features"


def _mirror(x: Tensor, lengths: Tensor, count: int) -> Tensor:
    """(B, L) → (B, L + 2·count): each clip reflected at its own ends, zero behind that."""
    position = torch.arange(-count, x.shape[1] + count, device=x.device)[None]
    keep = position < lengths[:, None] + count
    last = lengths[:, None] - 1
    position = last - (last - position.abs()).abs()
    return x.gather(1, position.clamp(min=0)) * keep.to(x.dtype)


def _trim(x: Tensor, lengths: Tensor, wanted: Tensor, margin: int) -> tuple[Tensor, Tensor]:
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


def _resizing(before: int, after: int, *, antialias: bool) -> Tensor:
    """(before, after) matrix that resizes a row of values linearly."""
    unit = torch.eye(before)[None, :, None, :]
    return functional.interpolate(unit, (1, after), mode="bilinear", antialias=antialias)[0, :, 0]


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
