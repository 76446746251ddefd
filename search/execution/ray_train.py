"""Train one trial on several workers of Ray Train."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import Any, cast

import ray.train
from ray.runtime_context import RuntimeContext
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from datasets.clips import DataError
from datasets.storage.synced_folder import is_url
from search.execution.recorder import TrialLog
from search.execution.reports import Report, StorageError, failed, failed_by
from search.execution.trial_process import train_part
from search.trial_spec import ACTOR_CPUS, ATTEMPTS, TrialSpec
from search.versions import private_names

# Private names of Ray Train's second version: its controller runs in this process instead of an actor of its
# own, whose start and end cost more than a small trial (docs/performance.md). A `TorchTrainer` that
# can do so, or that is stopped from outside without a leaked placement group, would replace all of them.
with private_names("ray"):
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.callbacks.state_manager import StateManagerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.controller.state import AbortedState
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
    from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
        PlacementGroupHandle,
    )

    for owner, overridden in (
        (TorchTrainer, "_create_default_callbacks"),
        (TorchTrainer, "_initialize_and_run_controller"),
        (WorkerGroup, "_create_placement_group"),
        (TrainController, "_set_state"),
        (RuntimeContext, "current_actor"),
    ):
        getattr(owner, overridden)

_STALLED_SECONDS = 1800
"""After so long without its fellows a worker gives up; one may still be filling its cache."""

_LOOK_UP_S = 0.5
"""How long a trial that Tune has stopped may go on; without it, until its next rung."""


def train_on_workers(spec: TrialSpec) -> Iterator[Report]:
    """Trains one trial on Ray Train workers; yields the first one's reports, or a failure's."""
    reports: Queue[Report | None] = Queue(maxsize=1)
    trainer = _trainer(spec, reports)

    def fit() -> None:
        if failure := _fit(trainer):
            reports.put(failure)
        reports.put(None)

    thread = Thread(target=fit, name="trainer", daemon=True)
    thread.start()
    try:
        while (report := _next(reports)) is not None:
            print(f"{spec.title}: {report}", flush=True)
            yield report
    finally:
        trainer.abort()  # Tune needs no more of it, or it has ended
    thread.join(timeout=10)


def _next(reports: Queue[Report | None]) -> Report | None:
    """Waits for the next report. Ray stops a task by a signal that wakes no lock, so it looks up now and then."""
    while True:
        with suppress(Empty):
            return reports.get(timeout=_LOOK_UP_S)


def _fit(trainer: TrialTrainer) -> Report | None:
    try:
        # Not from its metrics: those are of the last checkpoint, and there is none.
        failure: Report | None = trainer.fit().return_value
        return failure
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {})
        if failures:
            return failed_by(next(iter(failures.values())))
        # What went wrong in the controller stands at the end of its traceback.
        traceback.print_exc()
        return failed([line.strip() for line in str(error).splitlines() if line.strip()][-1][:300])
    except Exception as error:
        if trainer.aborted:
            return None
        traceback.print_exc()
        return failed_by(error)


def _trainer(spec: TrialSpec, reports: Queue[Report | None]) -> TrialTrainer:
    context, gpus = spec.context, spec.gpus
    resources = {"CPU": context.cpus_per_trial - ACTOR_CPUS, **({"GPU": gpus} if gpus else {})}
    return TrialTrainer(
        train_on_worker,
        train_loop_config={"spec": spec},
        torch_config=TorchConfig(timeout_s=_STALLED_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=context.workers_per_trial,
            use_gpu=gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=spec.title,
            **_storage(context.run),
            callbacks=[_PassOn(reports)],
            # A worker that is preempted is replaced, and all go on from the checkpoint.
            failure_config=ray.train.FailureConfig(max_failures=ATTEMPTS - 1),
        ),
    )


def _storage(run: str) -> dict[str, Any]:
    """Where Ray Train keeps its own records: where every worker may write."""
    if not is_url(run):
        return {"storage_path": f"{run}/ray/train"}
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    system, path = fsspec.core.url_to_fs(f"{run}/ray/train")
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(system))}


def train_on_worker(config: dict[str, TrialSpec]) -> Report | None:
    """`train_loop_per_worker`: trains this worker's part, in step with its fellows.

    Returns:
        The report of a failure that would come again, or None.
    """
    from search.training.device import is_out_of_memory
    from search.training.distributed import Workers
    from search.training.fold_trainer import NonFiniteLossError

    spec, workers = config["spec"], Workers.here()
    log = TrialLog(spec)
    try:
        for report in train_part(spec, log, workers):
            # Ray waits here for every worker; the first one's report is the one that counts.
            ray.train.report(dict(report))
    except Exception as error:
        # A diverged network has diverged on all workers. Else the fellows of one wait for it.
        known = is_out_of_memory(error) or isinstance(error, StorageError | DataError)
        alone = workers.count == 1 and known
        if not alone and not isinstance(error, NonFiniteLossError):
            raise
        if not isinstance(error, StorageError):
            log.write(traceback.format_exc())
        return failed_by(error)
    return None


class TrialTrainer(TorchTrainer):
    """A `TorchTrainer` that trains one trial, as cheaply as it can.

    Attributes:
        aborted: Whether it was asked to end.
    """

    aborted = False
    _controller: TrainController | None = None

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._places: list[PlacementGroupHandle] = []

    def abort(self) -> None:
        """Ends the workers, if they have not ended, and gives up the place that they have or wait for."""
        controller = self._controller
        if controller is not None and controller.get_state().is_terminal():
            return
        self.aborted = True
        if controller is not None:
            controller._set_state(AbortedState())
            with suppress(Exception):  # they are about to end by themselves
                if group := controller.get_worker_group():
                    group.abort()
        self._give_up_places()

    def reserve(self, make: Callable[[], PlacementGroupHandle]) -> PlacementGroupHandle:
        """Makes a placement group, unless the trial was stopped.

        Raises:
            SystemExit: It was. The controller would try again after any other exception.
        """
        if not self.aborted:
            self._places.append(make())
        if self.aborted:
            self._give_up_places()
            raise SystemExit
        return self._places[-1]

    def _give_up_places(self) -> None:
        for place in self._places:
            with suppress(Exception):  # it is gone already, or Ray is
                place.shutdown()

    def _create_default_callbacks(self) -> list[Any]:
        # The cleaner frees what a controller leaves that dies; what this one leaves, Ray frees
        # with the process that made it. The state is for a page that Ray's own dashboard lacks,
        # and wants the controller to be an actor.
        found = super()._create_default_callbacks()
        left_out = (PlacementGroupCleanerCallback, StateManagerCallback)
        return [each for each in found if not isinstance(each, left_out)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        # Workers are told which actor their controller is, to ask it for checkpoints that were
        # reported to it. Here it is none, and has none: `search/training/checkpoint.py` keeps them.
        RuntimeContext.current_actor = property(lambda self: None)
        self._controller = TrainController(**parts)
        self._controller.worker_group_cls = type("_OwnGroup", (_TrialGroup,), {"trainer": self})
        asyncio.run(self._controller.run())
        return self._controller.get_result()


class _TrialGroup(WorkerGroup):
    """Workers whose place their trainer knows: a group that waits for it would outlive the trial."""

    trainer: TrialTrainer

    def _create_placement_group(self, *given: Any) -> PlacementGroupHandle:
        return self.trainer.reserve(lambda: WorkerGroup._create_placement_group(self, *given))


class _PassOn(UserCallback):
    """Hands the first worker's reports on, and waits until the one before was taken."""

    def __init__(self, reports: Queue[Report | None]) -> None:
        self.reports = reports

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: workers get a copy with the run's settings, which passes nothing on."""
        return {}

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Take the reports of all workers, at the same rung."""
        self.reports.put(cast(Report, dict(metrics[0])))
