"""Early fusion by a gate: how much each modality counts is decided clip by clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import Encoder, Fusion, Part
from models.fusion.parts import cost_of_parts, vectors_of
from models.registry import register


@register(
    "gated",
    modality="early",
    inputs=(),
    cost=cost_of_parts,
    default={"dim": 64},
    training={"learning_rate": 1e-3, "weight_decay": 0.05, "dropout": 0.3},
    paper="Arevalo et al. 2017",
)
class Gated(Fusion):
    """Gated multimodal unit (Arevalo et al., 2017, arXiv:1702.01992).

    h = z·tanh(W_a a) + (1 - z)·tanh(W_v v) with z = σ(W_z [a, v]) for each unit. No deviations.
    Where a modality is missing, the gate opens to the other one entirely.

    Args:
        encoders: The parts.
        dim: D', units of h.
    """

    def __init__(self, encoders: Sequence[Encoder], dim: int = 64) -> None:
        super().__init__()
        audio, video = (encoder.embedding_dim for encoder in encoders)
        self.joined_dim = dim
        self.audio, self.video = nn.Linear(audio, dim), nn.Linear(video, dim)
        self.gate = nn.Linear(audio + video, dim)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Vectors (B, D) each → (B, D')."""
        audio, video = vectors_of(parts)
        gate = torch.sigmoid(self.gate(torch.cat([audio, video], dim=1)))
        gate = gate.masked_fill(~parts[0].present[:, None], 0.0)
        gate = gate.masked_fill(~parts[1].present[:, None], 1.0)
        return gate * torch.tanh(self.audio(audio)) + (1.0 - gate) * torch.tanh(self.video(video))
