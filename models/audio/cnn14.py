"""CNN-14 of PANNs: the original network, and an encoder that starts from its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from models.base import Backbone, BackboneEncoder, FrontEnd
from models.frontends.masks import frame_mask
from models.frontends.resampling import Resampling
from models.frontends.spectral import Stft
from models.registry import Checkpoint, ClipShape, ModelError, Settings, register

_RATES = {32000: (1024, 320, 14000.0), 16000: (512, 160, 8000.0)}
"""Sample rate in Hz → window and hop in samples, upper edge of the mel bands in Hz."""

_BANDS, _LOW_HZ = 64, 50.0
_BLOCKS = (1, 2, 4, 8, 16, 32)
_BLOCK_DROPOUT, _DROPOUT = 0.2, 0.5
_SHORTEST = 2 ** (len(_BLOCKS) - 1)
"""Frames that five poolings need."""

_TYPICAL_DB = -40.0
"""Typical level of a log-mel of speech; what the encoder's front end calls zero."""


def _constants(rate_hz: int) -> tuple[int, int, float]:
    if rate_hz not in _RATES:
        known = ", ".join(str(rate) for rate in _RATES)
        raise ModelError(f"Unknown rate_hz {rate_hz} of 'cnn14'. Known: {known}.")
    return _RATES[rate_hz]


def _mel_filters(rate_hz: int) -> Tensor:
    """(window // 2 + 1, 64)."""
    window, _, high = _constants(rate_hz)
    with torch.device("cpu"):  # its checks cannot run on a network without storage
        filters: Tensor = torchaudio.functional.melscale_fbanks(
            window // 2 + 1, _LOW_HZ, high, _BANDS, rate_hz, norm="slaney", mel_scale="slaney"
        )
    return filters


def _decibels(power: Tensor, filters: Tensor) -> Tensor:
    return 10.0 * torch.log10(torch.clamp(power @ filters, min=1e-10))


class _Block(nn.Module):
    """Two 3×3 convolutions with batch normalisation; the names are the original's."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _convolution(inside, outside), _convolution(outside, outside)
        self.bn1, self.bn2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """(B, C, T, F) → (B, C', T, F)."""
        x = _silence(torch.relu(self.bn1(self.conv1(x))), frames)
        return torch.relu(self.bn2(self.conv2(x)))


def _convolution(inside: int, outside: int) -> nn.Module:
    """Drawn once, for ReLU: torch's own draw before would double the time to build."""
    device = torch.get_default_device()
    layer = nn.utils.skip_init(nn.Conv2d, inside, outside, 3, padding=1, bias=False, device=device)
    assert isinstance(layer, nn.Conv2d)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return layer


def _dense(inside: int, outside: int) -> nn.Linear:
    layer = nn.Linear(inside, outside)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _silence(maps: Tensor, frames: Tensor) -> Tensor:
    """(B, C, T, F) maps with zeros behind each clip's end, as a lone clip's padding has them."""
    return maps.masked_fill(frame_mask(frames, maps.shape[2])[:, None, :, None], 0.0)


class _Layers(nn.Module):
    """Layers that the original network and the backbone share, under the original's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim = width * _BLOCKS[-1]
        self.bn0 = nn.BatchNorm2d(_BANDS)
        inside = 1
        for number, multiple in enumerate(_BLOCKS, start=1):
            self.add_module(f"conv_block{number}", _Block(inside, width * multiple))
            inside = width * multiple
        self.fc1 = _dense(self.dim, self.dim)

    @property
    def blocks(self) -> list[nn.Module]:
        """The six of them, in order."""
        return [self.get_submodule(f"conv_block{n}") for n in range(1, len(_BLOCKS) + 1)]

    def convolve(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 64) decibels, (B,) → (B, S, D), (B,); S is T // 32, and 1 at least.

        As in the original, poolings drop an odd last frame: that of each clip, not of the batch.
        Nothing is negative, and what lies behind a clip's end is zero.
        """
        x = functional.pad(x, (0, 0, 0, max(0, _SHORTEST - x.shape[1])))
        maps = _silence(self.bn0(x.transpose(1, 2)[..., None]).permute(0, 3, 2, 1), frames)
        for number, block in enumerate(self.blocks, start=1):
            maps = block(maps, frames)
            if number < len(_BLOCKS):
                maps = functional.avg_pool2d(maps, 2)
                frames = torch.div(frames, 2, rounding_mode="floor").clamp(min=1)
            maps = functional.dropout(_silence(maps, frames), _BLOCK_DROPOUT, self.training)
        return maps.mean(dim=3).transpose(1, 2), frames

    def embed(self, steps: Tensor, frames: Tensor) -> Tensor:
        """Map what `convolve` returned → (B, D): maximum plus mean over time, and a dense layer."""
        mean = steps.sum(dim=1) / frames[:, None]
        return self._dense(steps.amax(dim=1) + mean)

    def embed_steps(self, steps: Tensor, frames: Tensor) -> Tensor:
        """The same over every step and its two neighbours: (B, S, D).

        As in PANNs' decision-level variants of the network.
        """
        rows = steps.transpose(1, 2)
        near = functional.max_pool1d(rows, 3, 1, 1) + functional.avg_pool1d(rows, 3, 1, 1)
        behind = frame_mask(frames, steps.shape[1])[:, :, None]
        return self._dense(near.transpose(1, 2)).masked_fill(behind, 0.0)

    def _dense(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc1(functional.dropout(x, _DROPOUT, self.training)))


class _Spectrogram(nn.Module):
    """Power spectrogram as a frozen convolution, by the original's names."""

    def __init__(self, rate_hz: int) -> None:
        super().__init__()
        window, self.hop, _ = _constants(rate_hz)
        self.edge = window // 2
        turns = torch.arange(self.edge + 1, dtype=torch.float64)[:, None] * torch.arange(window)
        angle = (turns % window) * (2.0 * math.pi / window)
        hann = torch.hann_window(window, dtype=torch.float64)
        self.stft = nn.Module()
        for name, wave in (("conv_real", angle.cos()), ("conv_imag", -angle.sin())):
            convolution = nn.Conv1d(1, self.edge + 1, window, self.hop, bias=False)
            convolution.weight = nn.Parameter(
                (wave * hann)[:, None].to(torch.float32), requires_grad=False
            )
            self.stft.add_module(name, convolution)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L) → (B, T, window // 2 + 1)."""
        padded = functional.pad(x[:, None], (self.edge, self.edge), mode="reflect")
        real, imaginary = (part(padded) for part in self.stft.children())
        power: Tensor = real.square() + imaginary.square()
        return power.transpose(1, 2)


class _LogMel(nn.Module):
    """Log-mel as a frozen product, by the original's name."""

    def __init__(self, rate_hz: int) -> None:
        super().__init__()
        self.melW = nn.Parameter(
            _mel_filters(rate_hz).to(torch.get_default_device()), requires_grad=False
        )

    def forward(self, power: Tensor) -> Tensor:
        """(B, T, window // 2 + 1) → (B, T, 64) decibels."""
        return _decibels(power, self.melW)


class Cnn14(_Layers):
    """PANNs' CNN-14 as it was published, to run its checkpoints as they are.

    Kong et al. (2020, arXiv:1912.10211). Differs from the original: random convolutions are
    drawn after He et al. (2015) instead of Glorot; SpecAugment and mixup are the trainer's
    business. Clips of a batch have one length, of 0.31 s or more.

    Args:
        rate_hz: 32000 or 16000.
        width: Channels of the first block; 64 in the original.
        num_classes: K; 527 in AudioSet.
    """

    def __init__(self, *, rate_hz: int = 32000, width: int = 64, num_classes: int = 527) -> None:
        super().__init__(width)
        self.spectrogram_extractor = _Spectrogram(rate_hz)
        self.logmel_extractor = _LogMel(rate_hz)
        self.fc_audioset = _dense(self.dim, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) waveforms at `rate_hz` → (B, K) probabilities of each class, (B, D) embeddings."""
        decibels = self.logmel_extractor(self.spectrogram_extractor(x))
        frames = torch.full((x.shape[0],), decibels.shape[1], device=x.device)
        embedding = self.embed(*self.convolve(decibels, frames))
        return torch.sigmoid(self.fc_audioset(embedding)), embedding


class Cnn14LogMel(FrontEnd):
    """CNN-14's log-mel, 100 frames a second: (B, L) → (B, T, 64), decibels over -40.

    Each clip is mirrored at its own ends, as the original does with one that is alone. Those
    shorter than the five poolings need are followed by silence up to 0.31 s.

    Args:
        sample_rate_hz: Of the waveform.
        rate_hz: Which it is resampled to: 32000 or 16000.
    """

    worth_caching = True
    frames_per_second = 100.0

    def __init__(self, *, sample_rate_hz: int, rate_hz: int) -> None:
        super().__init__()
        window, hop, _ = _constants(rate_hz)
        self.resampling = Resampling(sample_rate_hz, rate_hz)
        self.stft = Stft(fft_size=window, hop=hop, reflect=True)
        self.shortest = (_SHORTEST - 1) * hop
        self.register_buffer("filters", _mel_filters(rate_hz), persistent=False)
        self.filters: Tensor
        self.name = f"cnn14 log-mel {sample_rate_hz} {rate_hz}"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x, lengths = self.resampling(x, lengths)
        # A graph must not hold one batch's length as a constant, and padding does no harm.
        export = torch.onnx.is_in_onnx_export()
        x = functional.pad(x, (0, self.shortest if export else max(0, self.shortest - x.shape[1])))
        power, frames = self.stft(x, lengths.clamp(min=self.shortest))
        values = _decibels(power, self.filters) - _TYPICAL_DB
        return values.masked_fill(frame_mask(frames, values.shape[1])[:, :, None], 0.0), frames


class Cnn14Backbone(_Layers, Backbone):
    """CNN-14 without its front end and output layer: (B, T, 64) → (B, 1 + S, D).

    The first row is the clip's embedding; those of its steps of 0.32 s follow.
    """

    def __init__(self, *, rate_hz: int, width: int) -> None:
        super().__init__(width)
        self.rate_hz = rate_hz

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map what `Cnn14LogMel` returned → (B, 1 + S, D), (B,)."""
        steps, frames = self.convolve(x + _TYPICAL_DB, lengths)
        rows = [self.embed(steps, frames)[:, None], self.embed_steps(steps, frames)]
        return torch.cat(rows, dim=1), frames + 1

    def stages(self) -> list[nn.Module]:
        """The input's normalisation, six blocks and the dense layer."""
        return [self.bn0, *self.blocks, self.fc1]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also drops the original's STFT and mel filters, which the front end has.

        Raises:
            ModelError: Those filters are of another sample rate.
        """
        filters = state.get("logmel_extractor.melW")
        expected = (_constants(self.rate_hz)[0] // 2 + 1, _BANDS)
        if filters is not None and filters.shape != expected:
            raise ModelError(
                f"The checkpoint's mel filters are {tuple(filters.shape)}, those of {self.rate_hz} "
                f"Hz {expected}: it is of another rate_hz."
            )
        foreign = ("spectrogram_extractor.", "logmel_extractor.", "fc_audioset.")
        return {key: x for key, x in state.items() if not key.startswith(foreign)}


def _cost(settings: Settings, shape: ClipShape) -> float:
    width, hidden = int(settings.get("width", 64)), int(settings.get("hidden_units", 0))
    frames = max(shape.seconds * 100 + 1, _SHORTEST)
    total, inside = 0.0, 1.0
    for halvings, multiple in enumerate(_BLOCKS):
        outside = width * multiple
        area = (frames // 2**halvings) * (_BANDS // 2**halvings)
        total += area * 9 * (inside * outside + outside * outside)
        inside = outside
    return float(total + (1 + frames // _SHORTEST) * inside * inside + inside * hidden)


_SOURCE = "https://zenodo.org/record/3987831"


@register(
    "cnn14",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default={"rate_hz": 16000, "width": 64, "hidden_units": 0},
    training={
        "epochs": 20,
        "batch_size": 16,
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "dropout": 0.5,
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "spec_augment": 0.1,
    },
    convolutional=True,
    paper="Kong et al. 2020",
    checkpoints=(
        Checkpoint(
            files=("Cnn14_16k_mAP=0.438.pth",),
            source=_SOURCE,
            settings={"rate_hz": 16000, "width": 64},
        ),
        Checkpoint(
            files=("Cnn14_mAP=0.431.pth",),
            source=_SOURCE,
            settings={"rate_hz": 32000, "width": 64},
        ),
    ),
    from_scratch=False,
)
class Cnn14Encoder(BackboneEncoder):
    """CNN-14 of PANNs under a new classifier (Kong et al., 2020, arXiv:1912.10211).

    As Luna-Jiménez et al. (2021, Sensors 21(22):7665) transfer it to emotions: its embeddings
    and a classifier on top, or all of it trained on. Differs from the original: as `Cnn14`;
    SpecAugment and mixup come in front of the input's normalisation, so that masked stretches
    become -40 dB. Its vectors over time, one every 0.32 s, are the same dense layer's over three steps.

    Args:
        shape: The corpus's clips.
        rate_hz: Of the network: 32000 or 16000; clips of another rate are resampled.
        width: Channels of the first block; 64 in the original, and so in its checkpoints.
        hidden_units: Of a layer behind the embedding; 0 for none.
    """

    kind = "audio"

    def __init__(
        self,
        *,
        shape: ClipShape,
        rate_hz: int = 16000,
        width: int = 64,
        hidden_units: int = 0,
    ) -> None:
        super().__init__()
        self.frontend = Cnn14LogMel(sample_rate_hz=shape.sample_rate_hz, rate_hz=rate_hz)
        backbone = Cnn14Backbone(rate_hz=rate_hz, width=width)
        self.backbone = backbone
        self.dropout = nn.Dropout(_DROPOUT)
        self.hidden = nn.Linear(backbone.dim, hidden_units) if hidden_units else None
        self.embedding_dim = hidden_units or backbone.dim

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, 1 + S, D) embeddings, (B,) → (B, D') of the clip."""
        return self._transform(x[:, 0])

    def head_steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1 + S, D) embeddings, (B,) → (B, S, D'), (B,)."""
        behind = frame_mask(lengths - 1, x.shape[1] - 1)[:, :, None]
        return self._transform(x[:, 1:]).masked_fill(behind, 0.0), lengths - 1

    def _transform(self, x: Tensor) -> Tensor:
        # Without a hidden layer, the classifier's own dropout is the one in front of it.
        return x if self.hidden is None else torch.relu(self.hidden(self.dropout(x)))
