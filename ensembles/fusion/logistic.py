"""Logistic regression on posteriors, the fusion of the source papers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ensembles.fusion.regression import ABSENT, Regressions
from ensembles.fusion.rules import Inputs, LinearMap, posterior_table
from ensembles.metrics import Array, Labels, get_metric

Scaling = Literal["standard", "minmax", "none"]

_MOST_COLUMNS, _MOST_NUMBERS = 128, 50_000
"""Largest table that Newton's method solves; above it scikit-learn's L-BFGS is faster."""

_TO_CHOOSE, _TO_KEEP = 3e-5, 1e-6
"""Tolerances: posteriors are within a hundredth of the optimum's, and within 1e-4."""

PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""Inverse strengths C that are tried inside."""


class LogisticFusion:
    """Multinomial logistic regression on the concatenated posteriors of M experts.

    After Luna-Jiménez et al. (2021), who take one audio and one video expert. Differs from
    the paper: fitted on out-of-fold posteriors, so that it never sees an expert's opinion
    of a clip that the expert was trained on; C is tuned inside, by the groups given.

    Args:
        inputs: `probabilities` as in the paper, or `logits` (log-posteriors).
        penalties: Values of C; of those within the groups' reach the best is taken.
        scaling: Of each column, counted on the rows fitted on: `standard` (mean 0, deviation 1),
            `minmax` (0 to 1, as Luna-Jiménez et al. did in 2022), or `none`.
    """

    def __init__(
        self,
        inputs: Inputs = "logits",
        penalties: tuple[float, ...] = PENALTIES,
        scaling: Scaling = "standard",
    ) -> None:
        self.inputs, self.penalties, self.scaling = inputs, penalties, scaling

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Fits on (M, N, K) log-posteriors, (N,) labels and (N,) groups.

        C is the value with the least log-loss when each group is held out in turn.
        """
        table = posterior_table(log_posteriors, self.inputs)
        self.num_classes_ = log_posteriors.shape[2]
        self.penalty_ = self._best_penalty(table, labels, groups)
        every_row = np.ones((1, len(labels)), bool)
        ((self.rule_,),) = self._fit(table, labels, every_row, (self.penalty_,), _TO_KEEP)
        return self

    def rule(self) -> LinearMap:
        """Return the fitted rule."""
        return self.rule_

    def _best_penalty(self, table: Array, labels: Labels, groups: Labels) -> float:
        kept = np.unique(groups)
        if len(kept) < 2 or len(self.penalties) == 1:
            return self.penalties[len(self.penalties) // 2]
        outside, loss = groups == kept[:, None], get_metric("log_loss").score
        losses = [
            sum(
                loss(labels[rows], model.apply_table(table[rows])) * rows.mean()
                for rows, model in zip(outside, models, strict=True)
            )
            for models in self._fit(table, labels, ~outside, self.penalties, _TO_CHOOSE)
        ]
        return self.penalties[int(np.argmin(losses))]

    def _fit(
        self,
        table: Array,
        labels: Labels,
        inside: NDArray[np.bool_],
        penalties: Iterable[float],
        tolerance: float,
    ) -> Iterator[list[LinearMap]]:
        """For each penalty, one regression on each of (B, N) sets of rows.

        Fitted on scaled columns, whose scaling is folded into the coefficients. Classes that are
        not among a set's rows get less than any other could.
        """
        scalings = [_scaling(table[rows], self.scaling) for rows in inside]
        if table.shape[1] <= _MOST_COLUMNS and table.size <= _MOST_NUMBERS:
            columns = np.stack([(table - shift) / scale for shift, scale in scalings])
            regressions = Regressions(columns, labels, inside, self.num_classes_)
            solved = regressions.solve(penalties, tolerance)
        else:
            solved = self._by_sklearn(table, scalings, labels, inside, penalties)
        for found in solved:
            yield [
                LinearMap(
                    own[:, :-1] / scale, own[:, -1] - own[:, :-1] / scale @ shift, self.inputs
                )
                for own, (shift, scale) in zip(found, scalings, strict=True)
            ]

    def _by_sklearn(
        self,
        table: Array,
        scalings: list[tuple[Array, Array]],
        labels: Labels,
        inside: NDArray[np.bool_],
        penalties: Iterable[float],
    ) -> Iterator[Array]:
        """Yields what `Regressions.solve` does, with a looser tolerance; holds one set at a time."""
        for penalty in penalties:
            found = np.zeros((len(inside), self.num_classes_, table.shape[1] + 1))
            found[:, :, -1] = ABSENT
            for own, (shift, scale), rows in zip(found, scalings, inside, strict=True):
                model = LogisticRegression(C=penalty, max_iter=200, tol=1e-3)
                model.fit((table[rows] - shift) / scale, labels[rows])
                fitted = np.column_stack([model.coef_, model.intercept_])
                if len(fitted) == 1:  # two classes
                    fitted = np.concatenate([-fitted, fitted]) / 2
                own[model.classes_] = fitted
            yield found


def _scaling(table: Array, scaling: Scaling) -> tuple[Array, Array]:
    """Return what is subtracted from each column, and what it is then divided by."""
    if scaling == "none":
        return np.zeros(table.shape[1]), np.ones(table.shape[1])
    if scaling == "minmax":
        shift, scale = table.min(axis=0), np.ptp(table, axis=0)
    else:
        shift, scale = table.mean(axis=0), table.std(axis=0)
    return shift, np.where(scale > 1e-12, scale, 1.0)
