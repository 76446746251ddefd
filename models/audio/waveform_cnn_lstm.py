"""S2's audio network: convolutions on the plain waveform, and an LSTM over 40 ms frames."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.base import Encoder, FrontEnd
from models.frontends.masks import frame_mask
from models.frontends.resampling import Resampling
from models.layers import AttentionPooling
from models.registry import ClipShape, ModelError, Settings, register

_RATE_HZ = 16000
_FRAME = 640
"""Samples of a frame of 40 ms."""

_CHANNEL_POOL = 10
_LAYERS = 2
_BLOCK = 8192
"""Samples of one Fourier transform, where a convolution is long."""


class _Variant(NamedTuple):
    filters: int
    taps: int
    further_taps: int
    normalised: bool


_VARIANTS = {
    "code": _Variant(filters=40, taps=20, further_taps=40, normalised=True),
    "paper": _Variant(filters=20, taps=80, further_taps=4000, normalised=False),
}


def _variant(name: str) -> _Variant:
    if name not in _VARIANTS:
        raise ModelError(f"Unknown variant '{name}'. Known: {', '.join(_VARIANTS)}.")
    return _VARIANTS[name]


class WaveformFrames(FrontEnd):
    """The waveform at 16 kHz in frames of 40 ms: (B, L) → (B, T, 640), zero mean, unit variance.

    Both are of each clip's own samples, as far as it reaches; silence fills its last frame.

    Args:
        sample_rate_hz: Of the clips.
    """

    frames_per_second = _RATE_HZ / _FRAME
    has_bands = has_mean = False

    def __init__(self, *, sample_rate_hz: int) -> None:
        super().__init__()
        self.resampling = Resampling(sample_rate_hz, _RATE_HZ)
        self.worth_caching = not self.resampling.same
        self.name = f"waveform frames {sample_rate_hz}"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x, lengths = self.resampling(x, lengths)
        keep = (~frame_mask(lengths, x.shape[1])).to(x.dtype)
        count = keep.sum(dim=1, keepdim=True)
        mean = (x * keep).sum(dim=1, keepdim=True) / count
        centred = (x - mean) * keep
        deviation = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
        scaled = functional.pad(centred / (deviation + 1e-5), (0, _FRAME - 1))
        whole = scaled.shape[1] // _FRAME * _FRAME
        frames = torch.div(lengths + _FRAME - 1, _FRAME, rounding_mode="floor")
        # `unflatten` would leave the example's length in a graph.
        return scaled[:, :whole].reshape(x.shape[0], -1, _FRAME), frames


class SameConvolution(nn.Conv1d):
    """A convolution that keeps the length: (B, C, L) → (B, C', L), padded as TensorFlow's SAME.

    One of many taps is computed block by block through the Fourier transform, to the same
    numbers: 4000 taps cost 25 billion multiplications a second of sound otherwise. A graph for
    export holds the plain convolution.
    """

    _LONG = 512

    def __init__(self, inside: int, outside: int, taps: int, *, bias: bool) -> None:
        super().__init__(inside, outside, taps, bias=bias)
        self.taps = taps

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        padded = functional.pad(x, ((self.taps - 1) // 2, self.taps // 2))
        if self.taps < self._LONG or torch.onnx.is_in_onnx_export():
            return super().forward(padded)
        with torch.autocast(x.device.type, enabled=False):
            return self._through_spectra(padded.float(), x.shape[2])

    def _through_spectra(self, padded: Tensor, length: int) -> Tensor:
        """Overlap-save: every block yields the outputs that do not wrap around."""
        step = _BLOCK - self.taps + 1
        blocks = -(-length // step)
        padded = functional.pad(padded, (0, blocks * step + self.taps - 1 - padded.shape[2]))
        spectra = torch.fft.rfft(padded.unfold(2, _BLOCK, step))  # (B, C, blocks, bins)
        filters = torch.fft.rfft(self.weight.float(), _BLOCK).conj()
        product = torch.einsum("bikf,oif->bokf", spectra, filters)
        y: Tensor = torch.fft.irfft(product, _BLOCK)[..., :step].flatten(2)[:, :, :length]
        return y if self.bias is None else y + self.bias[:, None]


def _convolution_cost(taps: int, inside: int, outside: int, rate_hz: float) -> float:
    """Multiply-accumulates a second of sound, by the way that `SameConvolution` takes."""
    if taps < SameConvolution._LONG:
        return rate_hz * taps * inside * outside
    blocks = rate_hz / (_BLOCK - taps + 1)
    transforms = (inside + outside) * 2.5 * _BLOCK * 13 / 2
    # The filters' own transforms, once a batch, count as if it had 16 clips of 3 s.
    filters = inside * outside * 2.5 * _BLOCK * 13 / 2 / 48
    return blocks * (transforms + 4 * inside * outside * _BLOCK / 2) + filters


def _cost(settings: Settings, shape: ClipShape) -> float:
    variant = _variant(str(settings.get("variant", "code")))
    further = int(settings.get("further_filters", 40))
    units = int(settings.get("recurrent_units", 256))
    width = _FRAME // 2 * (further // _CHANNEL_POOL)
    second = _convolution_cost(variant.taps, 1, variant.filters, _RATE_HZ)
    second += _convolution_cost(variant.further_taps, variant.filters, further, _RATE_HZ / 2)
    second += _RATE_HZ / _FRAME * 4 * units * (width + units + (_LAYERS - 1) * 2 * units)
    return second * shape.seconds


@register(
    "waveform_cnn_lstm",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default={
        "variant": "code",
        "further_filters": 40,
        "recurrent_units": 256,
        "waveform_dropout": 0.0,
    },
    training={
        "epochs": 40,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "weight_decay": 0.02,
        "dropout": 0.5,
        "label_smoothing": 0.1,
        "crop_seconds": 2.0,
    },
    paper="Tzirakis et al. 2017",
)
class WaveformCnnLstm(Encoder):
    """CNN on the raw waveform and a two-layer LSTM (Tzirakis et al., 2017, arXiv:1704.08619).

    Two convolutions, a maximum over time after the first and one over groups of ten channels
    after the second leave 1280 values for every 40 ms; the LSTM reads those.

    Differs from the paper: torch's LSTM has neither peepholes nor a cell clip; attention pools
    its steps where a clip has one label; a clip, not a segment of 6 s, has zero mean and unit
    variance; the released code's dropout of 0.5 on the waveform itself is a setting, and off.

    Args:
        shape: The corpus's clips; other rates than 16 kHz are resampled.
        variant: `code`, as released: 40 filters of 20 taps, then filters of 40 taps, both with
            batch normalisation and ReLU. `paper`: 20 filters of 80 taps (5 ms), half-wave
            rectified, then filters of 4000 taps (500 ms).
        further_filters: Of the second convolution: 40; 400 in what the code calls the original.
        recurrent_units: Of the LSTM; 0 for none, which leaves the values of each frame.
        waveform_dropout: In training.
    """

    kind = "audio"

    def __init__(
        self,
        *,
        shape: ClipShape,
        variant: str = "code",
        further_filters: int = 40,
        recurrent_units: int = 256,
        waveform_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        filters, taps, further_taps, normalised = _variant(variant)
        if further_filters % _CHANNEL_POOL or further_filters <= 0:
            raise ModelError(
                f"further_filters must be a multiple of {_CHANNEL_POOL}, got {further_filters}."
            )
        self.frontend = WaveformFrames(sample_rate_hz=shape.sample_rate_hz)
        self.waveform_dropout = nn.Dropout(waveform_dropout)
        self.first = SameConvolution(1, filters, taps, bias=not normalised)
        self.first_norm = nn.BatchNorm1d(filters) if normalised else None
        self.second = SameConvolution(filters, further_filters, further_taps, bias=not normalised)
        self.second_norm = nn.BatchNorm1d(further_filters) if normalised else None
        width = _FRAME // 2 * (further_filters // _CHANNEL_POOL)
        self.recurrence = (
            nn.LSTM(width, recurrent_units, _LAYERS, batch_first=True) if recurrent_units else None
        )
        self.embedding_dim = recurrent_units or width
        self.pool = AttentionPooling(self.embedding_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, 640) waveform → (B, D)."""
        pooled: Tensor = self.pool(*self.steps(x, lengths))
        return pooled

    def steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 640) waveform → (B, T, D), (B,): one vector every 40 ms."""
        steps = self._convolve(x, lengths)
        if self.recurrence is not None:
            # One direction only: what lies behind a clip's end reaches none of its steps. In
            # float32 always: bfloat16 recurrences lose long memories.
            start = steps.new_zeros(_LAYERS, x.shape[0], self.embedding_dim, dtype=torch.float32)
            with torch.autocast(x.device.type, enabled=False):
                steps = self.recurrence(steps.float(), (start, start))[0]
        return steps.masked_fill(frame_mask(lengths, x.shape[1])[:, :, None], 0.0), lengths

    def _convolve(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, 640) → (B, T, 1280)."""
        y = self.first(self.waveform_dropout(x).flatten(1)[:, None])
        y = torch.relu(self.first_norm(y) if self.first_norm is not None else y)
        y = functional.max_pool1d(y, 2)
        behind = frame_mask(lengths * (_FRAME // 2), y.shape[2])[:, None]
        y = self.second(y.masked_fill(behind, 0.0))
        if self.second_norm is not None:
            y = torch.relu(self.second_norm(y))
        values: Tensor = y.reshape(x.shape[0], -1, _CHANNEL_POOL, y.shape[2]).amax(dim=2)
        return values.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
