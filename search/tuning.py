"""Runs trials on Ray: the search through Ray Tune, and the fresh seeds of its winners."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read by Ray when it is imported.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # the journal is the truth
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "60")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # the dashboard's Train data
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")  # reports come on this poll
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import tune

from search.config import ConfigError
from search.folder import RunFolder
from search.interrupt import Interrupt
from search.sampler import DealtSearch, HalvingScheduler
from search.trial import (
    ACTOR_CPUS,
    ATTEMPTS,
    Spec,
    describe,
    run_trial,
    train_trial,
    train_with_trainer,
)

_REACH_S = 10.0
"""How long a cluster may take to accept a connection."""

EXCLUDES = [
    ".git",
    ".venv",
    "runs",
    "shards",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "*.tar",
]
"""Never sent to a cluster with the code."""


def start_ray(address: str | None, workers: int | None, *, dashboard: bool) -> str | None:
    """Connects to a cluster (`address`, or RAY_ADDRESS), or starts Ray on this machine.

    Returns:
        The dashboard's URL, or None.

    Raises:
        ConfigError: If the cluster cannot be joined.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        runtime = {
            "working_dir": str(Path(__file__).parent.parent),
            "excludes": EXCLUDES,
            "worker_process_setup_hook": "search.network.use_cluster_interface",
        }
        _check_reachable(address)
        try:
            context = ray.init(address, runtime_env=runtime, **common)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(
                f"Cannot join the Ray cluster at '{address}': {error}. "
                "It must run, with the same Ray version; with token authentication "
                "RAY_AUTH_MODE=token must be set here and on its hosts."
            ) from error
    else:
        cores = len(os.sched_getaffinity(0))
        context = ray.init(
            address="local",
            num_cpus=max(cores, workers or 0),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            # Trials exchange a few numbers; their data lies in the cache.
            object_store_memory=100 * 2**20,
            **common,
        )
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _check_reachable(address: str) -> None:
    """Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), _REACH_S).close()
    except OSError as error:
        raise ConfigError(
            f"Cannot join the Ray cluster at '{address}': {error.strerror or error}. "
            "Is it up (ray status, on its head), and can this host reach it?"
        ) from error


def stop_ray() -> None:
    """Ends what `start_ray` started, or leaves the cluster."""
    ray.shutdown()


def trials_at_once(
    device: str, runner: str, workers_per_trial: int, asked: int | None = None
) -> int:
    """How many trials run at the same time: as many as fit, or as asked.

    Raises:
        ConfigError: If Ray Train workers are asked for that do not fit: they would wait for ever.
    """
    resources = ray.cluster_resources()
    kinds = ("CPU", "GPU") if device == "cuda" else ("CPU",)
    there = {kind: int(resources.get(kind, 0)) for kind in kinds}
    scarce = min(there, key=lambda kind: there[kind])
    fitting = there[scarce] // workers_per_trial
    if runner == "train" and (asked or 1) > fitting:
        trials = f"{asked or 1} trials of" if (asked or 1) > 1 else "A trial of"
        raise ConfigError(
            f"{trials} {workers_per_trial} workers would take "
            f"{(asked or 1) * workers_per_trial} {scarce}s, Ray has {there[scarce]} here. Take fewer "
            "--workers-per-trial or --workers, or join a larger cluster (--address)."
        )
    return asked or max(1, fitting)


def run_search(
    search: DealtSearch,
    context: dict[str, Any],
    run: RunFolder,
    *,
    seconds: float,
    interrupt: Interrupt | None = None,
) -> None:
    """Runs trials until the search has no more, the time is over, or the user asks to stop.

    What runs then stays in the journal to be resumed.
    """
    search.on_end = run.mirror.forget_checkpoint
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": ACTOR_CPUS}),
        param_space={"context": context},
        tune_config=tune.TuneConfig(
            search_alg=_WithContext(search, context),
            scheduler=HalvingScheduler(search),
            num_samples=-1,
            max_concurrent_trials=None,
            reuse_actors=True,
            time_budget_s=seconds,
            trial_name_creator=lambda trial: str(trial.config.get("trial", trial.trial_id)),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run.path.resolve() / "ray"),
            verbose=0,
            stop=_AskedTo(interrupt or Interrupt()),
            # The actor that waits for a trial died with its host: another one takes the trial on.
            failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
        ),
    )
    tuner.fit()


class _AskedTo(tune.Stopper):
    """Ends the experiment when the user asks to."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Single trials are stopped by the scheduler."""
        return False

    def stop_all(self) -> bool:
        """Asked at every step of the experiment."""
        return self.interrupt.asked


class _WithContext(tune.search.ConcurrencyLimiter):
    """At most `workers` trials at a time, each with the run's context."""

    def __init__(self, search: DealtSearch, context: dict[str, Any]) -> None:
        super().__init__(search, max_concurrent=int(context["workers"]))
        self.context = context

    def suggest(self, trial_id: str) -> Any:
        """The search's configuration, completed."""
        config = super().suggest(trial_id)
        return {**config, "context": self.context} if isinstance(config, dict) else config

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's own snapshot is never restored."""
        return {}


def run_seeds(
    specs: list[Spec],
    run: RunFolder,
    *,
    workers: int,
    on_done: Callable[[str, str | None], None],
    interrupt: Interrupt,
) -> None:
    """Trains given configurations to their end, as named tasks, a few at a time.

    Args:
        specs: Each with a context of its own seed.
        run: Its folder.
        workers: At the same time.
        on_done: Called with the trial's name and None, or why it failed.
        interrupt: Once asked, what runs is stopped, to be continued from its checkpoint.
    """
    waiting = [(spec, 1) for spec in specs]
    running: dict[Any, tuple[Spec, int, Any]] = {}
    while (waiting or running) and not interrupt.asked:
        while waiting and len(running) < workers:
            spec, attempt = waiting.pop(0)
            stream = _start(spec)
            running[stream.completed()] = (spec, attempt, stream)  # dropping it would cancel it
        done, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
        for reference in done:
            spec, attempt, stream = running.pop(reference)
            why, died = _failure(stream)
            if died and attempt < ATTEMPTS:
                waiting.insert(0, (spec, attempt + 1))
                continue
            run.mirror.forget_checkpoint(spec["trial"])
            on_done(spec["trial"], why)
    for _, _, stream in running.values():
        ray.cancel(stream, force=False)


def _start(spec: Spec) -> Any:
    """A trial outside of Tune, as its runner would run it."""
    context, name = spec["context"], f"{spec['trial']} {describe(spec['plan'])}"
    if context["runner"] == "train":
        return train_with_trainer.options(name=name).remote(spec)
    return train_trial.options(
        name=name,
        num_cpus=context["cpus_per_trial"] - ACTOR_CPUS,
        num_gpus=context["gpus_per_trial"],
    ).remote(spec)


def _failure(stream: Any) -> tuple[str | None, bool]:
    """Why a training came to nothing, and whether because its process died."""
    try:
        reports = [ray.get(reference) for reference in stream]
    except ray.exceptions.RayError as error:
        return f"its process died {ATTEMPTS} times: {type(error).__name__}", True
    return next((str(report["failed"]) for report in reports if report.get("failed")), None), False
