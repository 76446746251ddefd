"""Early fusion by concatenation: any audio encoder and any video encoder, trained jointly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from models.expert import Expert, build_encoder
from models.registry import ClipShape, ModelError, Settings, get_architecture, register


def _cost(settings: Settings, shape: ClipShape) -> float:
    total = 0.0
    for part in ("audio", "video"):
        entry = get_architecture(settings[part]["architecture"])
        total += entry.cost({**entry.default, **settings[part].get("settings", {})}, shape)
    return total


@register(
    "concatenation",
    modality="early",
    inputs=(),
    cost=_cost,
    training={"learning_rate": 1e-3, "weight_decay": 0.05, "dropout": 0.3},
)
def build_concatenation(
    *, shape: ClipShape, dropout: float, audio: Mapping[str, Any], video: Mapping[str, Any]
) -> Expert:
    """(CNN+RNN)+3DCNN, generalised to any two parts (Singh & Fang, 2020, arXiv:2006.08129).

    The parts' vectors are concatenated and pass 128 and 64 units. No deviations, with
    `spectrogram_cnn_rnn` and `cnn3d` as parts; there the audio part hands over its 64 units
    where the released code hands over the 256 in front of them.

    Args:
        shape: The corpus's clips.
        dropout: In front of the last layer.
        audio: `{"architecture": name, "settings": {…}}` of an audio architecture.
        video: The same of a video architecture.
    """
    encoders = {}
    for modality, part in (("audio", audio), ("video", video)):
        name = part["architecture"]
        if get_architecture(name).modality != modality:
            raise ModelError(
                f"Early fusion's {modality} part must be an architecture of {modality}, got '{name}'."
            )
        encoder = build_encoder(name, part.get("settings", {}), shape)
        encoders[encoder.kind] = encoder
    width = sum(encoder.embedding_dim for encoder in encoders.values())
    join = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    return Expert(encoders, shape.num_classes, dropout=dropout, join=join, joined_dim=64)
