"""Logistic regression on posteriors, the fusion of the source papers."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ensembles.metrics import Array, Labels, log_softmax, score

Inputs = Literal["probabilities", "logits"]

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
    """

    def __init__(self, inputs: Inputs = "logits", penalties: tuple[float, ...] = PENALTIES) -> None:
        self.inputs, self.penalties = inputs, penalties

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Fits on (M, N, K) log-posteriors, (N,) labels and (N,) groups.

        C is the value with the least log-loss when each group is held out in turn.
        """
        table = self._table(log_posteriors)
        self.num_classes_ = log_posteriors.shape[2]
        self.penalty_ = self._best_penalty(table, labels, groups)
        self.scaler_, self.model_ = _fit_one(table, labels, self.penalty_)
        return self

    def predict(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""
        return _predict(self.scaler_, self.model_, self._table(log_posteriors), self.num_classes_)

    def _best_penalty(self, table: Array, labels: Labels, groups: Labels) -> float:
        kept = np.unique(groups)
        if len(kept) < 2 or len(self.penalties) == 1:
            return self.penalties[len(self.penalties) // 2]
        losses = []
        for penalty in self.penalties:
            total = 0.0
            for group in kept:
                inside, outside = groups != group, groups == group
                scaler, model = _fit_one(table[inside], labels[inside], penalty)
                predicted = _predict(scaler, model, table[outside], self.num_classes_)
                total += score("log_loss", labels[outside], predicted) * outside.mean()
            losses.append(total)
        return self.penalties[int(np.argmin(losses))]

    def _table(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, M·K)."""
        values = (
            np.exp(log_posteriors)
            if self.inputs == "probabilities"
            else np.maximum(log_posteriors, -20.0)
        )
        return values.transpose(1, 0, 2).reshape(values.shape[1], -1)


def _fit_one(
    table: Array, labels: Labels, penalty: float
) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(table)
    model = LogisticRegression(C=penalty, max_iter=200, tol=1e-3).fit(
        scaler.transform(table), labels
    )
    return scaler, model


def _predict(
    scaler: StandardScaler, model: LogisticRegression, table: Array, num_classes: int
) -> Array:
    """Classes that were not among the fitted rows get the least probability there is."""
    decision = model.decision_function(scaler.transform(table))
    if decision.ndim == 1:  # two classes
        decision = np.stack([-decision / 2, decision / 2], axis=1)
    logits = np.full((len(table), num_classes), decision.min() - 20.0)
    logits[:, model.classes_] = decision
    return log_softmax(logits)
