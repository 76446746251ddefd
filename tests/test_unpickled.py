"""Whatever reads a model's files runs nothing that lies in them: every reader, two kinds of pickle."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ensembles import EnsembleError
from ensembles.artifact import standalone
from ensembles.artifact.fold_networks import load_folded, read_plan
from ensembles.artifact.manifest import MANIFEST, read_artifact
from ensembles.artifact.onnx_session import open_session
from ensembles.serving.decoder import _read
from models import ClipShape, build_expert, get_architecture
from models.pretrained import find_checkpoints, read_tensors
from models.registry import ModelError
from tests.bombs import PLANTS, Bomb, plain, zipped

SHAPE = ClipShape(num_classes=2, num_features=3)


def expert_in(folder: Path) -> Path:
    """A folder with an expert of one fold."""
    network = build_expert("action_units", {}, SHAPE)
    save_file(network.state_dict(), folder / "fold-0.safetensors")
    plan = {"architecture": "action_units", "settings": {}, "training": {}, "shape": vars(SHAPE)}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def no_whole_expert(folder: Path, path: Path) -> Any:
    name = path.name
    content = path.read_bytes()
    expert_in(folder)
    load_folded(folder)  # as it was, it can be read
    (folder / name).write_bytes(content)
    return load_folded(folder)


READERS: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "pretrained .pth": ("x.pth", lambda folder, path: read_tensors(path)),
    "pretrained .pt": ("x.pt", lambda folder, path: read_tensors(path)),
    "pretrained .safetensors": ("x.safetensors", lambda folder, path: read_tensors(path)),
    "Hugging Face's file": ("pytorch_model.bin", lambda folder, path: read_tensors(folder)),
    "Hugging Face's other file": ("model.safetensors", lambda folder, path: read_tensors(folder)),
    "a backbone's origin": (
        "spatial_transformer.safetensors",
        lambda folder, path: find_checkpoints(get_architecture("spatial_transformer"), folder),
    ),
    "a plan": ("plan.json", lambda folder, path: read_plan(path)),
    "an expert's plan": ("plan.json", no_whole_expert),
    "an expert's weights": ("fold-0.safetensors", no_whole_expert),
    "a graph": ("x.onnx", lambda folder, path: open_session(path.read_bytes())),
    "a manifest": (MANIFEST, lambda folder, path: read_artifact(folder)),
    "a manifest, in the folder's program": (
        MANIFEST,
        lambda folder, path: standalone.Ensemble(folder),
    ),
}
REFUSALS = (ModelError, EnsembleError, ValueError, KeyError)


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_is_refused_and_never_run(
    reader: str, plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    name, read = READERS[reader]
    (folder := tmp_path / "folder").mkdir()
    plant(folder / name, tmp_path / "trace")
    with pytest.raises(REFUSALS):
        read(folder, folder / name)
    assert not (tmp_path / "trace").exists()


def test_an_uploads_arrays_of_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "decoded.npz"
    np.savez(path, audio=np.array([Bomb(tmp_path / "trace")], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        _read(path, tmp_path / "upload.wav", {"windows": [], "lacking": {}, "seconds": 1.0})
    assert not (tmp_path / "trace").exists()


def test_the_bombs_would_have_gone_off(tmp_path: Path) -> None:
    for plant, load in (
        (plain, lambda path: pickle.loads(path.read_bytes())),
        (zipped, lambda path: torch.load(path, weights_only=False)),
    ):
        trace = tmp_path / plant.__name__
        plant(tmp_path / "bomb", trace)
        assert not trace.exists()
        load(tmp_path / "bomb")
        assert trace.exists()
