"""Greedy ensemble selection with replacement (Caruana et al., 2004, ICML)."""

from __future__ import annotations

from typing import Self

import numpy as np

from ensembles.metrics import Array, Labels
from ensembles.rules import Pooling, Space

_FLOOR = -30.0


class GreedySelection:
    """Adds, one at a time and with replacement, the expert that helps the pooled posteriors most.

    Differs from the paper: starts from the single best expert instead of a sorted few, and
    also works in log space, where posteriors multiply.

    Args:
        space: `arithmetic` or `log`.
        size: Most members, counted with repetition.
        metric: What members are chosen for. Macro-F1 is stood in for by UAR, which like
            accuracy is a sum over clips.

    Attributes:
        counts_: (M,) how often each expert was taken.
    """

    def __init__(
        self, space: Space = "arithmetic", size: int = 15, metric: str = "accuracy"
    ) -> None:
        self.space, self.size, self.metric = space, size, metric

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Selects by the metric, ties by log-loss; keeps the best prefix.

        So it is never worse than its best single expert on the rows it is fitted on.
        """
        floored = np.maximum(log_posteriors, _FLOOR)
        values = (floored if self.space == "log" else np.exp(floored)).astype(np.float32)
        weights = self._clip_weights(labels)
        total = np.zeros(values.shape[1:], np.float32)
        order: list[int] = []
        best_order: list[int] = []
        best = (-np.inf, -np.inf)
        for _ in range(self.size):
            merits = [
                self._merit(total + candidate, labels, weights, len(order) + 1)
                for candidate in values
            ]
            chosen = max(range(len(merits)), key=lambda m: merits[m])
            total += values[chosen]
            order.append(chosen)
            if merits[chosen] > best:
                best, best_order = merits[chosen], list(order)
        self.counts_: Labels = np.bincount(best_order, minlength=len(values)).astype(np.int64)
        return self

    def rule(self) -> Pooling:
        """What was selected; the floor is the same as in fitting."""
        return Pooling(self.counts_ / self.counts_.sum(), self.space, _FLOOR)

    def predict(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""
        return self.rule().apply(log_posteriors)

    def _clip_weights(self, labels: Labels) -> Array:
        """What a clip's hit is worth: the same for each, or for each class."""
        if self.metric not in {"uar", "macro_f1"}:
            return np.full(len(labels), 1.0 / len(labels))
        counts = np.bincount(labels)
        return np.asarray(1.0 / (counts[labels] * (counts > 0).sum()))

    def _merit(
        self, total: Array, labels: Labels, weights: Array, count: int
    ) -> tuple[float, float]:
        likelihood = self._log_likelihood(total, labels, count)
        if self.metric == "log_loss":
            return likelihood, likelihood
        return float(((total.argmax(axis=1) == labels) * weights).sum()), likelihood

    def _log_likelihood(self, total: Array, labels: Labels, count: int) -> float:
        rows = np.arange(len(labels))
        if self.space == "arithmetic":
            return float(np.log(total[rows, labels] / count + 1e-12).mean())
        mean = total / count
        peak = mean.max(axis=1, keepdims=True)
        normaliser = np.log(np.exp(mean - peak).sum(axis=1)) + peak[:, 0]
        return float((mean[rows, labels] - normaliser).mean())
