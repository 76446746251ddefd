"""Seconds a trial beyond its training: our reused actors, and a plain nested TorchTrainer.

`python -m benchmarks.trial_overhead`. Both run trials that do next to nothing. The plain
script follows Ray's guide for tuning a TorchTrainer: a driver function a trial builds one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import context_of, corpus, scratch
from datasets.sharding.index import ShardIndex

TRIALS, PLAIN_TRIALS = 40, 4


def ours(
    folder: Path, runner: str, trials: int, device: str = "cpu", index: ShardIndex | None = None
) -> tuple[float, float]:
    """Seconds a trial in all, and seconds of training in it, over minimal trials."""
    from datasets.protocols.split import make_folds
    from datasets.sharding.clip_cache import open_cache
    from datasets.storage.synced_folder import KeptFolder
    from ensembles.bank.posterior_bank import PosteriorBank
    from search.cluster import connection
    from search.config import SearchConfig
    from search.data.bank_tables import clip_table
    from search.data.corpus import corpus_spec
    from search.data.training_data import TrainingData, clip_shape
    from search.execution import tuner
    from search.persistence.run_folder import RunFolder
    from search.space.scope import scope_for
    from search.tuning.searcher import ModalitySearcher
    from search.tuning.study import open_journal

    index = index or corpus(None, folder)
    cache = open_cache(index, folder / "cache")
    data = TrainingData(cache, make_folds(index))
    run = folder / "run"
    for name in ("logs", "weights"):
        (run / name).mkdir(parents=True)
    PosteriorBank.create(run / "bank", clip_table(data))
    config = SearchConfig(cache_dir=str(folder / "cache"))
    folder_of_run = RunFolder(KeptFolder(run), config, resumed=False)
    scope = scope_for(clip_shape(cache.index), ("functionals",), epochs_scale=0.01)
    context = context_of(str(run), corpus_spec(config, data), device=device, runner=runner)
    connection.start_ray(None, 1, dashboard=True)
    try:
        warm = ModalitySearcher(
            scope, open_journal(run / "warm.log"), seed=0, trials=2, deadline=time.monotonic() + 600
        )
        tuner.run_search(warm, context, folder_of_run, workers=1, seconds=600)
        search = ModalitySearcher(
            scope,
            open_journal(run / "journal.log"),
            seed=0,
            trials=trials,
            deadline=time.monotonic() + 600,
        )
        started = time.perf_counter()
        tuner.run_search(search, context, folder_of_run, workers=1, seconds=600)
        total = time.perf_counter() - started
        training = sum(t.user_attrs["seconds"] for t in search.parts["audio"].asked())
    finally:
        connection.stop_ray()
    return total / trials, training / trials


def plain() -> float:
    """Seconds a trial of a driver function that nests a one-worker TorchTrainer."""
    import ray
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def loop(config: dict[str, Any]) -> None:
        import ray.train

        ray.train.report({"score": config["x"]})

    with tempfile.TemporaryDirectory() as storage:

        def driver(config: dict[str, Any]) -> None:
            TorchTrainer(
                loop,
                train_loop_config=config,
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
                run_config=RunConfig(
                    name=f"trial-{config['x']:.6f}",
                    storage_path=storage,
                    callbacks=[TuneReportCallback()],
                ),
            ).fit()

        ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False)
        try:
            started = time.perf_counter()
            tune.Tuner(
                tune.with_resources(driver, {"cpu": 0.5}),
                param_space={"x": tune.uniform(0, 1)},
                tune_config=tune.TuneConfig(num_samples=PLAIN_TRIALS, max_concurrent_trials=1),
                run_config=tune.RunConfig(storage_path=storage, verbose=0),
            ).fit()
            return (time.perf_counter() - started) / PLAIN_TRIALS
        finally:
            ray.shutdown()


def plain_alone() -> float:
    """The same in a process of its own: what this project sets of Ray does not hold there."""
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.trial_overhead import plain; print(plain())"],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Prints both, and the ratio."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    nested = plain_alone()
    print(
        f"nested TorchTrainer: {nested:.1f} s a trial that trains nothing ({PLAIN_TRIALS} trials)"
    )
    for runner, trials in (("actor", TRIALS), ("train", PLAIN_TRIALS)):
        with scratch() as folder:
            total, training = ours(Path(folder), runner, trials)
        overhead = total - training
        print(
            f"runner {runner}: {total:.3f} s a trial, {training:.3f} of it training: "
            f"overhead {overhead:.3f} s ({trials} trials); the nested one takes {nested / overhead:.1f} times that"
        )


if __name__ == "__main__":
    main()
