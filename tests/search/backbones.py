"""Small pretrained backbones of ours, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models import BackboneEncoder
from models.build import build_encoder
from models.pretrained import ORIGIN, find_checkpoints
from models.registry import get_architecture
from search.data.training_data import TrainingData
from search.trial_config import TrialConfig
from tests.small import SMALL


def write(folder: Path, name: str, data: TrainingData, trained_on: list[dict[str, Any]]) -> None:
    """A small backbone of ours, with what it says of itself."""
    torch.manual_seed(7)
    encoder = build_encoder(name, SMALL.get(name, {}), data.shape)
    assert isinstance(encoder, BackboneEncoder)
    state = {key: x.contiguous() for key, x in encoder.backbone.state_dict().items()}
    origin = {"settings": SMALL.get(name, {}), "trained_on": trained_on}
    folder.mkdir(exist_ok=True)
    save_file(state, folder / f"{name}.safetensors", metadata={ORIGIN: json.dumps(origin)})


def plan(name: str, mode: str, folder: Path, **training: Any) -> TrialConfig:
    """A training that starts from the backbone in a folder."""
    (found,) = find_checkpoints(get_architecture(name), folder)
    settings = {"transfer": mode, "checkpoint": found.to_json()}
    return TrialConfig.of(name, settings, {"epochs": 1, "batch_size": 6, **training})
