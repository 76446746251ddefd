"""The score of whoever won a choice, corrected for the luck of winning (BBC-CV).

Bootstrap bias-corrected cross-validation (Tsamardinos, Greasidou & Borboudakis, 2018, Machine Learning
107, arXiv:1708.07180): from the out-of-fold predictions of every candidate, with no training. Groups
(speakers) are drawn with replacement; the candidate that is best on those drawn is scored on those
that were not; the mean over many draws is what a winner is worth where it was not chosen.

Differs from the paper: groups are drawn instead of single clips, since clips of a speaker resemble
each other; scores are means over the protocol's folds, as the headline is; and the interval is
narrowed by the share of groups that are left out of a draw, since the paper's is that of a score on a
third of the groups (`benchmarks/honesty.py` counts how often it holds the truth).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensembles.bank.posterior_bank import Table
from ensembles.metrics import CCC, Array, Labels

MIN_GROUPS = 10
"""Below, draws of groups say nothing about other groups."""

_DRAWS = 1000
_CHUNK_NUMBERS = 8_000_000


@dataclass(frozen=True)
class Corrected:
    """What the winner of a choice is worth on groups that did not choose it.

    Attributes:
        score: By the metric, mean over folds.
        low: Of the 95 % interval.
        high: Of the 95 % interval.
        candidates: Among how many was chosen.
    """

    score: float
    low: float
    high: float
    candidates: int

    def to_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {
            "score": self.score,
            "interval_95": [self.low, self.high],
            "candidates": self.candidates,
        }


class Candidates:
    """Out-of-fold predictions of many candidates on the same clips, summed up by group.

    Args:
        metric: accuracy, uar, macro_f1 or log_loss; ccc of traces.
        table: The clips.
        groups: (N,) what is drawn; the speakers by default.
    """

    def __init__(self, metric: str, table: Table, groups: Sequence[str] | None = None) -> None:
        self.metric, self.table = metric, table
        names = np.asarray(table.speakers if groups is None else groups)
        self.names, self._group = np.unique(names, return_inverse=True)
        self._folds, self._fold = np.unique(table.folds, return_inverse=True)
        self._sums: list[Array] = []

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, log_posteriors: Iterable[Array]) -> None:
        """Adds candidates, (N, K) log-posteriors each."""
        self._sums += [self._sum_up(one) for one in log_posteriors]

    def scores(self) -> Array:
        """(C,) on all groups."""
        whole = np.ones((1, len(self.names)), np.int64)
        return np.asarray(self._scores(np.stack(self._sums), whole)[0])

    def resampled(self, draws: int, *, seed: int = 0) -> Array:
        """(draws, C) scores on groups drawn with replacement, the same draws for all."""
        generator = np.random.default_rng(seed)
        count = len(self.names)
        drawn = [generator.integers(count, size=count) for _ in range(draws)]
        weights = np.stack([np.bincount(d, minlength=count) for d in drawn])
        return self._scores(np.stack(self._sums), weights)

    def corrected(self, *, draws: int = _DRAWS, seed: int = 0) -> Corrected | None:
        """The winner's corrected score; None without candidates or with too few groups."""
        if not self._sums or len(self.names) < MIN_GROUPS:
            return None
        sums = np.stack(self._sums)  # (C, groups × folds, D)
        generator = np.random.default_rng(seed)
        count = len(self.names)
        sign = -1.0 if self.metric == "log_loss" else 1.0
        outside: list[float] = []
        kept: list[float] = []
        chunk = max(1, _CHUNK_NUMBERS // max(sums.size // count, sums[0].size))
        while len(outside) < draws:
            most = min(chunk, draws - len(outside))
            drawn = [generator.integers(count, size=count) for _ in range(most)]
            weights = np.stack([np.bincount(d, minlength=count) for d in drawn])
            weights = weights[(weights == 0).any(axis=1)]  # else there is nobody left to score
            winners = (sign * self._scores(sums, weights)).argmax(axis=1)
            left = (weights == 0).astype(np.float64)
            outside += self._of_sums(np.einsum("wg,wgfd->wfd", left, sums[winners])).tolist()
            kept += left.mean(axis=1).tolist()
        scores = np.asarray(outside)
        score = float(scores.mean())
        spread = (scores - score) * np.sqrt(np.asarray(kept))
        low, high = score + np.quantile(spread, [0.025, 0.975])
        best = np.inf if self.metric == "log_loss" else 1.0
        least = -1.0 if self.metric == CCC else 0.0
        return Corrected(score, max(float(low), least), min(float(high), best), len(sums))

    def within_folds(self, draws: int, *, seed: int = 0) -> Array:
        """(draws,) scores of the first candidate, on groups drawn within their folds."""
        generator = np.random.default_rng(seed)
        weights = np.zeros((draws, len(self.names)), np.int64)
        for fold in range(len(self._folds)):
            own = np.unique(self._group[self._fold == fold])
            drawn = generator.integers(len(own), size=(draws, len(own)))
            for column in drawn.T:
                weights[np.arange(draws), own[column]] += 1
        return self._scores(np.stack(self._sums[:1]), weights)[:, 0]

    def left_out(self) -> Array:
        """(groups,) scores of the first candidate, each without one group."""
        weights = 1 - np.eye(len(self.names), dtype=np.int64)
        return self._scores(np.stack(self._sums[:1]), weights)[:, 0]

    def _sum_up(self, log_posteriors: Array) -> Array:
        """(groups, folds, D): of each group's clips in each fold what the metric is made of."""
        labels, classes = self.table.labels, log_posteriors.shape[1]
        cells, places = len(self.names) * len(self._folds), self._group * len(self._folds)
        places = places + self._fold
        rows = np.arange(len(labels))
        if self.metric == CCC:
            columns = [np.ones(len(labels))]
            for gold, said in zip(np.asarray(labels, np.float64).T, log_posteriors.T, strict=True):
                columns += [gold, said, gold**2, said**2, gold * said]
            found = np.stack([np.bincount(places, column, cells) for column in columns], axis=1)
        elif self.metric == "log_loss":
            sums = [np.bincount(places, -log_posteriors[rows, labels], cells)]
            sums.append(np.bincount(places, minlength=cells).astype(np.float64))
            found = np.stack(sums, axis=1)
        elif self.metric == "accuracy":
            right = log_posteriors.argmax(axis=1) == labels
            found = np.stack(
                [np.bincount(places, right, cells), np.bincount(places, minlength=cells)], axis=1
            )
        else:
            labels = np.asarray(labels, np.int64)
            kind = labels * classes + log_posteriors.argmax(axis=1)
            flat = np.bincount(places * classes**2 + kind, minlength=cells * classes**2)
            found = flat.reshape(cells, classes**2).astype(np.float64)
        return np.asarray(found.reshape(len(self.names), len(self._folds), -1))

    def _scores(self, sums: Array, weights: Labels) -> Array:
        """(C, groups, folds, D) sums, (draws, groups) weights → (draws, C) scores."""
        return self._of_sums(np.tensordot(weights.astype(np.float64), sums, axes=([1], [1])))

    def _of_sums(self, drawn: Array) -> Array:
        """(…, folds, D) sums of what is drawn → (…) scores, mean over the folds.

        A fold of which no group is drawn is left out of the mean.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.metric in {"accuracy", "log_loss"}:
                by_fold = drawn[..., 0] / drawn[..., 1]
            elif self.metric == CCC:
                by_fold = _of_moments(drawn)
            else:
                by_fold = _of_confusion(self.metric, drawn)
        return np.asarray(np.nanmean(by_fold, axis=-1))  # never of nothing: somebody is drawn


def _of_moments(sums: Array) -> Array:
    """(…, 1 + 5·D) counts and sums → (…) mean concordance over dimensions; NaN of nothing."""
    means = sums[..., 1:] / sums[..., :1]
    scores = []
    for first in range(0, means.shape[-1], 5):
        gold, said, gold2, said2, both = np.moveaxis(means[..., first : first + 5], -1, 0)
        total = gold2 - gold**2 + said2 - said**2 + (gold - said) ** 2
        scores.append(np.where(total > 1e-12, 2 * (both - gold * said) / total, 0.0))
    return np.where(sums[..., 0] > 0, np.mean(scores, axis=0), np.nan)


def _of_confusion(metric: str, flat: Array) -> Array:
    """(…, K²) → (…): over the classes that occur; NaN where there is none."""
    classes = round(flat.shape[-1] ** 0.5)
    matrix = flat.reshape(*flat.shape[:-1], classes, classes)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    actual, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    part = hits / actual if metric == "uar" else 2 * hits / (actual + predicted)
    present = actual > 0
    return np.asarray(np.where(present, part, 0.0).sum(axis=-1) / present.sum(axis=-1))
