"""Ray Train's trainer, with its controller in the process that calls it.

By itself a `TorchTrainer` inside of Tune starts four processes a trial beside its workers (a
queue, a controller, a cleaner and a watcher), and one that Tune stops costs the actor that
waits for it too. A trial of seconds is mostly that. Here the controller runs where `fit` is
called, in an actor that Tune reuses, and reports go straight to Tune.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray import tune
from ray.train import UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import AbortedState


class TrialTrainer(TorchTrainer):
    """A `TorchTrainer` that trains one trial, as cheaply as it can."""

    def _create_default_callbacks(self) -> list[Any]:
        # The cleaner frees what a controller leaves that dies. What this one leaves, Ray frees
        # with the process that made it.
        found = super()._create_default_callbacks()
        return [each for each in found if not isinstance(each, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        controller = TrainController(**parts)
        try:
            asyncio.run(controller.run())
        finally:
            if not controller.get_state().is_terminal():
                _abort(controller)
        return controller.get_result()


def _abort(controller: TrainController) -> None:
    """Ends the workers of a trial that was stopped."""
    if group := controller.get_worker_group():
        group.abort()
    controller._set_state(AbortedState())


class ReportToTune(UserCallback):
    """Passes the first worker's rungs on; failures are told by who called `fit`."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Waits for Tune's answer; ends the process's trial here if it is to be stopped."""
        if not metrics[0].get("failed"):
            tune.report(dict(metrics[0]))
