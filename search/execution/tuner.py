"""Run trials on Ray: the search through Ray Tune, and the fresh seeds of its winners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import tune

from search.cluster.connection import wait_for
from search.cluster.placement import too_few
from search.config import ConfigError
from search.execution.reports import Report, failed
from search.execution.trial_task import run_trial, start
from search.monitoring.interrupt import Interrupt
from search.persistence.run_folder import RunFolder
from search.trial_spec import ACTOR_CPUS, ATTEMPTS, RunContext, TrialSpec
from search.tuning.scheduler import HalvingScheduler
from search.tuning.searcher import ModalitySearcher


def trials_at_once(
    requested: int | None,
    *,
    device: str,
    runner: str,
    workers_per_trial: int,
    gpu_share: Mapping[str, float],
    wait_seconds: float,
    on_wait: Callable[[str], None],
) -> int:
    """How many trials run at the same time: as asked, or as many as fit.

    On a cluster as many as fit when its autoscaler has started all that it may: a trial that
    has no place yet is what it starts hosts for.

    Args:
        requested: By the user; None for as many as fit.
        device: cpu or cuda.
        runner: actor or train.
        workers_per_trial: Ray Train workers of one trial.
        gpu_share: Cost key → share of a GPU that such a trial takes.
        wait_seconds: How long to wait for what is not there; 0 on this machine alone.
        on_wait: Told what is waited for.

    Raises:
        ConfigError: What was asked for is not there, and did not come.
    """
    per_trial = {"CPU": float(workers_per_trial)}  # the smallest trial takes a core a worker
    if device == "cuda":
        alone = workers_per_trial > 1
        share = 1.0 if alone else min(gpu_share.values(), default=1.0)
        per_trial["GPU"] = workers_per_trial * share
    # In processes of ours trials take turns, if the user wants more than there is room for.
    at_once = (requested or 1) if runner == "train" else 1
    fitting = []
    for kind, each in per_trial.items():
        must = at_once * each
        found = wait_for(kind, must, wait_seconds, on_wait=on_wait)
        if found.there < must:
            waited = f", also after {wait_seconds / 60:g} min" if wait_seconds else ""
            where = f"Ray has {found.there:g} on {_hosts()}{waited}"
            raise ConfigError(too_few(at_once, workers_per_trial, kind, must, found.there, where))
        fitting.append(int(found.possible / each))
    return requested or max(1, min(fitting))


def _hosts() -> str:
    count = sum(bool(node["Alive"]) for node in ray.nodes())
    return "1 host" if count == 1 else f"{count} hosts"


def run_search(
    search: ModalitySearcher,
    context: RunContext,
    run: RunFolder,
    *,
    workers: int,
    seconds: float,
    interrupt: Interrupt | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Run trials until the search has no more, the time is over, or the user asks to stop.

    What runs then stays in the journal to be resumed. The callbacks see every trial.

    Args:
        search: Proposes trials and judges their reports.
        context: Of every trial.
        run: Its folder.
        workers: Trials at the same time.
        seconds: The time for all of them.
        interrupt: Whether the user asks to stop.
        callbacks: Tune's.
    """
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": ACTOR_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=_WithContext(search, context, workers),
            scheduler=HalvingScheduler(search),
            num_samples=-1,
            max_concurrent_trials=None,
            reuse_actors=True,
            time_budget_s=seconds,
            trial_name_creator=lambda trial: (
                trial.config["spec"].name if trial.config else trial.trial_id
            ),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run.path.resolve() / "ray"),
            verbose=0,
            stop=_AskedTo(interrupt or Interrupt()),
            callbacks=list(callbacks),
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
        """Single trials are stopped by the scheduler; one that could not write ends the run."""
        if result.get("storage"):
            self.interrupt.broken = str(result["failed"])
        return False

    def stop_all(self) -> bool:
        """Asked at every step of the experiment."""
        return self.interrupt.now


class _WithContext(tune.search.ConcurrencyLimiter):
    """At most `workers` trials at a time, each with the run's context."""

    def __init__(self, search: ModalitySearcher, context: RunContext, workers: int) -> None:
        super().__init__(search, max_concurrent=workers)
        self.context = context

    def suggest(self, trial_id: str) -> Any:
        """Return the search's proposal as Tune's configuration: one specification."""
        proposal = super().suggest(trial_id)
        if not isinstance(proposal, dict):
            return proposal
        return {"spec": TrialSpec(**proposal, context=self.context)}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's own snapshot is never restored."""
        return {}


def run_seeds(
    specs: list[TrialSpec],
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
    running: dict[Any, tuple[TrialSpec, int, Any]] = {}
    while (waiting or running) and not interrupt.now:
        while waiting and len(running) < workers:
            spec, attempt = waiting.pop(0)
            stream = start(spec)
            running[stream.completed()] = (spec, attempt, stream)  # dropping it would cancel it
        done, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
        for reference in done:
            spec, attempt, stream = running.pop(reference)
            report, died = _failure(stream)
            if died and attempt < ATTEMPTS:
                waiting.insert(0, (spec, attempt + 1))
                continue
            if report and report.get("out_of_memory") and (more := spec.with_more_memory()):
                waiting.insert(0, (more, attempt))
                continue
            why = str(report["failed"]) if report else None
            if report and report.get("storage"):
                interrupt.broken = str(why)
                continue
            run.mirror.forget_checkpoint(spec.name)
            on_done(spec.name, why)
    for _, _, stream in running.values():
        ray.cancel(stream, force=False)


def _failure(stream: Any) -> tuple[Report | None, bool]:
    """The report of a training that came to nothing, and whether because its process died."""
    reports: list[Report] = []
    try:
        for reference in stream:
            reports.append(ray.get(reference))
    except ray.exceptions.RayError as error:
        if not (reports and reports[-1].get("failed")):  # else it told, and ended by its own error
            return failed(f"its process died {ATTEMPTS} times: {type(error).__name__}"), True
    return next((report for report in reports if report.get("failed")), None), False
