"""Multinomial logistic regressions of few columns, several at once, by Newton's method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ensembles.metrics import Array, Labels

ABSENT = -100.0
"""Logit of a class that no fitted row has."""

_MOST_STEPS, _MOST_DIRECTIONS, _MOST_HALVINGS = 100, 50, 30
_NEAR_ENOUGH = 0.01
"""Squared residual, of the first one, at which conjugate gradients end."""
_LEAST_CURVATURE = 1e-4


class Regressions:
    """One regression for each of B sets of the same N rows, solved together.

    The loss is scikit-learn's: its sum over rows times C, and half of the squared coefficients, but not of
    the intercepts. Sets of two classes have one vector of coefficients there, which halves C here.

    Args:
        columns: (B, N, P), scaled for each set.
        labels: (N,).
        inside: (B, N) the rows of each set.
        classes: K.
    """

    def __init__(
        self, columns: Array, labels: Labels, inside: NDArray[np.bool_], classes: int
    ) -> None:
        self._count = inside.sum(axis=1)
        # Each set's rows come first, and what none of them needs is left out.
        order = np.argsort(~inside, axis=1, kind="stable")[:, : self._count.max()]
        inside = np.take_along_axis(inside, order, axis=1)
        rows = np.take_along_axis(columns, order[:, :, None], axis=1)
        self._rows = np.concatenate([rows, np.ones((*order.shape, 1))], axis=2)
        self._columns = np.ascontiguousarray(self._rows.transpose(0, 2, 1))
        self._truth = np.arange(classes)[:, None] == labels[order][:, None]  # (B, K, N)
        self._share = (inside / self._count[:, None])[:, None]  # (B, 1, N)
        self._present = (inside[:, None] & self._truth).any(axis=2)
        self._offset = np.where(self._present, 0.0, ABSENT)[:, :, None]

    def solve(self, penalties: Iterable[float], tolerance: float) -> Iterator[Array]:
        """Yields (B, K, P + 1) coefficients, the intercept last, for each C.

        Each starts at the one before, and ends where no slope of the mean loss is above the
        tolerance. The intercept of a class that none of a set's rows has is `ABSENT`.
        """
        sets, size, _ = self._columns.shape
        found = np.zeros((sets, self._present.shape[1], size))
        for penalty in penalties:
            halved = np.where(self._present.sum(axis=1) == 2, 2.0, 1.0)
            ridge = np.repeat((halved / (penalty * self._count))[:, None], size, axis=1)
            ridge[:, -1] = 0.0
            found = self._solve(found, ridge[:, None], tolerance)
            own = found * self._present[:, :, None]
            own[:, :, -1] += self._offset[:, :, 0]
            yield own

    def _solve(self, found: Array, ridge: Array, tolerance: float) -> Array:
        posteriors, loss = self._at(found, ridge)
        inverse = self._inverse(posteriors, ridge)
        for _ in range(_MOST_STEPS):
            apart = self._share * (posteriors - self._truth)
            slope = apart @ self._rows + ridge * found
            if np.abs(slope).max() < tolerance:
                break
            direction = self._direction(slope, posteriors, ridge, inverse)
            gain = (slope * direction).sum(axis=(1, 2))
            step = np.ones(len(found))
            for _ in range(_MOST_HALVINGS):
                tried = found + step[:, None, None] * direction
                posteriors, reached = self._at(tried, ridge)
                worse = ~(reached <= loss + 1e-4 * step * gain + 1e-12)  # so is a loss that is none
                if not worse.any():
                    break
                step = np.where(worse, step / 2, step)
            found, loss = tried, reached
        return found

    def _at(self, found: Array, ridge: Array) -> tuple[Array, Array]:
        """(B, K, N) posteriors and (B,) losses."""
        logits = found @ self._columns + self._offset
        logits -= logits.max(axis=1, keepdims=True)
        true = np.where(self._truth, logits, 0.0).sum(axis=1)
        odds = np.exp(logits, out=logits)
        total = odds.sum(axis=1, keepdims=True)
        loss = (self._share[:, 0] * (np.log(total[:, 0]) - true)).sum(axis=1)
        return odds / total, loss + (ridge * found**2).sum(axis=(1, 2)) / 2

    def _inverse(self, posteriors: Array, ridge: Array) -> Array:
        """(B, P + 1, P + 1) inverse curvature, as if all classes had the same."""
        spread = (1.0 - (posteriors**2).sum(axis=1, keepdims=True)) / 2
        curved = (self._columns * (self._share * np.maximum(spread, _LEAST_CURVATURE))) @ self._rows
        return np.linalg.inv(curved + (ridge + 1e-10) * np.eye(curved.shape[1]))

    def _direction(self, slope: Array, posteriors: Array, ridge: Array, inverse: Array) -> Array:
        """Newton's, nearly: conjugate gradients, as if all classes had the same curvature at first."""
        weighted = self._share * posteriors
        direction, residual = np.zeros_like(slope), -slope
        towards = residual @ inverse
        size = first = (residual * towards).sum(axis=(1, 2))
        for _ in range(_MOST_DIRECTIONS):
            going = size > _NEAR_ENOUGH * first  # the others would divide nothing by nothing
            if not going.any():
                break
            seen = towards @ self._columns
            seen -= (posteriors * seen).sum(axis=1, keepdims=True)
            bent = (weighted * seen) @ self._rows + ridge * towards
            step = _ratio(size, (towards * bent).sum(axis=(1, 2)), going)
            direction += step * towards
            residual = residual - step * bent
            next_one = residual @ inverse
            before, size = size, (residual * next_one).sum(axis=(1, 2))
            towards = next_one + _ratio(size, before, going) * towards
        return direction


def _ratio(one: Array, other: Array, where: NDArray[np.bool_]) -> Array:
    """(B, 1, 1) of (B,); 0 elsewhere."""
    return np.divide(one, other, out=np.zeros_like(one), where=where)[:, None, None]
