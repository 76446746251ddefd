"""Logistic regression on posteriors, the fusion of the source papers."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from sklearn.linear_model import LogisticRegression

from ensembles.metrics import Array, Labels, score
from ensembles.rules import Inputs, LinearMap, posterior_table

Scaling = Literal["standard", "minmax", "none"]

_ABSENT = -100.0
"""Logit of a class that no fitted row has."""

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
        self.rule_ = self._fit_one(table, labels, self.penalty_)
        return self

    def rule(self) -> LinearMap:
        """What was fitted."""
        return self.rule_

    def predict(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""
        return self.rule_.apply(log_posteriors)

    def _best_penalty(self, table: Array, labels: Labels, groups: Labels) -> float:
        kept = np.unique(groups)
        if len(kept) < 2 or len(self.penalties) == 1:
            return self.penalties[len(self.penalties) // 2]
        losses = []
        for penalty in self.penalties:
            total = 0.0
            for group in kept:
                inside, outside = groups != group, groups == group
                model = self._fit_one(table[inside], labels[inside], penalty)
                predicted = model.apply_table(table[outside])
                total += score("log_loss", labels[outside], predicted) * outside.mean()
            losses.append(total)
        return self.penalties[int(np.argmin(losses))]

    def _fit_one(self, table: Array, labels: Labels, penalty: float) -> LinearMap:
        """Fits on scaled columns, and folds their scaling into the coefficients.

        Classes that are not among the rows get less than any other could.
        """
        shift, scale = _scaling(table, self.scaling)
        model = LogisticRegression(C=penalty, max_iter=200, tol=1e-3)
        model.fit((table - shift) / scale, labels)
        fitted, start = model.coef_, model.intercept_
        if len(fitted) == 1:  # two classes
            fitted = np.concatenate([-fitted, fitted]) / 2
            start = np.concatenate([-start, start]) / 2
        coefficients = np.zeros((self.num_classes_, table.shape[1]))
        intercept = np.full(self.num_classes_, _ABSENT)
        coefficients[model.classes_] = fitted / scale
        intercept[model.classes_] = start - (fitted / scale) @ shift
        return LinearMap(coefficients, intercept, self.inputs)


def _scaling(table: Array, scaling: Scaling) -> tuple[Array, Array]:
    """What is taken from each column, and what it is then divided by."""
    if scaling == "none":
        return np.zeros(table.shape[1]), np.ones(table.shape[1])
    if scaling == "minmax":
        shift, scale = table.min(axis=0), np.ptp(table, axis=0)
    else:
        shift, scale = table.mean(axis=0), table.std(axis=0)
    return shift, np.where(scale > 1e-12, scale, 1.0)
