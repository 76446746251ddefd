"""Several processes that train one trial together, over gloo on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from datasets.clips import DataError
from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import ShardIndex, read_index
from search.data.training_data import TrainingData
from search.training.cross_validation import LockstepTrial
from search.training.distributed import Workers
from search.training.fold_builder import build_fold
from search.training.fold_trainer import FoldTrainer
from search.trial_config import TrialConfig
from tests.search.backbones import plan, write

COUNT = 2
Result = dict[str, Any]

PLAIN = {
    "epochs": 1, "dropout": 0.0, "mixup": 0.0, "label_smoothing": 0.0, "weight_decay": 0.0,
    "optimizer": "sgd_nesterov", "schedule": "constant", "learning_rate": 0.05, "gradient_clip": 1e6,
}  # fmt: skip
"""A step that is the gradient, as large as it is: no chance, no clipping, no Adam."""

STEPS = {"whole": ("action_units", False), "unequal": ("functionals", True),
         "frozen": ("cnn14", True)}  # fmt: skip
"""What of: the architecture, and whether one worker has more clips than the other."""


def _step_data(
    name: str, unequal: bool, shards: Path, cache: Path, weights: Path, rank: int | None
) -> tuple[TrialConfig, TrainingData]:
    """What one worker trains on, or without a rank one process alone."""
    index = read_index(shards)
    if unequal:
        first, some = index.shards[0].name, index.labels[:3]
        clips = tuple(e for e in index.clips if e.shard != first or e.label in some)
        index = replace(index, clips=clips)
    folds = make_folds(index, "speaker-kfold:2")
    part = index if rank is None else index.part_of(rank, COUNT)
    whole = None if rank is None else index
    data = TrainingData(open_cache(part, cache), folds, whole, weights=lambda: weights)
    training = {**PLAIN, "batch_size": len(folds.train_rows(0))}
    if name == "cnn14":
        return plan(name, "frozen", weights, **training), data
    return TrialConfig.of(name, {}, training), data


def _learned(trainer: FoldTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.expert.parameters()])


def _step_of(trainer: FoldTrainer, parts: list[Any]) -> float:
    """A step by the mean of the parts' gradients; of equal parts, by that of all their clips."""
    rows = np.concatenate(parts)
    if len({len(part) for part in parts}) == 1:
        return float(trainer._step(rows, 0))
    trainer.optimizer.set_rate(0)
    gradients, total = [], 0.0
    for part in parts:
        total += float(trainer._gradient(part)) * len(part)
        gradients.append([p.grad.clone() for p in _trained(trainer)])  # type: ignore[union-attr]
    for parameter, *each in zip(_trained(trainer), *gradients, strict=True):
        parameter.grad = torch.stack(each).mean(dim=0)
    trainer.optimizer.update()
    trainer.averaged.after_step(trainer.expert)
    return total / len(rows)


def _trained(trainer: FoldTrainer) -> list[nn.Parameter]:
    return [p for p in trainer.expert.parameters() if p.grad is not None]


def _one_step(workers: Workers, *where: Path) -> Result:
    """Case → weights before and after an epoch of one step, its loss, the clips of this worker."""
    found = {}
    for case, (name, unequal) in STEPS.items():
        settings, data = _step_data(name, unequal, *where, workers.rank)
        trainer = build_fold(settings, data, 0, seed=5, precision="float32", workers=workers)
        seen: list[str] = []
        gradient = trainer._gradient

        def noted(
            rows: Any,
            alone: bool,
            seen: list[str] = seen,
            data: TrainingData = data,
            gradient: Callable[..., Any] = gradient,
        ) -> Any:
            seen.extend(data.cache.index.clips[row].clip for row in rows)
            return gradient(rows, alone)

        trainer._gradient = noted  # type: ignore[method-assign]
        before = _learned(trainer)
        loss = trainer.step_epoch()
        found[case] = {
            "before": before,
            "after": _learned(trainer),
            "loss": loss,
            "clips": seen,
            "own": len(trainer.rows),
        }
    return found


def test_alone_everything_passes_through() -> None:
    alone, rows = Workers.here(), torch.arange(6.0).reshape(3, 2)
    assert (alone.rank, alone.count) == (0, 1)
    assert alone.sum(rows) is rows
    assert alone.concatenate(rows) is rows
    layer = nn.Linear(2, 2)
    assert alone.wrap(layer) is layer


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parts_hold_every_clip_once(tiny_index: ShardIndex, count: int) -> None:
    parts = [tiny_index.part_of(rank, count) for rank in range(count)]
    clips = [entry.clip for part in parts for entry in part.clips]
    assert sorted(clips) == sorted(entry.clip for entry in tiny_index.clips)
    assert all(part.shards == tiny_index.shards for part in parts)


def test_more_workers_than_shards_are_refused(tiny_index: ShardIndex) -> None:
    with pytest.raises(DataError, match="has 4 shards for 5 workers; each needs one or more"):
        tiny_index.part_of(0, 5)


def _train(rank: int, shards: Path, cache: Path, weights: Path, port: int, out: Path) -> None:
    """One worker: what Ray Train sets up, without Ray."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(COUNT)}  # WebDataset splits by these
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=COUNT
    )
    workers = Workers.here()
    index = read_index(shards)
    part = open_cache(index.part_of(rank, COUNT), cache)
    data = TrainingData(part, make_folds(index, "speaker-kfold:2"), index)
    training = {"epochs": 4, "batch_size": 4, "dropout": 0.2, "mixup": 0.2}
    plan = TrialConfig.of("logmel_resnet", {"width": 4, "recurrent_units": 0}, training)
    trial = LockstepTrial(plan, data, seed=0, precision="float32", workers=workers)
    rungs = list(trial.run())
    uneven = workers.concatenate(torch.full((rank + 1, 2), float(rank)))
    result = {
        "logits": torch.from_numpy(rungs[-1].logits),
        "loss": torch.tensor([rung.train_loss for rung in rungs]),
        "weights": torch.cat([p.detach().flatten() for p in trial.trainers[0].expert.parameters()]),
        "clips": torch.tensor(len(part.index.clips)),
        "steps": torch.tensor([trainer.steps for trainer in trial.trainers]),
        "uneven": uneven,
        "mean": _mean_of_features(data, workers),
        "steps_of_one": _one_step(workers, shards, cache, weights),
    }
    torch.save(result, out / f"{rank}.pt")
    distributed.destroy_process_group()


def _mean_of_features(data: TrainingData, workers: Workers) -> torch.Tensor:
    """A scaler counted over all workers' clips."""
    trial = LockstepTrial(
        TrialConfig.of("action_units", {}, {"epochs": 1}), data, seed=0, workers=workers
    )
    encoder = trial.trainers[0].expert.encoder("features")
    return encoder.scale.mean.clone()  # type: ignore[union-attr, operator]


@pytest.fixture(scope="module")
def home(tiny_data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the workers, with a backbone's weights."""
    home = tmp_path_factory.mktemp("workers")
    write(home / "weights", "cnn14", tiny_data, [])
    return home


@pytest.fixture(scope="module")
def results(tiny_shards: Path, cache_folder: Path, home: Path) -> list[Result]:
    """What each of two workers ended with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(
        _train, (tiny_shards, cache_folder, home / "weights", port, home), nprocs=COUNT
    )
    return [torch.load(home / f"{rank}.pt", weights_only=True) for rank in range(COUNT)]


def test_each_worker_streams_its_own_clips(results: list[Result], tiny_index: ShardIndex) -> None:
    assert sum(int(r["clips"]) for r in results) == len(tiny_index.clips)
    assert all(int(r["clips"]) < len(tiny_index.clips) for r in results)


def test_all_workers_hold_the_same_weights_and_loss(results: list[Result]) -> None:
    torch.testing.assert_close(results[0]["weights"], results[1]["weights"], rtol=0, atol=0)
    torch.testing.assert_close(results[0]["loss"], results[1]["loss"], rtol=0, atol=0)


def test_every_clip_is_predicted_once_and_known_to_all(
    results: list[Result],
) -> None:
    assert torch.isfinite(results[0]["logits"]).all()
    torch.testing.assert_close(results[0]["logits"], results[1]["logits"], rtol=0, atol=0)


def test_a_step_more_or_less_on_one_worker_cannot_stall_the_other(
    results: list[Result], tiny_data: TrainingData
) -> None:
    expected = [-(-len(tiny_data.rows(fold, training=True)) // 4) for fold in range(2)]
    assert [r["steps"].tolist() for r in results] == [expected, expected]


@pytest.mark.parametrize("case", STEPS)
def test_what_two_workers_compute_is_what_one_does_on_all_of_their_clips(
    results: list[Result], tiny_shards: Path, cache_folder: Path, home: Path, case: str
) -> None:
    first, second = (result["steps_of_one"][case] for result in results)
    name, unequal = STEPS[case]
    settings, data = _step_data(name, unequal, tiny_shards, cache_folder, home / "weights", None)
    alone = build_fold(settings, data, 0, seed=5, precision="float32")
    torch.testing.assert_close(_learned(alone), first["before"], rtol=0, atol=0)
    row_of = {entry.clip: row for row, entry in enumerate(data.cache.index.clips)}
    assert (first["own"] != second["own"]) == unequal
    parts = [
        np.asarray([row_of[clip] for clip in one["clips"]], np.int64) for one in (first, second)
    ]
    assert sorted(map(len, parts)) == ([4, 5] if unequal else [6, 6])
    assert set(np.concatenate(parts).tolist()) <= set(alone.rows.tolist())
    loss = _step_of(alone, parts)
    moved = (first["after"] - first["before"]).abs().max()
    assert moved > 1e-2
    torch.testing.assert_close(first["after"], _learned(alone), rtol=1e-4, atol=1e-3 * float(moved))
    torch.testing.assert_close(first["after"], second["after"], rtol=0, atol=0)
    assert first["loss"] == second["loss"] == pytest.approx(loss, rel=1e-4)


def test_rows_of_uneven_workers_are_joined(results: list[Result]) -> None:
    wanted = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    for result in results:
        torch.testing.assert_close(result["uneven"], wanted)


def test_a_scaler_is_counted_over_all_workers(
    results: list[Result], tiny_data: TrainingData
) -> None:
    rows = tiny_data.rows(0, training=True)
    wanted = tiny_data.cache.batch(rows, ["features"])["features"].mean(dim=0)
    for result in results:
        torch.testing.assert_close(result["mean"], wanted)


def test_one_worker_of_a_group_of_one_trains_as_without_it(tiny_data: TrainingData) -> None:
    plan = TrialConfig.of("action_units", {}, {"epochs": 4})
    logits = [
        list(LockstepTrial(plan, tiny_data, seed=1, workers=workers).run())[-1].logits
        for workers in (None, Workers(0, 1))
    ]
    np.testing.assert_array_equal(*logits)
