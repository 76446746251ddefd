"""Fitted fusions as plain numbers: what a run scores, an export stores and a prediction applies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ensembles import EnsembleError
from ensembles.metrics import Array, Labels, log_softmax

Space = Literal["arithmetic", "log"]
Inputs = Literal["probabilities", "logits"]

_LOGIT_FLOOR = -20.0


@dataclass(frozen=True)
class Pooling:
    """Weighted pooling of M experts' posteriors.

    Attributes:
        weights: (M,), none negative. In log space their sum is free, which calibrates; in
            arithmetic space it does not matter.
        space: `arithmetic` mixes probabilities, `log` multiplies their powers.
        floor: Log-posteriors below are raised to it: one overconfident expert must not
            veto a class.
    """

    weights: Array
    space: Space = "log"
    floor: float | None = None

    @property
    def used(self) -> Labels:
        """Indices of the experts that weigh something; the first where none does."""
        used = np.flatnonzero(self.weights > 0)
        return used if len(used) else np.zeros(1, np.int64)

    def of_used(self) -> Pooling:
        """The same pooling of the used experts alone."""
        return Pooling(self.weights[self.used], self.space, self.floor)

    def apply(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""
        values = log_posteriors if self.floor is None else np.maximum(log_posteriors, self.floor)
        if self.space == "log":
            return log_softmax(np.tensordot(self.weights, values, axes=1))
        mixed = np.tensordot(self.weights / self.weights.sum(), np.exp(values), axes=1)
        return np.asarray(np.log(mixed + 1e-300))

    def to_json(self) -> dict[str, Any]:
        """See `rule_from_json`."""
        return {
            "kind": "pooling",
            "space": self.space,
            "weights": self.weights.tolist(),
            "floor": self.floor,
        }


@dataclass(frozen=True)
class LinearMap:
    """Logistic regression on the concatenated posteriors of M experts.

    Attributes:
        coefficients: (K, M·K), scaling folded in.
        intercept: (K,).
        inputs: `probabilities` or `logits` (log-posteriors).
    """

    coefficients: Array
    intercept: Array
    inputs: Inputs

    @property
    def used(self) -> Labels:
        """All experts."""
        return np.arange(self.coefficients.shape[1] // len(self.intercept))

    def of_used(self) -> LinearMap:
        """All of it."""
        return self

    def apply(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""
        return self.apply_table(posterior_table(log_posteriors, self.inputs))

    def apply_table(self, table: Array) -> Array:
        """As `apply`, from (N, M·K)."""
        return log_softmax(table @ self.coefficients.T + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """See `rule_from_json`."""
        return {
            "kind": "linear",
            "inputs": self.inputs,
            "coefficients": self.coefficients.tolist(),
            "intercept": self.intercept.tolist(),
        }


Rule = Pooling | LinearMap


def posterior_table(log_posteriors: Array, inputs: Inputs) -> Array:
    """(M, N, K) → (N, M·K), what logistic regression reads."""
    values = (
        np.exp(log_posteriors)
        if inputs == "probabilities"
        else np.maximum(log_posteriors, _LOGIT_FLOOR)
    )
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1)


def rule_from_json(document: Mapping[str, Any], experts: int, classes: int) -> Rule:
    """The inverse of `to_json`.

    Raises:
        EnsembleError: If the numbers do not fit this many experts and classes.
    """
    try:
        rule: Rule
        if document["kind"] == "pooling":
            floor, weights = document["floor"], _numbers(document["weights"])
            if (weights < 0).any():
                raise ValueError("a negative weight")
            space = _known(document["space"], get_args(Space))
            rule = Pooling(weights, space, None if floor is None else float(floor))
            fits = rule.weights.shape == (experts,)
        elif document["kind"] == "linear":
            rule = LinearMap(
                _numbers(document["coefficients"]),
                _numbers(document["intercept"]),
                _known(document["inputs"], get_args(Inputs)),
            )
            fits = rule.coefficients.shape == (classes, experts * classes)
            fits = fits and rule.intercept.shape == (classes,)
        else:
            raise EnsembleError(f"Unknown kind of fusion '{document['kind']}'.")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, EnsembleError):
            raise
        raise EnsembleError(f"Damaged fusion parameters: {error!r}.") from error
    if not fits:
        raise EnsembleError(
            f"The fusion's parameters do not fit {experts} experts and {classes} classes."
        )
    return rule


def _numbers(values: Any) -> Array:
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a number that is not finite")
    return numbers


def _known(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"'{value}' is none of {', '.join(choices)}")
    return value
