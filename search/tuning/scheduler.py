"""Successive halving: which trials go on at a rung."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import TrialScheduler

from search.tuning.searcher import ModalitySearcher


class HalvingScheduler(TrialScheduler):
    """Successive halving from the journal's rungs, within a modality."""

    def __init__(self, search: ModalitySearcher) -> None:
        super().__init__()
        self.search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Writes the rung, and stops a trial that is in the worse half of its modality."""
        if result.get("failed"):
            return str(TrialScheduler.CONTINUE)
        stop = self.search.report_rung(
            trial.trial_id, int(result["percent"]), float(result["score"])
        )
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing to keep."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Nothing to keep."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing to keep."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing to keep."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """First come, first served."""
        # Of the live trials alone, in the order in which they were asked for.
        waiting = {
            trial.trial_id: trial
            for trial in tune_controller.get_live_trials()
            if trial.status in {"PENDING", "PAUSED"}
        }
        return next((waiting[name] for name in self.search.running if name in waiting), None)

    def debug_string(self) -> str:
        """For Tune's own output."""
        return "successive halving from the journal"

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as the search."""
        return {}
