"""The Ray side of a trial, in two ways around one training function.

A reused Tune actor starts one named task a trial. The task's name is the trial's, so that the
Ray dashboard lists trials by name, each with its own log; Ray reuses the task's process, so
that a trial costs no interpreter start and no import. `actor`: the task trains. `train`: it runs
a Ray Train `TorchTrainer`, on one or more workers, each with its part of the shards.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune

from search.execution.trial_process import train
from search.execution.trial_spec import (
    ACTOR_CPUS,
    ATTEMPTS,
    Spec,
    failed,
    gpus_for,
    take_more,
    title,
)


def run_trial(config: dict[str, Any]) -> None:
    """Tune's trainable: runs the trial as a named task and passes its rungs on."""
    spec: Spec = {key: config[key] for key in ("trial", "modality", "plan", "context")}
    deaths = 0
    while deaths < ATTEMPTS:
        print(f"{title(spec)}, attempt {deaths + 1} of {ATTEMPTS}", flush=True)  # the actor's log
        # No more than the next rung is begun before this one was judged.
        rungs = start(spec, _generator_backpressure_num_objects=1)
        try:
            if not _pass_on(rungs, spec):
                return
        except ray.exceptions.RayError as error:
            deaths += 1
            if deaths == ATTEMPTS:
                tune.report(failed(f"its process died {ATTEMPTS} times: {type(error).__name__}"))
        finally:
            ray.cancel(rungs, force=False)


def start(spec: Spec, **options: Any) -> Any:
    """Starts a trial's task, as its runner would have it; returns its reports as they come."""
    context = spec["context"]
    options |= {"name": title(spec), "scheduling_strategy": "DEFAULT"}
    if context["runner"] == "train":
        return train_with_trainer.options(**options).remote(spec)
    options |= {"num_cpus": context["cpus_per_trial"] - ACTOR_CPUS, "num_gpus": gpus_for(spec)}
    return train_trial.options(**options).remote(spec)


def _pass_on(rungs: Any, spec: Spec) -> bool:
    """Reports a trial's rungs to Tune; True if it is to be started again, with more of a GPU."""
    for rung in rungs:
        report = ray.get(rung)
        print(f"{title(spec)}: {_in_words(report)}", flush=True)
        if report.get("out_of_memory") and take_more(spec):
            return True
        tune.report(report)
        if report.get("failed"):
            _see_off(rungs)
    return False


def _in_words(report: dict[str, Any]) -> str:
    return report.get("failed") or f"{report['percent']} %, score {report['score']:.4f}"


def _see_off(rungs: Any) -> None:
    """Lets a trial that told why it failed end by its own error: the dashboard then says FAILED."""
    try:
        for rung in rungs:
            ray.get(rung)
    except ray.exceptions.RayTaskError:
        pass


class TrialFailedError(RuntimeError):
    """How the task of a failed trial ends, once the failure was told."""


@ray.remote(num_cpus=1, num_returns="streaming", max_retries=0)
def train_trial(spec: Spec) -> Iterator[dict[str, Any]]:
    """Trains one trial in this process."""
    yield from _ending_as_told(train(spec))


@ray.remote(num_cpus=0, num_returns="streaming", max_retries=0)
def train_with_trainer(spec: Spec) -> Iterator[dict[str, Any]]:
    """Trains one trial on Ray Train workers."""
    from search.execution.ray_train import train_on_workers

    yield from _ending_as_told(train_on_workers(spec))


def _ending_as_told(reports: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Ray cancels a task by this signal, which whatever a shell starts with & ignores.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for report in reports:
        yield report
        if report.get("failed"):
            raise TrialFailedError(report["failed"])
