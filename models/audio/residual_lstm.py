"""A residual LSTM with self-attention on log-mel, for training from scratch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.base import Encoder
from models.frontends.masks import frame_mask
from models.frontends.spectral import LogMel
from models.layers import AttentionPooling, Recurrence
from models.registry import ClipShape, ModelError, Settings, register


class _ResidualLayer(nn.Module):
    """A bidirectional LSTM over normalised steps, added to them."""

    def __init__(self, units: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * units)
        self.recurrence = Recurrence("lstm", 2 * units, units, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, D), (B,) → (B, S, D)."""
        y: Tensor = x + self.dropout(self.recurrence(self.norm(x), lengths))
        return y


class _SelfAttention(nn.Module):
    """Multi-head self-attention over normalised steps, added to them (Vaswani et al., 2017)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.projections = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, D), (B,) → (B, S, D)."""
        batch, steps, _ = x.shape
        parts = self.projections(self.norm(x)).reshape(batch, steps, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, S, D / heads)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        padding = frame_mask(lengths, x.shape[1])[:, None, None]
        weights = scores.masked_fill(padding, float("-inf")).softmax(dim=3)
        mixed = (self.dropout(weights) @ value).transpose(1, 2).reshape(batch, steps, -1)
        y: Tensor = x + self.dropout(self.output(mixed))
        return y


def _cost(settings: Settings, shape: ClipShape) -> float:
    dim = 2 * int(settings.get("units", 64))
    stack = int(settings.get("stack", 8))
    steps = shape.seconds * 100 / stack + 1
    layer = 4 * (dim + dim / 2) * dim  # gates: 2 directions of dim / 2 units
    attention = 4 * dim * dim + 2 * steps * dim
    entrance = stack * int(settings.get("num_mels", 64)) * dim
    return float(steps * (entrance + int(settings.get("layers", 2)) * layer + attention))


@register(
    "residual_lstm",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default={
        "num_mels": 64,
        "stack": 8,
        "units": 64,
        "layers": 2,
        "heads": 4,
        "layer_dropout": 0.2,
        "normalisation": "clip",
        "trim_db": 45.0,
        "range_db": 70.0,
    },
    training={
        "epochs": 40,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "dropout": 0.3,
        "label_smoothing": 0.1,
        "spec_augment": 0.1,
        "mixup": 0.2,
    },
)
class ResidualLstm(Encoder):
    """Residual bidirectional LSTMs with self-attention on log-mel, attention pooling.

    After Prakash et al. (2016, arXiv:1610.03098) for the residual LSTM, Sak et al. (2015,
    arXiv:1507.06947) for stacked frames, Vaswani et al. (2017, arXiv:1706.03762) for the
    attention, and Mirsamadi et al. (2017, ICASSP) for the pooling. No deviations are claimed
    from any: this is a small network of the same parts, about 330 000 parameters, normalised
    in front of every part (Xiong et al., 2020, arXiv:2002.04745).

    Args:
        shape: The corpus's clips.
        num_mels: Mel bands.
        stack: Frames of 10 ms that are joined to one step.
        units: Of each LSTM, a direction.
        layers: LSTMs.
        heads: Of the self-attention; divides 2·`units`.
        layer_dropout: Behind each part.
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
        stack: int = 8,
        units: int = 64,
        layers: int = 2,
        heads: int = 4,
        layer_dropout: float = 0.2,
        normalisation: str = "clip",
        trim_db: float = 0.0,
        range_db: float = 0.0,
    ) -> None:
        super().__init__()
        if (2 * units) % heads:
            raise ModelError(f"heads must divide 2·units, got heads={heads}, units={units}.")
        if stack < 1 or layers < 1:
            raise ModelError(f"stack and layers must be 1 or more, got {stack} and {layers}.")
        self.frontend = LogMel(
            sample_rate_hz=shape.sample_rate_hz,
            num_mels=num_mels,
            normalisation=normalisation,
            trim_db=trim_db,
            range_db=range_db,
        )
        dim = 2 * units
        self.stack = stack
        self.entrance = nn.Linear(stack * num_mels, dim)
        self.layers = nn.ModuleList([_ResidualLayer(units, layer_dropout) for _ in range(layers)])
        self.attention = _SelfAttention(dim, heads, layer_dropout)
        self.norm = nn.LayerNorm(dim)
        self.pool = AttentionPooling(dim)
        self.embedding_dim = 2 * dim

    @property
    def steps_dim(self) -> int:
        """E, width of `steps`."""
        return self.embedding_dim // 2

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, F) log-mel → (B, D): attention-weighted mean and maximum over time."""
        steps, count = self.steps(x, lengths)
        behind = frame_mask(count, steps.shape[1])[:, :, None]
        peak = steps.masked_fill(behind, float("-inf")).amax(dim=1)
        return torch.cat([self.pool(steps, count), peak], dim=1)

    def steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) log-mel → (B, S, E), (B,): one vector for every `stack` frames."""
        # Silence fills a clip's last step.
        x = functional.pad(x, (0, 0, 0, self.stack - 1))
        count = x.shape[1] // self.stack
        stacked = x[:, : count * self.stack].reshape(x.shape[0], count, -1)
        frames = torch.div(lengths + self.stack - 1, self.stack, rounding_mode="floor")
        y = self.entrance(stacked)
        for layer in self.layers:
            y = layer(y, frames)
        y = self.norm(self.attention(y, frames))
        return y.masked_fill(frame_mask(frames, count)[:, :, None], 0.0), frames
