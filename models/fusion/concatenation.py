"""Early fusion by concatenation: any audio encoder and any video encoder, trained jointly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import Encoder, Fusion, Part
from models.fusion.parts import cost_of_parts, vectors_of
from models.registry import register


@register(
    "concatenation",
    modality="early",
    inputs=(),
    cost=cost_of_parts,
    training={"learning_rate": 1e-3, "weight_decay": 0.05, "dropout": 0.3},
    paper="Singh & Fang 2020",
)
class Concatenation(Fusion):
    """(CNN+RNN)+3DCNN, generalised to any two parts (Singh & Fang, 2020, arXiv:2006.08129).

    The parts' vectors are concatenated and pass 128 and 64 units. No deviations, with
    `spectrogram_cnn_rnn` and `cnn3d` as parts. A missing modality's vector is zeros.

    Args:
        encoders: The parts.
    """

    joined_dim = 64

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        super().__init__()
        width = sum(encoder.embedding_dim for encoder in encoders)
        self.layers = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Vectors (B, D) each → (B, 64)."""
        joined: Tensor = self.layers(torch.cat(vectors_of(parts), dim=1))
        return joined
