"""Objective of the search: a finished trial's own score, or that and what it adds to the ensemble so far.

A function of the journal (who had finished, with what score) and of the posterior bank alone; what was
told stands in the journal, and is never computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import numpy as np

from ensembles.bank.posterior_bank import BankEntry, Experts, PosteriorBank
from ensembles.fusion.greedy import GreedySelection
from ensembles.metrics import Array, Labels, get_metric, log_softmax

MIN_FINISHED = 3
"""Until every modality has this many finished experts, a trial is worth its own score: the first
ones would else be judged by what chance to be missing yet."""

KEPT = 25
"""Most finished experts of a modality, the best, that count as the ensemble so far: a trial's end
costs the same however long the search is."""

GAIN_WEIGHT = 4.0
"""A point that the ensemble gains counts as so many of the trial's own."""

_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the trial in the ensemble; none is allowed, so that a useless one costs nothing."""

Finished = Mapping[str, Mapping[int, float]]
"""Modality → number → own score, of every trial that has finished."""


class EnsembleObjective:
    """A trial's own score, and what it adds to the ensemble of those that had finished before.

    Args:
        bank: Where trials leave their posteriors.
        metric: Of the search.
        fetch: Called with the name of a bank entry that is to be read: it may be kept elsewhere.
        weight: What a point that the ensemble gains counts for, in points of the trial's own.
    """

    def __init__(
        self,
        bank: PosteriorBank,
        metric: str,
        fetch: Callable[[str], object] = lambda name: None,
        weight: float = GAIN_WEIGHT,
    ) -> None:
        self.bank, self.metric, self.fetch, self.weight = bank, metric, fetch, weight
        self._read: dict[str, BankEntry] = {}

    def gain(self, modality: str, number: int, finished: Finished) -> float:
        """Return what a trial adds; 0 while some modality has too few, or where its posteriors are lost.

        Args:
            modality: Of the trial.
            number: Of the trial, in its modality.
            finished: The others that have.
        """
        if any(len(scores) < MIN_FINISHED for scores in finished.values()):
            return 0.0
        own = self._entry(trial_name(modality, number))
        before = [
            entry
            for side, scores in sorted(finished.items())
            for other in _best(scores)
            if (entry := self._entry(trial_name(side, other))) is not None
        ]
        if own is None or not before:
            return 0.0
        return ensemble_gain(self.bank.experts([*before, own]), self.metric)

    def _entry(self, name: str) -> BankEntry | None:
        """A finished trial's posteriors, read once; None if they are lost or damaged."""
        if name not in self._read:
            with suppress(OSError):  # then what this machine has
                self.fetch(name)
            entry = self.bank.find(name, 100)
            if entry is None:
                return None
            self._read[name] = entry
        return self._read[name]


def trial_name(modality: str, number: int) -> str:
    """Return the bank's name of a trial."""
    return f"{modality}-{number:04d}"


def _best(scores: Mapping[int, float]) -> Iterable[int]:
    """The best `KEPT` trials; of equal ones the earlier."""
    return sorted(scores, key=lambda number: (-scores[number], number))[:KEPT]


def ensemble_gain(experts: Experts, metric: str) -> float:
    """Return what the last expert adds to an ensemble of the others, by the metric: more is better.

    Cross-fitted: for each fold the ensemble is selected greedily, and the newcomer's share in it chosen,
    by the log-loss of the other folds.
    """
    table, utility = experts.table, get_metric(metric).utility
    others, newcomer = experts.log_posteriors[:-1], experts.log_posteriors[-1]
    gains = []
    for fold in np.unique(table.folds):
        scored = table.folds == fold
        fitted = ~scored
        selection = GreedySelection("log", metric="log_loss")
        rule = selection.fit(others[:, fitted], table.labels[fitted], table.folds[fitted]).rule()
        before = rule.apply(others)
        share = _share(before[fitted], newcomer[fitted], table.labels[fitted])
        after = _joined(before[scored], newcomer[scored], share)
        labels = table.labels[scored]
        gains.append(utility(labels, after) - utility(labels, before[scored]))
    return float(np.mean(gains))


def _share(before: Array, newcomer: Array, labels: Labels) -> float:
    """The share that is best on these rows; of equal ones the smaller."""
    loss = get_metric("log_loss").score
    return min(_SHARES, key=lambda share: loss(labels, _joined(before, newcomer, share)))


def _joined(before: Array, newcomer: Array, share: float) -> Array:
    """(N, K) each → their product, each raised to its share."""
    return log_softmax((1.0 - share) * before + share * newcomer)
