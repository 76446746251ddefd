"""History of one study's journal, kept trial by trial instead of read again at every event.

The journal stays the only truth: a `History` is filled from it once and then told whatever
this process writes, so that an event costs the same after ten trials and after ten thousand.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from optuna.trial import FrozenTrial, TrialState

SHOWN = 250
"""So many of the latest finished trials are shown to TPE: from here on its count of good ones
is 25 whatever there are, and those are shown besides (docs/architecture.md)."""

GOOD = 25
"""Most trials that TPE takes for good ones."""


class _Highest:
    """The trials that come last in an order, as many as asked."""

    def __init__(self, size: int, order: Callable[[FrozenTrial], Any]) -> None:
        self.size, self.order = size, order
        self.trials: list[FrozenTrial] = []

    def add(self, trial: FrozenTrial) -> None:
        insort(self.trials, trial, key=self.order)
        del self.trials[: -self.size]


class History:
    """One study: how its trials ended, their scores at every rung, what its sampler is shown.

    Attributes:
        counts: Trials handed out, by state.
        best: The highest score of a trial that finished.
        running: Number → trial.
        finished: Number → its own score, whatever TPE is told of it.
        scores: Number → rung → score, of running trials.
    """

    def __init__(self) -> None:
        self.counts: Counter[TrialState] = Counter()
        self.best: float | None = None
        self.running: dict[int, FrozenTrial] = {}
        self.finished: dict[int, float] = {}
        # A copy: Optuna changes a running trial's own table in place.
        self.scores: dict[int, dict[int, float]] = {}
        self._rungs: defaultdict[int, list[float]] = defaultdict(list)
        self._latest = _Highest(SHOWN, _number)
        self._good = _Highest(GOOD, _goodness)
        self._first_alike: dict[frozenset[str], FrozenTrial] = {}
        # A part of the space that was not tried for long is not forgotten.
        self._latest_alike: defaultdict[frozenset[str], _Highest] = defaultdict(
            lambda: _Highest(GOOD, _number)
        )

    @property
    def asked(self) -> int:
        """Trials that were handed out."""
        return self.counts.total()

    def take(self, trial: FrozenTrial) -> None:
        """Takes in what the journal now says of a trial, until it has ended."""
        if trial.state == TrialState.WAITING:
            return
        if self.running.pop(trial.number, None):
            self.counts[TrialState.RUNNING] -= 1
        self.counts[trial.state] += 1
        known = self.scores.pop(trial.number, {})
        for percent, score in trial.intermediate_values.items():
            if percent not in known:
                insort(self._rungs[percent], _comparable(score))
        if trial.state == TrialState.RUNNING:
            self.running[trial.number] = trial
            self.scores[trial.number] = dict(trial.intermediate_values)
        elif trial.state == TrialState.FAIL:
            for percent, score in trial.intermediate_values.items():
                rung = self._rungs[percent]
                del rung[bisect_left(rung, _comparable(score))]
        else:
            self._latest.add(trial)
            self._good.add(trial)
            kind = frozenset(trial.distributions)
            self._latest_alike[kind].add(trial)
            self._first_alike[kind] = min(self._first_alike.get(kind, trial), trial, key=_number)
            if trial.value is not None:
                score = trial.intermediate_values.get(100, trial.value)
                self.finished[trial.number] = score
                self.best = score if self.best is None else max(self.best, score)

    def rivals(self, number: int, percent: int, score: float) -> tuple[int, int]:
        """How many other trials reached a rung and have not failed; how many beat the score there."""
        rung = self._rungs[percent]
        own = self.scores[number].get(percent)
        others = len(rung) - (own is not None)
        if math.isnan(score):
            return others, 0
        return others, len(rung) - bisect_right(rung, score) - (own is not None and own > score)

    def shown(self) -> list[FrozenTrial]:
        """Return the trials that a sampler sees, by number: all, as long as `SHOWN` or fewer have finished."""
        kept = [self._latest, self._good, *self._latest_alike.values()]
        trials = {trial.number: trial for some in kept for trial in some.trials}
        return [trial for _, trial in sorted((trials | self.running).items())]

    def first_alike(self) -> list[FrozenTrial]:
        """The first finished trial of every set of parameters, by number."""
        return sorted(self._first_alike.values(), key=_number)


def _number(trial: FrozenTrial) -> int:
    return trial.number


def _goodness(trial: FrozenTrial) -> tuple[float, ...]:
    """TPE's own order: complete before stopped, by value; the longer they went, by score."""
    if trial.state == TrialState.COMPLETE:
        assert trial.value is not None
        return (1, 0, trial.value, -trial.number)
    step, score = max(trial.intermediate_values.items(), default=(-1, 0.0))
    return (0, step, _comparable(score), -trial.number)


def _comparable(score: float) -> float:
    """A score that is none beats nothing."""
    return -math.inf if math.isnan(score) else score
