"""Fusion of traces: averages, weights, greedy selection, and ridge regression on all of them.

What they are fitted by, the concordance, is a function of means and covariances alone; these are
counted once a fit, so that a candidate costs as much for five minutes as for five hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ensembles.fusion.rules import TraceMap
from ensembles.metrics import Array, Labels

_ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths of ridge regression, in units of the traces' mean variance."""
_ROUNDS = 40
"""Rounds of greedy selection."""


@dataclass(frozen=True)
class Moments:
    """Moments of F columns and a target: all that the concordance of a linear combination needs.

    Attributes:
        count: Rows.
        means: (F,).
        covariance: (F, F).
        target_mean: Of the target.
        target_variance: Of the target.
        with_target: (F,) covariance of each column with it.
    """

    count: int
    means: Array
    covariance: Array
    target_mean: float
    target_variance: float
    with_target: Array

    @staticmethod
    def of(columns: Array, target: Array) -> Moments:
        """Counts (n, F) columns and (n,) target."""
        means, target_mean = columns.mean(axis=0), float(target.mean())
        centred, wanted = columns - means, target - target_mean
        return Moments(
            len(target),
            means,
            centred.T @ centred / len(target),
            target_mean,
            float(wanted @ wanted / len(target)),
            centred.T @ wanted / len(target),
        )

    def ccc(self, weights: Array, intercept: float | Array = 0.0) -> Array:
        """Concordance of linear combinations: (…, F) → (…)."""
        spread = np.einsum("...f,fg,...g->...", weights, self.covariance, weights)
        apart = weights @ self.means + intercept - self.target_mean
        total = spread + self.target_variance + apart**2
        return np.asarray(2 * (weights @ self.with_target) / np.maximum(total, 1e-12))


class TraceAverage:
    """The plain mean of M experts' traces."""

    def fit(self, traces: Array, gold: NDArray[Any], groups: Labels) -> Self:
        """Learns nothing but how many there are."""
        shares = np.full((gold.shape[1], len(traces)), 1.0 / len(traces))
        self.rule_ = TraceMap.of_shares(shares)
        return self

    def rule(self) -> TraceMap:
        """Return the fitted rule."""
        return self.rule_


class TraceWeights(TraceAverage):
    """Late fusion: for each dimension one weight an expert, none negative, together 1.

    They maximise the concordance on the rows that it is fitted on.
    """

    def fit(self, traces: Array, gold: NDArray[Any], groups: Labels) -> Self:
        """(M, N, D), (N, D), (N,) → self."""
        shares = [
            _best_shares(Moments.of(traces[:, :, d].T, gold[:, d])) for d in range(gold.shape[1])
        ]
        self.rule_ = TraceMap.of_shares(np.stack(shares))
        return self


def _best_shares(moments: Moments) -> Array:
    """(M,) on the simplex, by a softmax of free numbers, from equal shares on."""

    def shares(free: Array) -> Array:
        powers = np.exp(free - free.max())
        return np.asarray(powers / powers.sum())

    found = minimize(
        lambda free: -float(moments.ccc(shares(free))),
        np.zeros(len(moments.means)),
        method="L-BFGS-B",
        bounds=[(-8.0, 8.0)] * len(moments.means),
    )
    return shares(np.asarray(found.x))


class TraceGreedy(TraceAverage):
    """Greedy selection with replacement (Caruana et al., 2004), for each dimension by concordance."""

    def fit(self, traces: Array, gold: NDArray[Any], groups: Labels) -> Self:
        """(M, N, D), (N, D), (N,) → self."""
        shares = [_select(Moments.of(traces[:, :, d].T, gold[:, d])) for d in range(gold.shape[1])]
        self.rule_ = TraceMap.of_shares(np.stack(shares))
        return self


def _select(moments: Moments) -> Array:
    """(M,) how often each was taken, up to where the concordance was best."""
    one_more = np.eye(len(moments.means))
    taken = np.zeros(len(moments.means))
    best, best_score = taken, -np.inf
    for size in range(1, _ROUNDS + 1):
        scores = moments.ccc((taken + one_more) / size)
        taken = taken + one_more[int(scores.argmax())]
        if scores.max() > best_score + 1e-9:
            best, best_score = taken / size, float(scores.max())
    return best


class TraceRidge(TraceAverage):
    """Ridge regression of each dimension on all experts' traces of all dimensions.

    The counterpart of logistic regression on posteriors. How much it shrinks is chosen by leaving
    out one group after the other; the least that is best.
    """

    def fit(self, traces: Array, gold: NDArray[Any], groups: Labels) -> Self:
        """(M, N, D), (N, D), (N,) → self."""
        count, dimensions = len(traces), gold.shape[1]
        columns = traces.transpose(1, 0, 2).reshape(len(gold), -1)
        weights, intercept = [], []
        for d in range(dimensions):
            parts = [
                Moments.of(columns[groups == g], gold[groups == g, d]) for g in np.unique(groups)
            ]
            alpha = _choose_alpha(parts)
            fitted = _ridge(_joined(parts), alpha)
            weights.append(fitted[0].reshape(count, dimensions))
            intercept.append(fitted[1])
        self.rule_ = TraceMap(np.stack(weights), np.asarray(intercept))
        return self


def _choose_alpha(parts: list[Moments]) -> float:
    """By the mean concordance of each part, fitted on the others; of one part, the middle one."""
    if len(parts) < 2:
        return _ALPHAS[len(_ALPHAS) // 2]
    scores = []
    for alpha in _ALPHAS:
        left_out = []
        for number, part in enumerate(parts):
            fitted = _ridge(_joined(parts[:number] + parts[number + 1 :]), alpha)
            left_out.append(float(part.ccc(*fitted)))
        scores.append(np.mean(left_out))
    return _ALPHAS[int(np.argmax(scores))]


def _ridge(moments: Moments, alpha: float) -> tuple[Array, float]:
    """(F,) weights and the intercept."""
    size = alpha * float(np.trace(moments.covariance)) / len(moments.means) + 1e-12
    damped = moments.covariance + size * np.eye(len(moments.means))
    weights: Array = np.asarray(np.linalg.solve(damped, moments.with_target), np.float64)
    return weights, moments.target_mean - float(weights @ moments.means)


def _joined(parts: list[Moments]) -> Moments:
    """Return the moments of all rows together."""
    counts = np.asarray([part.count for part in parts], np.float64)
    shares = counts / counts.sum()
    means = sum(s * p.means for s, p in zip(shares, parts, strict=True))
    target = float(sum(s * p.target_mean for s, p in zip(shares, parts, strict=True)))
    off = [(p.means - means, p.target_mean - target) for p in parts]
    return Moments(
        int(counts.sum()),
        np.asarray(means),
        np.asarray(
            sum(
                s * (p.covariance + np.outer(o, o))
                for s, p, (o, _) in zip(shares, parts, off, strict=True)
            )
        ),
        target,
        float(
            sum(
                s * (p.target_variance + t**2)
                for s, p, (_, t) in zip(shares, parts, off, strict=True)
            )
        ),
        np.asarray(
            sum(
                s * (p.with_target + o * t) for s, p, (o, t) in zip(shares, parts, off, strict=True)
            )
        ),
    )
