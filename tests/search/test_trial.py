from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ensembles.bank import PosteriorBank
from search.corpus import clip_table
from search.train import TrainingData, TrialPlan
from search.trial import describe, train


@pytest.fixture()
def spec(tiny_data: TrainingData, cache_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A trial as the search would send it, with a run's folder to write into."""
    PosteriorBank.create(tmp_path / "bank", clip_table(tiny_data))
    (tmp_path / "weights").mkdir()
    index = tiny_data.cache.index
    plan = TrialPlan.of("action_units", {}, {"epochs": 8})
    return {
        "trial": "video-0000",
        "modality": "video",
        "plan": plan.to_json(),
        "context": {
            "run": str(tmp_path), "data": index.root, "checksum": index.checksum, "classes": [],
            "protocol": tiny_data.folds.protocol, "folds": tiny_data.folds.fingerprint,
            "test_speakers": [], "metric": "accuracy", "seed": 0, "device": "cpu", "precision": "auto",
            "cache_folder": str(cache_folder), "cache_gb": 16.0, "skip_corrupt": False,
            "cpus_per_trial": 1, "gpus_per_trial": 0.0,
        },
    }  # fmt: skip


def test_every_rung_is_in_the_bank_before_it_is_reported(spec: dict[str, Any]) -> None:
    run = Path(spec["context"]["run"])
    seen = []
    for report in train(spec):
        entries = {entry.percent: entry for entry in PosteriorBank.open(run / "bank").read()}
        assert report["percent"] in entries
        table = PosteriorBank.open(run / "bank").table
        hits = entries[report["percent"]].logits.argmax(axis=1) == table.labels
        folds = [hits[table.folds == k].mean() for k in (0, 1)]
        assert report["score"] == pytest.approx(np.mean(folds)), (
            "the score is of what the bank holds"
        )
        if report["percent"] == 100:
            assert (run / "weights" / "video-0000" / "fold-1.safetensors").exists()
        seen.append(report["percent"])
    assert seen == [25, 50, 75, 100]


def test_a_diverging_trial_reports_its_failure_instead_of_raising(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda logits, targets: logits.sum() * float("nan")
    )
    (report,) = train(spec)
    assert report["failed"].startswith("NonFiniteLossError: The loss of fold 0 is nan in epoch 1")
    log = (Path(spec["context"]["run"]) / "logs" / "video-0000.log").read_text()
    assert "NonFiniteLossError" in log


def test_an_early_fusion_trial_is_called_by_its_parts() -> None:
    settings = {"audio": {"architecture": "functionals"}, "video": {"architecture": "cnn3d"}}
    assert describe({"architecture": "concatenation", "settings": settings}) == "functionals+cnn3d"
    assert describe({"architecture": "cnn3d", "settings": {}}) == "cnn3d"


@pytest.mark.slow()
def test_a_trial_whose_process_is_killed_fails_alone(
    launch: Any, small_search: list[object], tmp_path: Path
) -> None:
    process = launch(*small_search, "--name", "victim")
    root = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    killed = False
    while not killed and time.monotonic() < deadline and process.poll() is None:
        for child in root.children(recursive=True):
            try:
                title = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if "ray::video-0000 action_units" in title:
                child.kill()
                killed = True
                break
    assert killed, "the trial's process carries the trial's name"
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "1 failed" in out
    assert "failed: video-0000: the trial's process died" in " ".join(out.split())
