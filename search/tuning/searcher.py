"""The searcher that Ray Tune asks: one study a modality in one journal, dealt out in turn.

The journal is the only truth: which trials exist, their parameters, their score at every
rung, how they ended. Everything here is derived from it, so that a run killed anywhere
continues as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.space.scope import SearchScope
from search.space.suggest import chosen_architecture
from search.tuning.objective import EnsembleObjective, trial_name
from search.tuning.study import StudySearch


class ModalitySearcher(Searcher):
    """Deals trials to the modalities in turn: fusion needs good experts of each.

    A single study over all of them starves the weaker modality. Trials that were running
    when an earlier process died are taken over first.

    Args:
        scope: What may be searched.
        journal: The run's journal.
        seed: Of the proposals.
        trials: How many in all, over resumed processes too.
        further: Instead, how many more than the journal has; None for `trials`.
        deadline: Monotonic time after which no trial is started.
        on_end: Called with the name of a trial that has ended, when the journal says so.
        objective: What a finished trial adds to the ensemble so far; None to count its own score alone.
    """

    def __init__(
        self,
        scope: SearchScope,
        journal: JournalStorage,
        *,
        seed: int,
        trials: int,
        deadline: float,
        further: int | None = None,
        on_end: Callable[[str], None] = lambda name: None,
        objective: EnsembleObjective | None = None,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.scope = scope
        self.objective = objective
        self.parts = {
            m: StudySearch(m, scope, journal, seed + n, partial(self._further_worth, m))
            for n, m in enumerate(scope.modalities)
        }
        self.trials = trials if further is None else self.asked() + further
        self.deadline = deadline
        self.on_end = on_end
        self._halted: set[str] = set()
        self.running: dict[str, str] = {}
        self._owner: dict[str, StudySearch] = {}
        self._orphans = [
            (part, frozen)
            for part in self.parts.values()
            for frozen in part.asked()
            if frozen.state == TrialState.RUNNING
        ]

    def _further_worth(self, modality: str, number: int) -> float:
        """Return what a trial that finishes is worth beyond its own score."""
        if self.objective is None:
            return 0.0
        finished = {name: part.history.finished for name, part in self.parts.items()}
        return self.objective.weight * self.objective.gain(modality, number, finished)

    def asked(self) -> int:
        """Trials handed out so far."""
        return sum(part.history.asked for part in self.parts.values())

    def all_trials(self) -> dict[str, FrozenTrial]:
        """Name → trial, of everything handed out."""
        return {
            trial_name(modality, trial.number): trial
            for modality, part in self.parts.items()
            for trial in part.asked()
        }

    def trial(self, name: str) -> tuple[str, FrozenTrial]:
        """A trial's modality, and what the journal has of it."""
        return next(
            (modality, trial)
            for modality, part in self.parts.items()
            for trial in part.asked()
            if trial_name(modality, trial.number) == name
        )

    def modality_of(self, trial_id: str) -> str:
        """The modality of a trial that Tune runs."""
        return self._owner[trial_id].modality

    def settings(self) -> dict[str, str]:
        """Trial → label of the setting that was given; empty where settings are searched."""
        return (
            {n: str(chosen_architecture(t.params)) for n, t in self.all_trials().items()}
            if self.scope.given
            else {}
        )

    def finished(self) -> set[str]:
        """Names of the trials that reached the end of their schedule."""
        return {n for n, trial in self.all_trials().items() if trial.state == TrialState.COMPLETE}

    def failures(self) -> dict[str, str]:
        """Name → reason."""
        return {
            name: str(trial.user_attrs.get("failed", ""))
            for name, trial in self.all_trials().items()
            if trial.state == TrialState.FAIL
        }

    def counts(self) -> dict[str, int]:
        """How trials ended: complete, pruned, failed, unfinished."""
        names = {
            "complete": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "failed": TrialState.FAIL,
            "unfinished": TrialState.RUNNING,
        }
        parts = self.parts.values()
        return {
            name: sum(part.history.counts[state] for part in parts) for name, state in names.items()
        }

    def state_line(self) -> str:
        """Where the search is, for the live line."""
        counts = self.counts()
        best = []
        for modality, part in self.parts.items():
            value = part.history.best
            best.append(f"{modality} –" if value is None else f"{modality} {value:.3f}")
        ended = counts["complete"] + counts["pruned"] + counts["failed"]
        running = ", ".join(sorted(self.running.values()))
        return (
            f"{ended}/{self.trials} trials, {counts['pruned']} stopped early, "
            f"{counts['failed']} failed | best {', '.join(best)} | {running or 'none'}"
        )

    def left(self) -> int:
        """Trials still to be run by this process."""
        return len(self._orphans) + max(0, self.trials - self.asked())

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next configuration, or that the search is over."""
        if self._orphans:
            part, frozen = self._orphans.pop(0)
            self._owner[trial_id] = part
            config = part.adopt(trial_id, frozen)
        elif self.asked() >= self.trials or time.monotonic() > self.deadline:
            return str(Searcher.FINISHED)
        else:
            open_parts = [part for part in self.parts.values() if not part.exhausted]
            if not open_parts:
                return str(Searcher.FINISHED)
            part = min(open_parts, key=lambda p: p.history.asked)
            self._owner[trial_id] = part
            config = part.suggest(trial_id)
        self.running[trial_id] = config["trial"]
        return config

    def report_rung(self, trial_id: str, percent: int, score: float) -> bool:
        """See `StudySearch.report_rung`."""
        stop = self._owner[trial_id].report_rung(trial_id, percent, score)
        if stop:
            self._halted.add(trial_id)
        return stop

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Passes the end on; a trial that the end of the time cut off stays to be resumed."""
        name = self.running.pop(trial_id, None)
        owner = self._owner.get(trial_id)
        ended = error or trial_id in self._halted or _ended_by_itself(result)
        if owner is None or not ended:
            return
        owner.on_trial_complete(trial_id, result, error)
        if name:
            self.on_end(name)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's own snapshot is never restored, the journal is."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Not needed, see `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Not needed, see `__getstate__`."""


def _ended_by_itself(result: dict[str, Any] | None) -> bool:
    """A trial that could not write is not at its end, nor at fault."""
    found = result or {}
    failed = bool(found.get("failed")) and not found.get("storage")
    return failed or int(found.get("percent", 0)) >= 100
