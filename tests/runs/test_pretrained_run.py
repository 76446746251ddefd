"""A whole search over a pretrained backbone: frozen, fine-tuned, exported, resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ensembles.artifact.manifest import read_artifact
from ensembles.exporting.writer import export
from ensembles.exporting.finished_run import read_run
from ensembles.artifact.fold_networks import load_folded
from ensembles.inference.predictor import Predictor
from models import BackboneEncoder, ClipShape, build_expert
from models.pretrained import sha256
from tests.runs.conftest import Launcher
from tests.runs.process import words
from tests.small_run import JointCorpus

FILE = "spatial_transformer.safetensors"


@pytest.fixture()
def weights(tmp_path: Path) -> Path:
    """A backbone that someone trained on other faces."""
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(1)
    shape = ClipShape(num_classes=2, frames=4)
    encoder = build_expert("spatial_transformer", {}, shape).encoder("video")
    assert isinstance(encoder, BackboneEncoder)
    save_file(encoder.backbone.state_dict(), folder / FILE)
    return folder


def test_a_backbone_is_searched_frozen_and_fine_tuned_exported_and_kept_apart_from_others(
    launch_joint: Launcher, joint: JointCorpus, tmp_path: Path, weights: Path
) -> None:
    command = launch_joint.search(
        name="transfer", only="spatial_transformer", trials=4, epochs=2, seed=2, confirm_seeds=0,
        keep_weights="all", weights=weights,
    )  # fmt: skip
    out = command.finish() + command.err
    assert "spatial_transformer frozen: about" in out
    assert "spatial_transformer finetune: about" in out
    run = tmp_path / "runs" / "transfer"
    facts = json.loads((run / "run.json").read_text())
    (found,) = facts["scope"]["transfers"]["spatial_transformer"]["checkpoints"]
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

    export(read_run(run), tmp_path / "exported")
    with (run / "predictions_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    predictor = Predictor(read_artifact(tmp_path / "exported"))
    answers = predictor.files([joint.media[row["clip"]] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        expected = [float(row[label]) for label in answer.probabilities]
        np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-4)

    # The weights change, and move, between two days.
    as_it_was = (weights / FILE).read_bytes()
    save_file({key: x + 1 for key, x in original.items()}, weights / FILE)
    command = launch_joint.go_on(resume="transfer", trials=5)
    command.finish(2)
    assert "is not the file that this run began with" in words(command.err)
    moved = weights.rename(tmp_path / "moved")
    (moved / FILE).write_bytes(as_it_was)
    out = launch_joint.go_on(resume="transfer", trials=5, weights=moved).finish()
    assert "5 trials finished" in words(out)
