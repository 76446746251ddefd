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

from search.execution.reports import Report, failed
from search.execution.trial_process import train
from search.trial_spec import ACTOR_CPUS, ATTEMPTS, TrialSpec


def run_trial(config: dict[str, Any]) -> None:
    """Tune's trainable: runs the trial as a named task and passes its rungs on."""
    spec: TrialSpec = config["spec"]
    deaths = 0
    while deaths < ATTEMPTS:
        print(f"{spec.title}, attempt {deaths + 1} of {ATTEMPTS}", flush=True)  # the actor's log
        # No more than the next rung is begun before this one was judged.
        rungs = start(spec, _generator_backpressure_num_objects=1)
        try:
            if not _pass_on(rungs, spec):
                return
            spec = spec.with_more_memory() or spec
        except ray.exceptions.RayError as error:
            deaths += 1
            if deaths == ATTEMPTS:
                tune.report(
                    dict(failed(f"its process died {ATTEMPTS} times: {type(error).__name__}"))
                )
        finally:
            ray.cancel(rungs, force=False)


def start(spec: TrialSpec, **options: Any) -> Any:
    """Start a trial's task with the run's runner; return its reports as they come."""
    options |= {"name": spec.title, "scheduling_strategy": "DEFAULT"}
    if spec.context.runner == "train":
        return train_with_trainer.options(**options).remote(spec)
    options |= {"num_cpus": spec.context.cpus_per_trial - ACTOR_CPUS, "num_gpus": spec.gpus}
    return train_trial.options(**options).remote(spec)


def _pass_on(rungs: Any, spec: TrialSpec) -> bool:
    """Reports a trial's rungs to Tune; True if it is to be started again, with more of a GPU."""
    for rung in rungs:
        report: Report = ray.get(rung)
        print(f"{spec.title}: {_in_words(report)}", flush=True)
        if report.get("out_of_memory") and spec.with_more_memory():
            return True
        tune.report(dict(report))
        if report.get("failed"):
            _see_off(rungs)
    return False


def _in_words(report: Report) -> str:
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
def train_trial(spec: TrialSpec) -> Iterator[Report]:
    """Trains one trial in this process."""
    yield from _ending_with_failure(train(spec))


@ray.remote(num_cpus=0, num_returns="streaming", max_retries=0)
def train_with_trainer(spec: TrialSpec) -> Iterator[Report]:
    """Trains one trial on Ray Train workers."""
    from search.execution.ray_train import train_on_workers

    yield from _ending_with_failure(train_on_workers(spec))


def _ending_with_failure(reports: Iterator[Report]) -> Iterator[Report]:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Ray cancels a task by this signal, which whatever a shell starts with & ignores.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for report in reports:
        yield report
        if report.get("failed"):
            raise TrialFailedError(report["failed"])
