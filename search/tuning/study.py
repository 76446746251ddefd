"""One Optuna study in the run's journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search.space.scope import SearchScope
from search.space.suggest import chosen_architecture, known_good, suggest_config
from search.tuning.history import History
from search.tuning.objective import trial_name
from search.tuning.sampler import ReseededSampler
from search.versions import private_names

FIRST_STOP_PERCENT = 50
"""Nothing is stopped before: earlier scores say little of final ones (docs/architecture.md)."""

KEEP_SHARE = 0.5

MIN_FINISHED = 3
"""A modality stops nothing until it has this many finished experts."""


def open_journal(path: Path) -> JournalStorage:
    """The run's journal; a plain file, safe on network file systems."""
    return JournalStorage(JournalFileBackend(str(path)))


class StudySearch:
    """One modality's study: proposes trials, and records their rungs and how they ended.

    A trial that was stopped is PRUNED with its rungs; one that failed, or has no finite score, is FAIL.

    Args:
        modality: audio, video or early.
        scope: What may be searched.
        storage: The run's journal.
        seed: Of the proposals.
        further_worth: Number of a trial that finishes → what it is worth beyond its own score.
    """

    def __init__(
        self,
        modality: str,
        scope: SearchScope,
        storage: JournalStorage,
        seed: int,
        further_worth: Callable[[int], float] = lambda number: 0.0,
    ) -> None:
        self.modality, self.scope, self.further_worth = modality, scope, further_worth
        self.history = History()

        self.study = optuna.create_study(
            storage=storage,
            sampler=ReseededSampler(seed, self.history),
            pruner=NopPruner(),
            study_name=modality,
            direction="maximize",
            load_if_exists=True,
        )
        self._storage, self._trials = storage, dict[str, optuna.Trial]()
        with private_names("optuna"):
            self._study_id = self.study._study_id
        for trial in self.study.get_trials(deepcopy=False):
            self.history.take(trial)
        known = {chosen_architecture(params) for params in self._given()}
        for params in known_good(modality, scope):
            if chosen_architecture(params) not in known:
                self.study.enqueue_trial(params)
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        self._waiting = states.count(TrialState.WAITING)

    def _given(self) -> Iterator[dict[str, Any]]:
        """Parameters of every trial so far, of those that are still waiting too."""
        for trial in self.study.get_trials(deepcopy=False):
            yield {**trial.system_attrs.get("fixed_params", {}), **trial.params}

    def asked(self) -> list[FrozenTrial]:
        """Trials that were handed out, in order."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    @property
    def exhausted(self) -> bool:
        """Whether every given configuration was asked for; a search has no end of them."""
        return bool(self.scope.given) and not self._waiting

    # Private names of Optuna, here and in `ask`: `_study_id` and `_trial_id`. `study.ask` and `study.trials`
    # go through all trials, which a search of thousands cannot pay at every event; a public
    # `study.ask` that takes no waiting trial, and `study.get_trial(number)`, would replace them.
    def _note(self, trial: optuna.Trial) -> None:
        """Tell the history what the journal now says of a trial."""
        self.history.take(self._storage.get_trial(trial._trial_id))

    def adopt(self, trial_id: str, frozen: FrozenTrial) -> dict[str, Any]:
        """Takes a trial over that was running when an earlier process died."""
        self._trials[trial_id] = optuna.Trial(self.study, frozen._trial_id)
        return self.suggest(trial_id)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Propose one configuration: the trial's name, its modality and its plan."""
        if trial_id not in self._trials:
            self._trials[trial_id] = self._ask()
        trial = self._trials[trial_id]
        plan = suggest_config(trial, self.modality, self.scope)
        self._note(trial)
        return {
            "trial": trial_name(self.modality, trial.number),
            "modality": self.modality,
            "plan": plan,
        }

    def _ask(self) -> optuna.Trial:
        """A trial that waits, or a new one; `study.ask` goes through all trials to find none."""
        if self._waiting:
            self._waiting -= 1
            return self.study.ask()
        return optuna.Trial(self.study, self._storage.create_new_trial(self._study_id))

    def report_rung(self, trial_id: str, percent: int, score: float) -> bool:
        """Writes a rung into the journal; True if the trial is to be stopped."""
        trial = self._trials[trial_id]
        known = self.history.scores[trial.number]
        if any(later > percent for later in known):
            return False  # a trial that was interrupted, and went on after this rung then
        if percent not in known:
            trial.report(score, percent)
            self._note(trial)
        if percent < FIRST_STOP_PERCENT or percent >= 100 or self.scope.given:
            return False
        if self.history.counts[TrialState.COMPLETE] < MIN_FINISHED:
            return False
        others, better = self.history.rivals(trial.number, percent, score)
        return better >= max(1, math.ceil((others + 1) * KEEP_SHARE))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna how the trial ended; of a finished one its score and its worth beyond that."""
        trial = self._trials.pop(trial_id, None)
        if trial is None:
            return
        reason = (result or {}).get("failed") or ("the trial's process died" if error else "")
        score = (result or {}).get("score")
        if reason or score is None or not math.isfinite(score):
            trial.set_user_attr("failed", reason or "no finite score")
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            for key in ("seconds", "architecture"):
                trial.set_user_attr(key, (result or {}).get(key))
            if int((result or {})["percent"]) >= 100:
                if further := self.further_worth(trial.number):
                    trial.set_user_attr("further_worth", further)
                self.study.tell(trial, score + further)
            else:
                self.study.tell(trial, state=TrialState.PRUNED)
        self._note(trial)
