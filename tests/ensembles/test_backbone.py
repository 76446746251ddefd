"""A backbone that one search trained starts another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ensembles.backbone import main
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import PosteriorBank
from models import ClipShape, build_expert, get_architecture
from models.pretrained import find_checkpoints
from tests.small import SMALL

SHAPE = ClipShape(num_classes=3, frames=4, frame_size=(20, 30))


def expert_in(run: Path, architecture: str, settings: dict[str, Any]) -> Any:
    """A run with one expert of two folds; returns its second fold's network."""
    folder = run / "weights" / "video-0001"
    folder.mkdir(parents=True)
    for fold in range(2):
        torch.manual_seed(fold)
        network = build_expert(architecture, settings, SHAPE)
        save_file(network.learned_state(), folder / f"fold-{fold}.safetensors")
    table = ClipTable(
        clips=("a", "b"),
        speakers=("ann", "ben"),
        folds=np.array([0, 1]),
        labels=np.array([0, 1]),
        classes=("x", "y", "z"),
    )
    PosteriorBank.create(run / "bank", table)
    facts = {"corpus": "other", "data_checksum": "abc"}
    (run / "run.json").write_text(json.dumps(facts))
    plan = {"architecture": architecture, "settings": settings, "training": {}}
    plan["shape"] = {**SHAPE.__dict__}
    (folder / "plan.json").write_text(json.dumps(plan))
    return network


def test_what_was_learnt_is_found_and_fine_tuned_elsewhere(tmp_path: Path) -> None:
    settings = SMALL["spatial_transformer"]
    trained = expert_in(tmp_path / "run", "spatial_transformer", settings)
    out = tmp_path / "weights"
    assert main([str(tmp_path / "run"), "video-0001", "--fold", "1", "--out", str(out)]) == 0
    (found,) = find_checkpoints(get_architecture("spatial_transformer"), out)
    assert found.settings["frames"] == settings["frames"]
    assert found.trained_on == [{"corpus": "other", "checksum": "abc", "speakers": ["ann", "ben"]}]
    chosen = {"transfer": "finetune", "checkpoint": found.to_json()}
    again = build_expert("spatial_transformer", chosen, SHAPE, weights=out)
    backbone = "encoders.video.backbone."
    state = trained.state_dict()
    same = {k: torch.equal(x, state[k]) for k, x in again.state_dict().items() if backbone in k}
    assert same
    assert all(same.values())


def test_a_backbone_remembers_everyone_it_was_trained_on(tmp_path: Path) -> None:
    run, entry = tmp_path / "run", get_architecture("spatial_transformer")
    expert_in(run, entry.name, SMALL[entry.name])
    plan = json.loads((run / "weights/video-0001/plan.json").read_text())
    earlier = {"corpus": "first", "checksum": "1", "speakers": ["eve"]}
    found = {"file": "x", "sha256": "y", "settings": {}, "trained_on": [earlier]}
    plan["settings"] |= {"transfer": "finetune", "checkpoint": found}
    (run / "weights/video-0001/plan.json").write_text(json.dumps(plan))
    assert main([str(run), "video-0001", "--out", str(tmp_path / "out")]) == 0
    (kept,) = find_checkpoints(entry, tmp_path / "out")
    assert [known["corpus"] for known in kept.trained_on] == ["first", "other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video-0009"], "No expert's weights in"),
        (["video-0001", "--fold", "2"], "There is no fold 2"),
        (["video-0001"], "has no backbone that has trained"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expert_in(tmp_path, "frame_cnn", {"width": 4})
    assert main([str(tmp_path), *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
