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
from ensembles.metrics import Array, Labels, Metric, Sums, get_metric

MIN_GROUPS = 10
"""Below, draws of groups say nothing about other groups."""

_DRAWS = 1000
_CHUNK_NUMBERS = 8_000_000


@dataclass(frozen=True)
class Corrected:
    """Score of the winner of a choice on groups that did not choose it.

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
        metric: Name of what is scored.
        table: The clips.
        groups: (N,) what is drawn; the speakers by default.
    """

    def __init__(self, metric: str, table: Table, groups: Sequence[str] | None = None) -> None:
        self.metric, self.table = get_metric(metric), table
        names = np.asarray(table.speakers if groups is None else groups)
        self.names, self._group = np.unique(names, return_inverse=True)
        self._folds, self._fold = np.unique(table.folds, return_inverse=True)
        self._kept: list[Array] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, log_posteriors: Iterable[Array]) -> None:
        """Adds candidates, (N, K) log-posteriors each."""
        self._kept += [self._sum_up(one) for one in log_posteriors]

    def scores(self) -> Array:
        """(C,) on all groups."""
        whole = np.ones((1, len(self.names)), np.int64)
        return np.asarray(self._resampler().scores(whole)[0])

    def resampled(self, draws: int, *, seed: int = 0) -> Array:
        """(draws, C) scores on groups drawn with replacement, the same draws for all."""
        return self._resampler().scores(self._drawn(draws, np.random.default_rng(seed)))

    def corrected(self, *, draws: int = _DRAWS, seed: int = 0) -> Corrected | None:
        """The winner's corrected score; None without candidates or with too few groups."""
        if not self._kept or len(self.names) < MIN_GROUPS:
            return None
        resampler, generator = self._resampler(), np.random.default_rng(seed)
        outside: list[float] = []
        kept: list[float] = []
        chunk = max(1, _CHUNK_NUMBERS // resampler.numbers)
        while len(outside) < draws:
            weights = self._drawn(min(chunk, draws - len(outside)), generator)
            weights = weights[(weights == 0).any(axis=1)]  # else there is nobody left to score
            winners = (self.metric.sign * resampler.scores(weights)).argmax(axis=1)
            left = (weights == 0).astype(np.int64)
            outside += resampler.scores_of(winners, left).tolist()
            kept += left.mean(axis=1).tolist()
        scores = np.asarray(outside)
        score = float(scores.mean())
        spread = (scores - score) * np.sqrt(np.asarray(kept))
        low, high = score + np.quantile(spread, [0.025, 0.975])
        return Corrected(score, *self.metric.clipped(float(low), float(high)), len(self))

    def within_folds(self, draws: int, *, seed: int = 0) -> Array:
        """(draws,) scores of the only candidate, on groups drawn within their folds."""
        generator = np.random.default_rng(seed)
        weights = np.zeros((draws, len(self.names)), np.int64)
        for fold in range(len(self._folds)):
            own = np.unique(self._group[self._fold == fold])
            drawn = generator.integers(len(own), size=(draws, len(own)))
            for column in drawn.T:
                weights[np.arange(draws), own[column]] += 1
        return self._resampler().scores(weights)[:, 0]

    def left_out(self) -> Array:
        """(groups,) scores of the only candidate, each without one group."""
        return self._resampler().scores(1 - np.eye(len(self.names), dtype=np.int64))[:, 0]

    def _drawn(self, draws: int, generator: np.random.Generator) -> Labels:
        """(draws, groups) how often each group is drawn."""
        count = len(self.names)
        drawn = [generator.integers(count, size=count) for _ in range(draws)]
        return np.stack([np.bincount(d, minlength=count) for d in drawn])

    def _sum_up(self, predictions: Array) -> Array:
        """(groups, folds, D) what the metric is made of; without sums, the predictions themselves."""
        if not self.metric.sums:
            return predictions
        groups, folds = len(self.names), len(self._folds)
        cell_of = self._group * folds + self._fold
        found = self.metric.sums.add(self.table.labels, predictions, cell_of, groups * folds)
        return found.reshape(groups, folds, -1)

    def _resampler(self) -> _Summed | _Rescored:
        if self.metric.sums:
            return _Summed(self.metric.sums, np.stack(self._kept))
        return _Rescored(self.metric, self.table, self._group, self._kept)


@dataclass(frozen=True)
class _Summed:
    """Scores of draws from (C, groups, folds, D) sums."""

    kind: Sums
    sums: Array

    @property
    def numbers(self) -> int:
        """Numbers in memory for each draw."""
        return int(max(self.sums.size // self.sums.shape[1], self.sums[0].size))

    def scores(self, weights: Labels) -> Array:
        """(draws, groups) → (draws, C)."""
        return self._mean(np.tensordot(weights.astype(np.float64), self.sums, axes=([1], [1])))

    def scores_of(self, chosen: Labels, weights: Labels) -> Array:
        """(draws,) candidates, (draws, groups) → (draws,)."""
        drawn = weights.astype(np.float64)
        return self._mean(np.einsum("wg,wgfd->wfd", drawn, self.sums[chosen]))

    def _mean(self, drawn: Array) -> Array:
        """(…, folds, D) sums of what is drawn → (…) scores, mean over the folds.

        A fold of which no group is drawn is left out of the mean.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            by_fold = self.kind.score(drawn)
        return np.asarray(np.nanmean(by_fold, axis=-1))  # never of nothing: somebody is drawn


@dataclass(frozen=True)
class _Rescored:
    """Scores of draws by a metric without sums: every draw is scored anew, clip by clip."""

    metric: Metric
    table: Table
    group_of: Labels
    candidates: Sequence[Array]
    numbers: int = 1

    def scores(self, weights: Labels) -> Array:
        """(draws, groups) → (draws, C)."""
        return np.asarray([[self._score(one, w) for one in self.candidates] for w in weights])

    def scores_of(self, chosen: Labels, weights: Labels) -> Array:
        """(draws,) candidates, (draws, groups) → (draws,)."""
        pairs = zip(chosen, weights, strict=True)
        return np.asarray([self._score(self.candidates[one], w) for one, w in pairs])

    def _score(self, predictions: Array, weights: Labels) -> float:
        rows = np.repeat(np.arange(len(self.group_of)), weights[self.group_of])
        labels, folds = self.table.labels[rows], self.table.folds[rows]
        return self.metric.fold_mean(labels, predictions[rows], folds)
