"""A small residual network on log-mel: does well from scratch on about a thousand clips."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import Encoder
from models.frontends.masks import frame_mask
from models.frontends.spectral import LogMel
from models.layers import AttentionPooling, Recurrence, peak_over_time
from models.registry import ClipShape, Settings, register

_MULTIPLES = (2, 3, 4)
_STRIDES = ((2, 2), (2, 2), (2, 1))  # frequency, time


def _cost(settings: Settings, shape: ClipShape) -> float:
    width = int(settings.get("width", 16))
    bins, frames = int(settings.get("num_mels", 64)) / 2, shape.seconds * 100 / 2
    total = bins * frames * 9 * width
    inside = width
    for multiple, stride in zip(_MULTIPLES, _STRIDES, strict=True):
        outside = width * multiple
        bins, frames = bins / stride[0], frames / stride[1]
        total += bins * frames * 9 * (inside * outside + outside * outside)
        inside = outside
    return float(total)


class _Block(nn.Module):
    """Two 3×3 convolutions with a shortcut and squeeze-excitation over the clip's own frames."""

    def __init__(self, inside: int, outside: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.first = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.squeeze = nn.Linear(outside, max(outside // 4, 4))
        self.excite = nn.Linear(max(outside // 4, 4), outside)
        self.shortcut: nn.Module = nn.Identity()
        if inside != outside or stride != (1, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, F, T), (B,) → (B, C', F', T'), (B,); zero behind each clip's end."""
        frames = (frames + self.stride[1] - 1) // self.stride[1]
        y = self.first_norm(self.first(x))
        keep = spread_mask(frames, y)
        y = self.second_norm(self.second(torch.relu(y) * keep))
        present = keep[:, 0, 0]
        mean = (y.mean(dim=2) * present[:, None]).sum(dim=2) / present.sum(dim=1)[:, None]
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))
        return torch.relu(y * gate[:, :, None, None] + self.shortcut(x)) * keep, frames


def spread_mask(frames: Tensor, maps: Tensor) -> Tensor:
    """1 where a clip is, 0 behind its end, in the shape and memory layout of (B, C, F, T) maps.

    Multiplying bfloat16 channels-last maps by a broadcast (B, 1, 1, T) takes ten times as
    long on a CPU as by a mask of their own layout.
    """
    keep = (~frame_mask(frames, maps.shape[3])).to(maps.dtype)[:, None, None]
    if torch.onnx.is_in_onnx_export():
        return keep
    return torch.empty_like(maps).copy_(keep.expand_as(maps))


@register(
    "logmel_resnet",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default={
        "num_mels": 64,
        "width": 16,
        "recurrent_units": 0,
        "normalisation": "clip",
        "trim_db": 45.0,
        "range_db": 70.0,
    },
    training={
        "epochs": 30,
        "learning_rate": 3e-3,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "dropout": 0.3,
        "batch_size": 32,
        "crop_seconds": 1.0,
    },
    convolutional=True,
    paper="He et al. 2016, Hu et al. 2018",
)
class LogMelResNet(Encoder):
    """Residual squeeze-excitation CNN on log-mel, a BiGRU if asked for, attention pooling.

    After He et al. (2016, arXiv:1512.03385) and Hu et al. (2018, arXiv:1709.01507), made
    small: about 140 000 parameters. No deviations are claimed from either, which are nets
    for images; this is a network of the same parts.

    Args:
        shape: The corpus's clips.
        num_mels: Mel bands.
        width: Channels of the first convolution; the three residual stages have 2, 3 and 4 times as many.
        recurrent_units: Of a bidirectional GRU over time, a direction; 0 for none.
        normalisation: Of the log-mel, see `LogMel`.
        trim_db: Of the log-mel: silence at both ends is cut off.
        range_db: Of the log-mel: how far below the loudest point is told apart.
    """

    kind = "audio"

    def __init__(
        self,
        *,
        shape: ClipShape,
        num_mels: int = 64,
        width: int = 16,
        recurrent_units: int = 32,
        normalisation: str = "clip",
        trim_db: float = 0.0,
        range_db: float = 0.0,
    ) -> None:
        super().__init__()
        self.frontend = LogMel(
            sample_rate_hz=shape.sample_rate_hz,
            num_mels=num_mels,
            normalisation=normalisation,
            trim_db=trim_db,
            range_db=range_db,
        )
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        inside, blocks = width, []
        for multiple, stride in zip(_MULTIPLES, _STRIDES, strict=True):
            blocks.append(_Block(inside, width * multiple, stride))
            inside = width * multiple
        self.blocks = nn.ModuleList(blocks)
        self.recurrence = Recurrence("gru", inside, recurrent_units, 1) if recurrent_units else None
        channels = self.recurrence.output_dim if self.recurrence else inside
        self.pool = AttentionPooling(channels)
        self.embedding_dim = 2 * channels

    @property
    def steps_dim(self) -> int:
        """E, channels of a step."""
        return self.embedding_dim // 2

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, F) log-mel → (B, D): attention-weighted mean and maximum over time."""
        steps, frames = self.steps(x, lengths)
        peak = peak_over_time(steps, frames)
        return torch.cat([self.pool(steps, frames), peak], dim=1)

    def steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) log-mel → (B, S, E), a step every eight frames, and (B,)."""
        maps = self.stem_norm(self.stem(x.transpose(1, 2)[:, None]))
        frames = (lengths + 1) // 2
        maps = torch.relu(maps) * spread_mask(frames, maps)
        for block in self.blocks:
            maps, frames = block(maps, frames)
        steps = maps.mean(dim=2).transpose(1, 2)  # (B, T', C)
        if self.recurrence is not None:
            steps = self.recurrence(steps, frames)
        return steps, frames
