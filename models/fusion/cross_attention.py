"""Early fusion by cross-modal attention: each modality's steps look at the other's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import Encoder, Fusion, Part
from models.frontends.masks import frame_mask
from models.fusion.parts import cost_of_parts, steps_of
from models.registry import ModelError, register


class _Attention(nn.Module):
    """One modality's steps (queries) attend to the other's, with a residual and a feed-forward layer."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.value, self.output = (nn.Linear(dim, dim) for _ in range(3))
        # A bias of the keys shifts all of a query's scores alike, which a softmax ignores.
        self.key = nn.Linear(dim, dim, bias=False)
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.forth = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, other: Tensor, padding: Tensor, present: Tensor) -> Tensor:
        """(B, S, D) steps, (B, S', D) of the other modality, its (B, S') padding → (B, S, D)."""
        query = self._heads(self.query(self.before(x)))
        key, value = self._heads(self.key(other)), self._heads(self.value(other))
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        weights = scores.masked_fill(padding[:, None, None], float("-inf")).softmax(dim=3)
        seen = (weights @ value).transpose(1, 2).flatten(2)
        x = x + self.output(seen).masked_fill(~present[:, None, None], 0.0)
        out: Tensor = x + self.forth(self.between(x))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, S, D) → (B, heads, S, D / heads)."""
        split: Tensor = x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return split


@register(
    "cross_attention",
    modality="early",
    inputs=(),
    cost=cost_of_parts,
    default={"dim": 64, "num_heads": 4},
    training={"learning_rate": 1e-3, "weight_decay": 0.05, "dropout": 0.3},
    paper="Tsai et al. 2019",
)
class CrossAttention(Fusion):
    """Cross-modal attention (Tsai et al., 2019, arXiv:1906.00295).

    Differs from the paper: two modalities, one layer each way, no temporal convolution and no
    self-attention after it; the steps' means over time are concatenated. What attends to a
    missing modality sees zeros, and that modality's own mean is zeros.

    Args:
        encoders: The parts; one without a time axis is a single step.
        dim: Width of the attention.
        num_heads: Divides `dim`.
    """

    over_time = True

    def __init__(self, encoders: Sequence[Encoder], dim: int = 64, num_heads: int = 4) -> None:
        super().__init__()
        if dim % num_heads:
            raise ModelError(f"num_heads must divide dim, got num_heads={num_heads}, dim={dim}.")
        self.joined_dim = 2 * dim
        self.enter = nn.ModuleList(nn.Linear(encoder.steps_dim, dim) for encoder in encoders)
        self.attend = nn.ModuleList(_Attention(dim, num_heads) for _ in encoders)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Steps (B, S, E) each → (B, 2D)."""
        means = []
        for part, (seen, lengths) in zip(parts, self.steps(parts), strict=True):
            keep = (~frame_mask(lengths, seen.shape[1])).to(seen.dtype)[:, :, None]
            mean = (seen * keep).sum(dim=1) / keep.sum(dim=1)
            means.append(mean.masked_fill(~part.present[:, None], 0.0))
        return torch.cat(means, dim=1)

    def steps(self, parts: Sequence[Part]) -> list[tuple[Tensor, Tensor]]:
        """Each modality's steps, with what they saw in the other's."""
        steps = [enter(x) for enter, x in zip(self.enter, steps_of(parts), strict=True)]
        padding = [
            frame_mask(part.lengths, x.shape[1]) for part, x in zip(parts, steps, strict=True)
        ]
        streams = []
        for own, other in ((0, 1), (1, 0)):
            seen = self.attend[own](steps[own], steps[other], padding[other], parts[other].present)
            streams.append((seen, parts[own].lengths))
        return streams
