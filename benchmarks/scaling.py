"""A recorded search on 1 to 64 workers: how busy it keeps them, and what a result costs it.

`python -m benchmarks.scaling [busy|cost|ray]`, without a part all of them. `busy` and `cost`
run the real search, scheduler and Tune controller on simulated workers: virtual time, to which
the controller's measured CPU time is added. `ray` runs real Ray actors and tasks that sleep
instead of training.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
from ray import tune
from ray.tune.execution import tune_controller
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from benchmarks.common import context_of, scratch
from benchmarks.replay import SCOPE, Record, SimulatedActors, busy_share, replay_trial
from datasets.storage.synced_folder import KeptFolder
from search.cluster import connection
from search.config import SearchConfig
from search.execution import tuner
from search.persistence.run_folder import RunFolder
from search.space.suggest import space_of
from search.trial_spec import ACTOR_CPUS
from search.tuning.searcher import ModalitySearcher
from search.tuning.study import open_journal

RAY_REPLAYS = ((8, 1.0), (16, 1.0), (16, 4.0))
"""Workers, and how much faster than recorded. Each takes two processes, here all on one machine:
64 of them do not fit into two cores and 24 GB."""

Run = Callable[[Path, int, int, Record], None]


def deal(folder: Path, trials: int) -> ModalitySearcher:
    """Our search over a new journal."""
    journal = open_journal(folder / "journal.log")
    return ModalitySearcher(SCOPE, journal, seed=0, trials=trials, deadline=math.inf)


def kept(folder: Path) -> RunFolder:
    """A run's folder, of which nothing else is needed."""
    return RunFolder(KeptFolder(folder), SearchConfig(), resumed=False)


def ours(folder: Path, workers: int, trials: int, record: Record) -> None:
    """Our search, as `search.run` runs it."""
    search = deal(folder, trials)
    _measure(record, search, "suggest", "report_rung", "on_trial_complete", result="report_rung")
    run = context_of(str(folder))
    tuner.run_search(search, run, kept(folder), workers=workers, seconds=86_400)


def plain(folder: Path, workers: int, trials: int, record: Record) -> None:
    """Ray's own OptunaSearch and ASHA over the same space, with their defaults."""
    searcher = _Unsaved(_space, metric="score", mode="max", seed=0)
    scheduler = ASHAScheduler(
        time_attr="percent", metric="score", mode="max", max_t=100, grace_period=50,
        reduction_factor=2,
    )  # fmt: skip
    _measure(record, searcher, "suggest", "on_trial_result", "on_trial_complete")
    _measure(record, scheduler, "on_trial_result", "choose_trial_to_run", result="on_trial_result")
    tune.Tuner(
        tune.with_resources(replay_trial, {"cpu": ACTOR_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(searcher, max_concurrent=workers),
            scheduler=scheduler,
            num_samples=trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder / "ray"), verbose=0),
    ).fit()


class _Unsaved(OptunaSearch):
    """Without Tune's snapshots of the searcher, as ours."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Not measured."""


def _space(trial: Any) -> None:
    choices = [name for m in SCOPE.modalities for name in SCOPE.choices(m)]
    name = trial.suggest_categorical("architecture", choices)
    for key, domain in space_of(name, SCOPE).items():
        domain.suggest(trial, f"{name}.{key}")


def _measure(record: Record, owner: Any, *names: str, result: str = "") -> None:
    """Adds the CPU time of an object's methods to the search's, and counts the calls of one."""
    for name in names:
        setattr(owner, name, _measured(record, getattr(owner, name), name == result))


def _measured(record: Record, method: Callable[..., Any], counts: bool) -> Callable[..., Any]:
    def measured(*args: Any, **kwargs: Any) -> Any:
        record.results += counts
        started = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            record.search_cpu += time.thread_time() - started

    return measured


def simulate(run: Run, workers: int, trials: int) -> Record:
    """A replay on simulated workers."""
    record = SimulatedActors.record = Record()
    with (
        mock.patch.object(tune_controller, "RayActorManager", SimulatedActors),
        scratch() as folder,
    ):
        run(Path(folder), workers, trials, record)
    return record


def print_busy(trials_a_worker: int) -> None:
    """Simulated workers: their share of time in training."""
    print("simulated workers  trials    busy  controller: share of the time")
    for workers in (1, 2, 4, 8, 16, 32, 64):
        trials = max(90, trials_a_worker * workers)
        record = simulate(ours, workers, trials)
        load = record.controller_cpu / max(record.begun)
        print(f"{workers:17d} {trials:7d} {record.busy(workers):7.1%} {load:11.1%}")


def print_cost(name: str, run: Run, trials: int, workers: int = 64) -> None:
    """CPU time a result, in blocks of a thousand trials."""
    record = simulate(run, workers, trials)
    print(f"{name}, {workers} simulated workers: CPU ms a result in the search, Tune; in all, wall")
    last, first = (0, 0.0, 0.0, 0.0), None
    for number, block in enumerate(record.blocks, start=1):
        results, search, cpu, wall = (now - then for now, then in zip(block, last, strict=True))
        last, first = block, first or search / results
        milliseconds = [1000 * x / results for x in (search, cpu - search, cpu, wall)]
        columns = " ".join(f"{x:7.2f}" for x in milliseconds)
        ratio = search / results / first
        print(f"  trials to {number * 1000:6d}: {columns}   search against first {ratio:5.2f}")
    print(f"  busy {record.busy(workers):.1%}")


def print_ray(workers: int, seconds: float, speed: float) -> None:
    """Real Ray on this machine, with trials that sleep: their share of time asleep."""
    connection.start_ray(None, workers, dashboard=False)
    try:
        with mock.patch.object(tuner, "run_trial", replay_trial), scratch() as scratched:
            folder = Path(scratched)
            for name in ("slept", "logs"):
                (folder / name).mkdir()
            search = deal(folder, trials=1_000_000)
            cpu, begin = time.process_time(), time.time()
            (folder / "speed").write_text(str(speed))
            context = context_of(str(folder))
            tuner.run_search(search, context, kept(folder), workers=workers, seconds=seconds)
            end, cpu = begin + seconds, time.process_time() - cpu
            trials = search.all_trials()
            slept = {
                file.name: tuple(map(float, file.read_text().split()))
                for file in (folder / "slept").iterdir()
                if not file.suffix
            }
    finally:
        connection.stop_ray()
    running = {name for name, trial in trials.items() if not trial.state.is_finished()}
    trained = [(a, end if name in running else b) for name, (a, b) in slept.items()]
    if len(trained) < workers:
        print(f"{workers:11d} {speed:6.1f} only {len(trained)} workers began in {seconds:.0f} s")
        return
    all_begun = sorted(a for a, _ in trained)[workers - 1]
    print(
        f"{workers:11d} {speed:6.1f} {len(trials) - len(running):7d} "
        f"{busy_share(trained, workers, all_begun, end):7.1%} "
        f"{all_begun - begin:9.1f} {cpu / seconds:11.1%}"
    )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="A recorded search on 1 to 64 workers.")
    parser.add_argument("part", nargs="?", choices=("busy", "cost", "ray"))
    parser.add_argument("--trials", type=int, default=10_000, help="of the table of costs")
    parser.add_argument("--plain-trials", type=int, default=2000, help="of the comparison")
    parser.add_argument("--trials-a-worker", type=int, default=20, help="of simulated workers")
    parser.add_argument("--seconds", type=float, default=120, help="of each replay on Ray")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if arguments.part in (None, "busy", "cost"):
        connection.start_ray(None, None, dashboard=False)
        try:
            if arguments.part != "cost":
                print_busy(arguments.trials_a_worker)
            if arguments.part != "busy":
                print_cost("ours", ours, arguments.trials)
                print_cost("OptunaSearch and ASHA", plain, arguments.plain_trials)
        finally:
            connection.stop_ray()
    if arguments.part in (None, "ray"):
        print("Ray workers  speed  trials    busy  ramp-up s  controller: share of a core")
        for workers, speed in RAY_REPLAYS:
            print_ray(workers, arguments.seconds, speed)


if __name__ == "__main__":
    main()
