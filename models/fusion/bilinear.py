"""Early fusion by a low-rank bilinear product: every pair of both modalities' features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import Encoder, Fusion, Part
from models.fusion.parts import SMALLEST, cost_of_parts, vectors_of
from models.registry import register


@register(
    "bilinear",
    modality="early",
    inputs=(),
    cost=cost_of_parts,
    default={"dim": 64, "rank": 4},
    training={"learning_rate": 1e-3, "weight_decay": 0.05, "dropout": 0.3},
    paper="Liu et al. 2018",
)
class Bilinear(Fusion):
    """Low-rank multimodal fusion (Liu et al., 2018, arXiv:1806.00064).

    h = Σ_r (W_a^r [a, 1]) ⊙ (W_v^r [v, 1]): the outer product of both vectors, each with a
    constant, through a tensor of rank R. Differs from the paper: both vectors are scaled by
    layer normalisation first, without which their product diverges at these learning rates.
    A missing modality is [0, 1]: the other one passes with learned weights.

    Args:
        encoders: The parts.
        dim: D', units of h.
        rank: R.
    """

    def __init__(self, encoders: Sequence[Encoder], dim: int = 64, rank: int = 4) -> None:
        super().__init__()
        self.joined_dim, self.rank = dim, rank
        widths = [encoder.embedding_dim for encoder in encoders]
        self.scales = nn.ModuleList(nn.LayerNorm(width, eps=SMALLEST) for width in widths)
        # The bias is the weight of the constant.
        self.factors = nn.ModuleList(nn.Linear(width, rank * dim) for width in widths)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Vectors (B, D) each → (B, D')."""
        factors = []
        for vector, part, scale, factor in zip(
            vectors_of(parts), parts, self.scales, self.factors, strict=True
        ):
            scaled = scale(vector).masked_fill(~part.present[:, None], 0.0)
            factors.append(factor(scaled))
        product = torch.prod(torch.stack(factors), dim=0)
        joined: Tensor = product.unflatten(1, (self.rank, self.joined_dim)).sum(dim=1)
        return joined
