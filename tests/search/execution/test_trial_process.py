from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensembles.bank.posterior_bank import PosteriorBank
from search.data.bank_tables import clip_table
from search.data.training_data import TrainingData
from search.execution.trial_process import train
from search.training.fold_trainer import FoldTrainer
from search.trial_config import TrialConfig
from search.trial_spec import CorpusSpec, TrialSpec
from tests.specs import NO_CORPUS, context_of, spec_of

ROOT = Path(__file__).parents[3]


@pytest.fixture()
def spec(tiny_data: TrainingData, cache_folder: Path, tmp_path: Path) -> TrialSpec:
    """A trial as the search would send it, with a run's folder to write into."""
    PosteriorBank.create(tmp_path / "bank", clip_table(tiny_data))
    (tmp_path / "weights").mkdir()
    index = tiny_data.cache.index
    plan = TrialConfig.of("action_units", {}, {"epochs": 8})
    corpus = replace(
        NO_CORPUS,
        place=index.root,
        checksum=index.checksum,
        protocol=tiny_data.folds.protocol,
        folds=tiny_data.folds.fingerprint,
        cache_folder=str(cache_folder),
        cache_gb=16.0,
    )
    return spec_of("video-0000", plan, context_of(tmp_path, corpus))


def test_every_rung_is_in_the_bank_before_it_is_reported(spec: TrialSpec) -> None:
    run = Path(spec.context.run)
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
    spec: TrialSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "search.training.task.cross_entropy",
        lambda logits, *_, **__: logits.sum() * float("nan"),
    )
    (report,) = train(spec)
    assert report["failed"].startswith("NonFiniteLossError: The loss of fold 0 is nan in epoch 1")
    log = (Path(spec.context.run) / "logs" / "video-0000.log").read_text()
    assert "NonFiniteLossError" in log


def test_a_trial_that_dies_goes_on_after_its_last_epoch(
    spec: TrialSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(spec.context.run)
    whole = list(train(replace(spec, trial="video-0009")))
    monkeypatch.setattr("search.training.checkpoint.SECONDS_BETWEEN", 0.0)
    dying = train(spec)
    first = [next(dying), next(dying)]  # at 50 %: epoch 4 is judged, then epochs 3 and 4 are kept
    dying.close()
    checkpoint = run / "checkpoints" / "video-0000.pt"
    assert checkpoint.exists()

    steps = []
    step_epoch = FoldTrainer.step_epoch
    monkeypatch.setattr(
        FoldTrainer, "step_epoch", lambda self: steps.append(self.epoch) or step_epoch(self)
    )
    second = list(train(spec))
    assert [r["percent"] for r in second] == [25, 50, 75, 100], "what was told is told again"
    assert second[0] == first[0]
    assert steps[0] == 3, "epochs count from 0: three were done and kept"
    entries = {(e.trial, e.percent): e.logits for e in PosteriorBank.open(run / "bank").read()}
    for percent in (25, 50, 75, 100):
        one, other = entries["video-0009", percent], entries["video-0000", percent]
        np.testing.assert_array_equal(one, other)
    assert [r["score"] for r in second] == [r["score"] for r in whole]
    log = (run / "logs" / "video-0000.log").read_text()
    assert "continued after epoch 3" in log
    assert "closed" not in log


@pytest.mark.parametrize("damage", ["shorten", "flip", "foreign", "pickle"])
def test_progress_that_is_damaged_or_anothers_is_not_continued(
    spec: TrialSpec, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("search.training.checkpoint.SECONDS_BETWEEN", 0.0)
    dying = train(spec)
    next(dying), next(dying)
    dying.close()
    path = Path(spec.context.run) / "checkpoints" / "video-0000.pt"
    content = bytearray(path.read_bytes())
    if damage == "shorten":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "foreign":
        spec = replace(spec, context=replace(spec.context, seed=1))
    else:
        trap = b"cos\nsystem\n(S'touch " + str(path.parent / "trace").encode() + b"'\ntR."
        path.write_bytes(hashlib.sha256(trap).digest() + trap)
    reports = list(train(spec))
    assert [r["percent"] for r in reports] == [25, 50, 75, 100]
    log = (Path(spec.context.run) / "logs" / "video-0000.log").read_text()
    assert "continued" not in log
    assert not (path.parent / "trace").exists()


def test_an_early_fusion_trial_is_called_by_its_parts() -> None:
    settings = {"audio": {"architecture": "functionals"}, "video": {"architecture": "cnn3d"}}
    assert TrialConfig("concatenation", settings).title == "functionals+cnn3d"
    assert TrialConfig("cnn3d").title == "cnn3d"


def on_a_gpu(spec: TrialSpec, share: float, **more: Any) -> TrialSpec:
    gpu = replace(spec.context, device="cuda", gpu_share={"action_units": share})
    return replace(spec, context=replace(gpu, **more))


def test_a_trial_takes_its_share_of_a_gpu_and_more_when_it_had_too_little(
    spec: TrialSpec,
) -> None:
    there = on_a_gpu(spec, 0.25)
    shares = [there.gpus]
    while more := there.with_more_memory():
        there = more
        shares.append(there.gpus)
    assert shares == [0.25, 0.5, 1.0]
    two = on_a_gpu(spec, 0.25, workers_per_trial=2)
    assert two.gpus == 1.0 and two.with_more_memory() is None
    assert spec.gpus == 0.0 and spec.with_more_memory() is None


def test_whatever_changes_networks_is_in_the_identity_and_places_are_not(spec: TrialSpec) -> None:
    whole = json.dumps(spec.identity())

    def changed(**changes: Any) -> bool:
        return json.dumps(replace(spec, **changes).identity()) != whole

    for name, value in {
        "seed": 1, "precision": "bfloat16", "run": "/away", "device": "cuda", "runner": "train",
        "workers_per_trial": 2, "gpu_share": {"x": 0.5}, "metric": "uar", "cpus_per_trial": 2,
    }.items():  # fmt: skip
        other = replace(spec.context, **{name: value})
        assert changed(context=other) == (name in ("seed", "precision")), name
    places = {"place", "cache_folder", "cache_gb", "weights"}
    for field in fields(CorpusSpec):
        corpus = replace(spec.context.corpus, **{field.name: "another"})
        other = replace(spec.context, corpus=corpus)
        assert changed(context=other) == (field.name not in places), field.name
    assert changed(enrolment=(5,))
    assert not changed(trial="video-0001", keep_weights=False, gpu_share_factor=2)


def test_a_shard_that_is_gone_is_not_the_trials_fault(spec: TrialSpec, tmp_path: Path) -> None:
    away = tmp_path / "shards"
    shutil.copytree(spec.context.corpus.place, away)
    gone = sorted(away.glob("*.tar"))[-1]
    gone.unlink()
    cache = str(tmp_path / "cache")
    corpus = replace(spec.context.corpus, place=str(away), cache_folder=cache)
    (report,) = train(replace(spec, context=replace(spec.context, corpus=corpus)))
    assert report["storage"] is True
    assert "tar" in report["failed"] and str(away) in report["failed"]


def test_a_folder_that_takes_nothing_more_is_not_the_trials_fault(spec: TrialSpec) -> None:
    bank = Path(spec.context.run) / "bank"
    reports = train(spec)
    assert next(reports)["percent"] == 25
    shutil.rmtree(bank)  # a write that fails, whoever asks
    report = next(reports)
    assert report["storage"] is True
    assert report["failed"].startswith(f"the run's folder '{bank.parent}': No such file")


def test_a_trial_without_enough_memory_says_so(
    spec: TrialSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("search.training.fold_trainer.FoldTrainer._loss", full)
    (report,) = train(spec)
    assert report["out_of_memory"] is True
    assert report["failed"].startswith("OutOfMemoryError: CUDA out of memory.")


def test_batches_in_parts_stand_in_the_log(
    spec: TrialSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FoldTrainer._loss

    def little(self: FoldTrainer, inputs: dict[str, Any], targets: Any, alone: bool) -> Any:
        if len(targets) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, inputs, targets, alone)

    monkeypatch.setattr(FoldTrainer, "_loss", little)
    *_, last = train(spec)
    assert last["percent"] == 100
    log = (Path(spec.context.run) / "logs" / "video-0000.log").read_text()
    assert "out of memory: batches of 32 in 2 parts" in log
