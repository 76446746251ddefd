"""Late fusion: averages of posteriors, plain or weighted, arithmetic or in log space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from scipy.optimize import minimize

from ensembles.fusion.rules import Pooling, Space
from ensembles.metrics import Array, Labels, log_softmax


class AverageFusion:
    """Plain average of M experts: the baseline that a fitted fusion has to beat.

    Args:
        space: `arithmetic` averages probabilities; `log` multiplies them (geometric mean).
    """

    def __init__(self, space: Space = "arithmetic") -> None:
        self.space = space

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Learns nothing: every expert weighs the same."""
        self.weights_: Array = np.full(len(log_posteriors), 1.0 / len(log_posteriors))
        return self

    def rule(self) -> Pooling:
        """Return the fitted rule."""
        return Pooling(self.weights_, self.space)


class WeightedFusion:
    """Weighted late fusion; the weights minimise the log-loss of the rows it is fitted on.

    Args:
        space: `arithmetic`: weights on the simplex, of probabilities. `log`: log-linear
            pooling, p ∝ Π pₘ^wₘ with wₘ ≥ 0; their sum is free, which calibrates.
        penalty: Of the squared distance to equal weights, in units of the log-loss.
    """

    def __init__(self, space: Space = "log", penalty: float = 1e-3) -> None:
        self.space, self.penalty = space, penalty

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Fits one weight an expert on (M, N, K) log-posteriors and (N,) labels."""
        count = len(log_posteriors)
        solve = self._fit_log if self.space == "log" else self._fit_arithmetic
        self.weights_: Array = solve(log_posteriors, labels, np.full(count, 1.0 / count))
        return self

    def rule(self) -> Pooling:
        """Return the fitted rule."""
        return Pooling(self.weights_, self.space)

    def _fit_log(self, log_posteriors: Array, labels: Labels, start: Array) -> Array:
        rows = np.arange(len(labels))
        chosen = log_posteriors[:, rows, labels].mean(axis=1)

        def loss(weights: Array) -> tuple[float, Array]:
            pooled = log_softmax(np.tensordot(weights, log_posteriors, axes=1))
            expected = np.einsum("nk,mnk->m", np.exp(pooled), log_posteriors) / len(labels)
            offset = weights - start
            value = -pooled[rows, labels].mean() + self.penalty * float(offset @ offset)
            return value, expected - chosen + 2 * self.penalty * offset

        bounds = [(0.0, None)] * len(start)
        return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)

    def _fit_arithmetic(self, log_posteriors: Array, labels: Labels, start: Array) -> Array:
        """Expectation-maximisation for mixture weights: monotone, and stays on the simplex."""
        likelihood = np.exp(log_posteriors[:, np.arange(len(labels)), labels])
        weights = start
        prior = self.penalty * len(labels)
        for _ in range(200):
            share = weights[:, None] * likelihood
            responsibility = (share / (share.sum(axis=0) + 1e-300)).sum(axis=1) + prior * start
            update = responsibility / responsibility.sum()
            if np.abs(update - weights).max() < 1e-6:
                break
            weights = update
        return weights


class GroupedFusion:
    """Weighted late fusion with one weight a group of experts, shared equally within it.

    Fewer weights than experts to fit: with twenty networks and a few hundred clips, what is
    worth knowing is how far to trust each modality.

    Args:
        groups: (M,) the group of each expert, such as its modality.
        space: See `WeightedFusion`.
        penalty: See `WeightedFusion`.
    """

    def __init__(self, groups: Sequence[str], space: Space = "log", penalty: float = 1e-3) -> None:
        self.groups, self.space, self.penalty = tuple(groups), space, penalty

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Fits one weight a group on (M, N, K) log-posteriors and (N,) labels."""
        members = np.asarray([self.groups.index(group) for group in self.groups])
        kept, member_of, sizes = np.unique(members, return_inverse=True, return_counts=True)
        share = np.equal.outer(np.arange(len(kept)), member_of) / sizes[:, None]
        pooled = np.stack([Pooling(row, self.space).apply(log_posteriors) for row in share])
        weights = WeightedFusion(self.space, self.penalty).fit(pooled, labels, groups).weights_
        self.weights_: Array = (weights / sizes)[member_of]
        return self

    def rule(self) -> Pooling:
        """Return the fitted rule."""
        return Pooling(self.weights_, self.space)
