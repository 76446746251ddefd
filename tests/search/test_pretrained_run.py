"""A whole search over a pretrained backbone: frozen, fine-tuned, exported, resumed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ensembles.export import export, read_run
from ensembles.folded import load_folded
from models import BackboneEncoder, ClipShape, build_expert
from models.pretrained import sha256

Launch = Callable[..., "subprocess.Popen[str]"]
FILE = "spatial_transformer.safetensors"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone that someone trained on other faces."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    shape = ClipShape(num_classes=2, frames=4)
    encoder = build_expert("spatial_transformer", {}, shape).encoder("video")
    assert isinstance(encoder, BackboneEncoder)
    save_file(encoder.backbone.state_dict(), folder / FILE)
    return folder


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return out + err


def test_a_backbone_is_searched_frozen_and_fine_tuned_recorded_and_exported(
    launch: Launch, tiny_shards: Path, tmp_path: Path, weights: Path
) -> None:
    arguments = [
        "--data", tiny_shards, "--protocol", "speaker-kfold:2", "--runs-dir", tmp_path / "runs",
        "--only", "spatial_transformer", "--trials", 4, "--epochs", 2, "--workers", 1,
        "--dashboard=false", "--page=false", "--name", "transfer", "--seed", 2, "--weights", weights,
    ]  # fmt: skip
    out = finish(launch(*arguments))
    assert "spatial_transformer frozen: about" in out
    assert "spatial_transformer finetune: about" in out
    run = tmp_path / "runs" / "transfer"
    facts = json.loads((run / "run.json").read_text())
    recorded = facts["offer"]["transfers"]["spatial_transformer"]["checkpoints"]
    (found,) = recorded
    assert (found["file"], found["sha256"]) == (FILE, sha256(weights / FILE))
    plans = {p.parent.name: json.loads(p.read_text()) for p in run.glob("weights/*/plan.json")}
    modes = {name: plan["settings"]["transfer"] for name, plan in plans.items()}
    assert modes["video-0000"] == "frozen", "the known-good default comes first"
    assert len(set(modes.values())) > 1
    frozen = next(name for name, mode in modes.items() if mode == "frozen")
    assert (run / "weights" / plans[frozen]["frozen"]).is_file()
    assert not any(
        ".frontend." in key for key in load_file(run / f"weights/{frozen}/fold-0.safetensors")
    )
    same = load_folded(run / "weights" / frozen).network(1).frozen_state()
    original = load_file(weights / FILE)
    assert {k.rpartition(".backbone.")[2] for k in same} == set(original)
    assert all(torch.equal(x, original[k.rpartition(".backbone.")[2]]) for k, x in same.items())
    assert export(read_run(run), tmp_path / "exported").members


def test_a_run_whose_weights_have_changed_says_so(
    launch: Launch, tiny_shards: Path, tmp_path: Path, weights: Path
) -> None:
    home = tmp_path / "weights"
    home.mkdir()
    (home / FILE).write_bytes((weights / FILE).read_bytes())
    runs = tmp_path / "runs"
    finish(
        launch(
            "--data", tiny_shards, "--protocol", "speaker-kfold:2", "--runs-dir", runs,
            "--only", "spatial_transformer", "--trials", 1, "--epochs", 1, "--workers", 1,
            "--dashboard=false", "--page=false", "--name", "changed", "--weights", home,
        )
    )  # fmt: skip
    state = load_file(home / FILE)
    save_file({key: x + 1 for key, x in state.items()}, home / FILE)
    again = launch("--resume", "changed", "--trials", 2, "--runs-dir", runs)
    _out, err = again.communicate(timeout=400)
    assert again.returncode == 2
    assert "is not the file that this run began with" in " ".join(err.split())
    moved = home.rename(tmp_path / "moved")
    (moved / FILE).write_bytes((weights / FILE).read_bytes())
    resume = ["--resume", "changed", "--trials", 2, "--runs-dir", runs, "--weights", moved]
    assert "2 trials finished" in " ".join(finish(launch(*resume)).split())
