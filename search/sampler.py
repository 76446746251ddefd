"""The Optuna bridge: one study a modality in one journal, dealt out in turn to Ray Tune.

The journal is the only truth: which trials exist, their parameters, their score at every
rung, how they ended. Everything here is derived from it, so that a run killed anywhere
continues as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from search.history import History
from search.objective import EnsembleObjective, trial_name
from search.offer import Offer
from search.space import chosen_architecture, known_good, suggest_plan

FIRST_STOP_PERCENT = 50
"""Nothing is stopped before: earlier scores say little of final ones (docs/architecture.md)."""

KEEP_SHARE = 0.5
MIN_FINISHED = 3
"""A modality stops nothing until it has this many finished experts."""


def open_journal(path: Path) -> JournalStorage:
    """The run's journal; a plain file, safe on network file systems."""
    return JournalStorage(JournalFileBackend(str(path)))


class ReseededSampler(BaseSampler):
    """A sampler whose draw depends on seed, trial number, parameter and history alone.

    A sampler that was seeded once repeats its first proposals after a restart. This one is
    reseeded before every draw, so that an interrupted run proposes what the uninterrupted
    one would have, even when it died between two parameters of one trial.

    TPE's cost grows with the trials it sees, so it is shown a bounded part of them.
    """

    def __init__(self, seed: int, history: History) -> None:
        self.seed, self.history = seed, history
        self._joint = self._seeded("")

    def _seeded(self, what: str) -> TPESampler:
        digest = hashlib.sha256(f"{self.seed} {what}".encode()).digest()
        # Groups of parameters that occur together are modelled jointly: the space is conditional.
        return TPESampler(
            seed=int.from_bytes(digest[:4], "little"),
            multivariate=True,
            group=True,
            n_startup_trials=6,
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Any:
        """As TPE; a trial's joint draw comes from a sampler of its own.

        It asks which sets of parameters there are: one trial of each says as much as all.
        """
        self._joint = self._seeded(f"{trial.number}")
        seen: Any = _Seen(study, self.history.first_alike())
        return self._joint.infer_relative_search_space(seen, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> Any:
        """As TPE."""
        return self._joint.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """As TPE, seeded by trial and parameter."""
        sampler = self._seeded(f"{trial.number} {param_name}")
        return sampler.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def _seen(self, study: optuna.Study) -> Any:
        return _Seen(study, self.history.shown())


class _Seen:
    """A study with some of its trials, as its sampler is shown it."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool, states: Container[TrialState], use_cache: bool
    ) -> list[FrozenTrial]:
        """What samplers ask a study for."""
        assert not deepcopy, "copying them would cost more than all else"
        return [trial for trial in self._trials if trial.state in states]


class StudySearch(OptunaSearch):
    """OptunaSearch over one modality's study, telling the truth about how trials ended.

    Ray's own tells a stopped trial as complete with its early score, leaves a NaN running
    for ever and completes an errored trial that has a score. Here a stopped trial is
    PRUNED with its rungs, and NaN and errors are FAIL.
    """

    def __init__(self, modality: str, offer: Offer, storage: JournalStorage, seed: int) -> None:
        self.modality, self.offer = modality, offer
        self.history = History()
        self.further_worth: Callable[[int], float] = lambda number: 0.0

        def space(trial: Any) -> dict[str, Any]:
            return {}  # asked in `suggest`, where the plan is built

        super().__init__(
            space=space,
            metric="score",
            mode="max",
            sampler=ReseededSampler(seed, self.history),
            study_name=modality,
            storage=storage,
        )
        for trial in self.study.get_trials(deepcopy=False):
            self.history.take(trial)
        known = {chosen_architecture(params) for params in self._given()}
        for params in known_good(modality, offer):
            if chosen_architecture(params) not in known:
                self._ot_study.enqueue_trial(params)
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        self._waiting = states.count(TrialState.WAITING)

    def _given(self) -> Iterator[dict[str, Any]]:
        """Parameters of every trial so far, of those that are still waiting too."""
        for trial in self.study.get_trials(deepcopy=False):
            yield {**trial.system_attrs.get("fixed_params", {}), **trial.params}

    @property
    def study(self) -> optuna.Study:
        """The modality's study."""
        study: optuna.Study = self._ot_study
        return study

    def asked(self) -> list[FrozenTrial]:
        """Trials that were handed out, in order."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    @property
    def exhausted(self) -> bool:
        """Whether every given configuration was asked for; a search has no end of them."""
        return bool(self.offer.given) and not self._waiting

    def _note(self, trial: optuna.Trial) -> None:
        """Tells the history what the journal now says of a trial."""
        self.history.take(self._storage.get_trial(trial._trial_id))

    def adopt(self, trial_id: str, frozen: FrozenTrial) -> dict[str, Any]:
        """Takes a trial over that was running when an earlier process died."""
        self._ot_trials[trial_id] = optuna.trial.Trial(self.study, frozen._trial_id)
        return self.suggest(trial_id)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """One configuration, as the trial's JSON."""
        if trial_id not in self._ot_trials:
            self._ot_trials[trial_id] = self._ask()
        trial = self._ot_trials[trial_id]
        plan = suggest_plan(trial, self.modality, self.offer)
        self._note(trial)
        return {
            "trial": trial_name(self.modality, trial.number),
            "modality": self.modality,
            "plan": plan.to_json(),
        }

    def _ask(self) -> optuna.trial.Trial:
        """A trial that waits, or a new one; `study.ask` goes through all trials to find none."""
        if self._waiting:
            self._waiting -= 1
            return self.study.ask()
        return optuna.trial.Trial(self.study, self._storage.create_new_trial(self.study._study_id))

    def report_rung(self, trial_id: str, percent: int, score: float) -> bool:
        """Writes a rung into the journal; True if the trial is to be stopped."""
        trial = self._ot_trials[trial_id]
        known = self.history.scores[trial.number]
        if any(later > percent for later in known):
            return False  # a trial that was interrupted, and went on after this rung then
        if percent not in known:
            trial.report(score, percent)
            self._note(trial)
        if percent < FIRST_STOP_PERCENT or percent >= 100 or self.offer.given:
            return False
        if self.history.counts[TrialState.COMPLETE] < MIN_FINISHED:
            return False
        others, better = self.history.rivals(trial.number, percent, score)
        return better >= max(1, math.ceil((others + 1) * KEEP_SHARE))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Rungs are reported by the scheduler, which also sees the last one of a stopped trial."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna how the trial ended; of a finished one its score and its worth beyond that."""
        trial = self._ot_trials.pop(trial_id, None)
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


class DealtSearch(Searcher):
    """Deals trials to the modalities in turn: fusion needs good experts of each.

    A single study over all of them starves the weaker modality. Trials that were running
    when an earlier process died are taken over first.

    Args:
        offer: What may be searched.
        journal: The run's journal.
        seed: Of the proposals.
        trials: How many in all, over resumed processes too.
        deadline: Monotonic time after which no trial is started.
        on_change: Called whenever a trial starts, reports or ends.
        on_end: Called with the name of a trial that has ended, when the journal says so.
        objective: What a finished trial adds to the ensemble so far; None to count its own score alone.
    """

    def __init__(
        self,
        offer: Offer,
        journal: JournalStorage,
        *,
        seed: int,
        trials: int,
        deadline: float,
        on_change: Callable[[], None] = lambda: None,
        on_end: Callable[[str], None] = lambda name: None,
        objective: EnsembleObjective | None = None,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.offer = offer
        self.parts = {
            m: StudySearch(m, offer, journal, seed + n) for n, m in enumerate(offer.modalities)
        }
        if objective is not None:
            for modality, part in self.parts.items():
                part.further_worth = partial(self._further_worth, objective, modality)
        self.trials, self.deadline = trials, deadline
        self.on_change, self.on_end = on_change, on_end
        self._halted: set[str] = set()
        self.running: dict[str, str] = {}
        self._owner: dict[str, StudySearch] = {}
        self._orphans = [
            (part, frozen)
            for part in self.parts.values()
            for frozen in part.asked()
            if frozen.state == TrialState.RUNNING
        ]

    def _further_worth(self, objective: EnsembleObjective, modality: str, number: int) -> float:
        finished = {name: part.history.finished for name, part in self.parts.items()}
        return objective.weight * objective.gain(modality, number, finished)

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

    def settings(self) -> dict[str, str]:
        """Trial → label of the setting that was given; empty where settings are searched."""
        return (
            {n: str(chosen_architecture(t.params)) for n, t in self.all_trials().items()}
            if self.offer.given
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
        self.on_change()
        return config

    def report_rung(self, trial_id: str, percent: int, score: float) -> bool:
        """See `StudySearch.report_rung`."""
        stop = self._owner[trial_id].report_rung(trial_id, percent, score)
        if stop:
            self._halted.add(trial_id)
        self.on_change()
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
        self.on_change()

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


class HalvingScheduler(TrialScheduler):
    """Successive halving from the journal's rungs, within a modality."""

    def __init__(self, search: DealtSearch) -> None:
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
