"""Several processes that train one trial together, over gloo on this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from datasets.cache import open_cache
from datasets.clips import DataError
from datasets.index import ShardIndex, read_index
from datasets.splits import make_folds
from search.inputs import TrainingData
from search.plan import TrialPlan
from search.train import LockstepTrial
from search.workers import Workers

COUNT = 2


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


def _train(rank: int, shards: Path, cache: Path, port: int, out: Path) -> None:
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
    plan = TrialPlan.of("logmel_resnet", {"width": 4, "recurrent_units": 0}, training)
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
    }
    torch.save(result, out / f"{rank}.pt")
    distributed.destroy_process_group()


def _mean_of_features(data: TrainingData, workers: Workers) -> torch.Tensor:
    """A scaler counted over all workers' clips."""
    trial = LockstepTrial(
        TrialPlan.of("action_units", {}, {"epochs": 1}), data, seed=0, workers=workers
    )
    encoder = trial.trainers[0].expert.encoder("features")
    return encoder.scale.mean.clone()  # type: ignore[union-attr, operator]


@pytest.fixture(scope="module")
def results(
    tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, torch.Tensor]]:
    """What each of two workers ended with."""
    out = tmp_path_factory.mktemp("workers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_train, (tiny_shards, out / "cache", port, out), nprocs=COUNT)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(COUNT)]


def test_each_worker_streams_its_own_clips(
    results: list[dict[str, torch.Tensor]], tiny_index: ShardIndex
) -> None:
    assert sum(int(r["clips"]) for r in results) == len(tiny_index.clips)
    assert all(int(r["clips"]) < len(tiny_index.clips) for r in results)


def test_all_workers_hold_the_same_weights_and_loss(results: list[dict[str, torch.Tensor]]) -> None:
    torch.testing.assert_close(results[0]["weights"], results[1]["weights"], rtol=0, atol=0)
    torch.testing.assert_close(results[0]["loss"], results[1]["loss"], rtol=0, atol=0)


def test_every_clip_is_predicted_once_and_known_to_all(
    results: list[dict[str, torch.Tensor]],
) -> None:
    assert torch.isfinite(results[0]["logits"]).all()
    torch.testing.assert_close(results[0]["logits"], results[1]["logits"], rtol=0, atol=0)


def test_a_step_more_or_less_on_one_worker_cannot_stall_the_other(
    results: list[dict[str, torch.Tensor]], tiny_data: TrainingData
) -> None:
    expected = [-(-len(tiny_data.rows(fold, training=True)) // 4) for fold in range(2)]
    assert [r["steps"].tolist() for r in results] == [expected, expected]


def test_rows_of_uneven_workers_are_joined(results: list[dict[str, torch.Tensor]]) -> None:
    wanted = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    for result in results:
        torch.testing.assert_close(result["uneven"], wanted)


def test_a_scaler_is_counted_over_all_workers(
    results: list[dict[str, torch.Tensor]], tiny_data: TrainingData
) -> None:
    rows = tiny_data.rows(0, training=True)
    wanted = tiny_data.cache.batch(rows, ["features"])["features"].mean(dim=0)
    for result in results:
        torch.testing.assert_close(result["mean"], wanted)


def test_one_worker_of_a_group_of_one_trains_as_without_it(tiny_data: TrainingData) -> None:
    plan = TrialPlan.of("action_units", {}, {"epochs": 4})
    logits = [
        list(LockstepTrial(plan, tiny_data, seed=1, workers=workers).run())[-1].logits
        for workers in (None, Workers(0, 1))
    ]
    np.testing.assert_array_equal(*logits)
