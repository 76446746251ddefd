"""Fitted fusions as plain numbers: what a run scores, an export stores and a prediction applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ensembles import EnsembleError
from ensembles.metrics import Array, Labels, log_softmax

Space = Literal["arithmetic", "log"]
Inputs = Literal["probabilities", "logits"]

_LOGIT_FLOOR = -20.0
_CALIBRATION_FLOOR = -30.0
_MOST_LAYERS = 8
"""Of rules within rules, in a file."""


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


@dataclass(frozen=True)
class TraceMap:
    """A linear combination of M experts' traces, one a dimension.

    Attributes:
        weights: (D, M, D): of each dimension, the weight of each expert's trace of each dimension.
        intercept: (D,).
    """

    weights: Array
    intercept: Array

    @staticmethod
    def of_shares(shares: Array) -> TraceMap:
        """(D, M) shares: each dimension is a mixture of the experts' traces of the same one."""
        own = np.eye(len(shares))
        return TraceMap(shares[:, :, None] * own[:, None, :], np.zeros(len(shares)))

    @property
    def used(self) -> Labels:
        """Indices of the experts that weigh something."""
        used = np.flatnonzero((self.weights != 0).any(axis=(0, 2)))
        return used if len(used) else np.zeros(1, np.int64)

    def of_used(self) -> TraceMap:
        """The same, of the used experts alone."""
        return TraceMap(self.weights[:, self.used], self.intercept)

    def apply(self, traces: Array) -> Array:
        """(M, S, D) → (S, D)."""
        joined = np.tensordot(self.weights, traces, axes=([1, 2], [0, 2]))
        return np.asarray(joined.T + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """See `rule_from_json`."""
        return {
            "kind": "traces",
            "weights": self.weights.tolist(),
            "intercept": self.intercept.tolist(),
        }


@dataclass(frozen=True)
class Tempered:
    """A rule, each expert raised to a power of its own before it.

    Attributes:
        inner: The rule.
        powers: (M,), each positive.
    """

    inner: Rule
    powers: Array

    @property
    def used(self) -> Labels:
        """Those that the inner rule uses."""
        return self.inner.used

    def of_used(self) -> Tempered:
        """The same, of the used experts alone."""
        return Tempered(self.inner.of_used(), self.powers[self.used])

    def apply(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""
        return self.inner.apply(log_softmax(log_posteriors * self.powers[:, None, None]))

    def to_json(self) -> dict[str, Any]:
        """See `rule_from_json`."""
        return {"kind": "tempered", "powers": self.powers.tolist(), "inner": self.inner.to_json()}


@dataclass(frozen=True)
class Calibrated:
    """A rule, and a scale and an offset of each class's log-posterior after it.

    Attributes:
        inner: The rule.
        scale: (K,), none negative; all the same for a temperature.
        offset: (K,).
    """

    inner: Rule
    scale: Array
    offset: Array

    @property
    def used(self) -> Labels:
        """Those that the inner rule uses."""
        return self.inner.used

    def of_used(self) -> Calibrated:
        """The same, of the used experts alone."""
        return Calibrated(self.inner.of_used(), self.scale, self.offset)

    def apply(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""
        fused = np.maximum(self.inner.apply(log_posteriors), _CALIBRATION_FLOOR)
        return log_softmax(fused * self.scale + self.offset)

    def to_json(self) -> dict[str, Any]:
        """See `rule_from_json`."""
        return {
            "kind": "calibrated",
            "scale": self.scale.tolist(),
            "offset": self.offset.tolist(),
            "inner": self.inner.to_json(),
        }


@dataclass(frozen=True)
class Stacked:
    """Several rules over the same experts, and one over these.

    Attributes:
        first: The first layer.
        second: Its experts are the first layer's rules.
    """

    first: tuple[Rule, ...]
    second: Rule

    @property
    def used(self) -> Labels:
        """Experts of any rule that the second layer uses."""
        used = [self.first[layer].used for layer in self.second.used]
        return np.unique(np.concatenate(used))

    def of_used(self) -> Stacked:
        """The same, of the used experts alone."""
        kept = self.used
        rules = [self.first[layer] for layer in self.second.used]
        return Stacked(tuple(_of(rule, kept) for rule in rules), self.second.of_used())

    def apply(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""
        return self.second.apply(np.stack([rule.apply(log_posteriors) for rule in self.first]))

    def to_json(self) -> dict[str, Any]:
        """See `rule_from_json`."""
        return {
            "kind": "stacked",
            "first": [rule.to_json() for rule in self.first],
            "second": self.second.to_json(),
        }


Rule = Pooling | LinearMap | Tempered | Calibrated | Stacked | TraceMap


def _of(rule: Rule, kept: Labels) -> Rule:
    """A rule over some of its experts, of which it uses no others."""
    if isinstance(rule, Pooling):
        return Pooling(rule.weights[kept], rule.space, rule.floor)
    if isinstance(rule, Tempered):
        return Tempered(_of(rule.inner, kept), rule.powers[kept])
    if isinstance(rule, Calibrated):
        return Calibrated(_of(rule.inner, kept), rule.scale, rule.offset)
    if isinstance(rule, TraceMap):
        return TraceMap(rule.weights[:, kept], rule.intercept)
    if isinstance(rule, Stacked):
        return Stacked(tuple(_of(one, kept) for one in rule.first), rule.second)
    classes = len(rule.intercept)
    columns = (kept[:, None] * classes + np.arange(classes)).ravel()
    return LinearMap(rule.coefficients[:, columns], rule.intercept, rule.inputs)


def posterior_table(log_posteriors: Array, inputs: Inputs) -> Array:
    """(M, N, K) → (N, M·K), what logistic regression reads."""
    values = (
        np.exp(log_posteriors)
        if inputs == "probabilities"
        else np.maximum(log_posteriors, _LOGIT_FLOOR)
    )
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1)


def rule_from_json(
    document: Mapping[str, Any], experts: int, classes: int, layers: int = _MOST_LAYERS
) -> Rule:
    """The inverse of `to_json`.

    Raises:
        EnsembleError: If the numbers do not fit this many experts and classes, or rules lie
            within rules more than `layers` deep.
    """
    if layers == 0:
        raise EnsembleError(f"Damaged fusion parameters: more than {_MOST_LAYERS} layers.")
    try:
        kind = document["kind"]
        if kind not in _READERS:
            raise EnsembleError(f"Unknown kind of fusion '{kind}'.")
        rule, fits = _READERS[kind](document, experts, classes, layers - 1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, EnsembleError):
            raise
        raise EnsembleError(f"Damaged fusion parameters: {error!r}.") from error
    if not fits:
        raise EnsembleError(
            f"The fusion's parameters do not fit {experts} experts and {classes} classes."
        )
    return rule


_Read = tuple[Rule, bool]
"""A rule, and whether its numbers fit experts and classes."""


def _pooling(document: Mapping[str, Any], experts: int, classes: int, layers: int) -> _Read:
    floor, weights = document["floor"], _numbers(document["weights"])
    if (weights < 0).any():
        raise ValueError("a negative weight")
    space = _known(document["space"], get_args(Space))
    rule = Pooling(weights, space, None if floor is None else float(floor))
    return rule, weights.shape == (experts,)


def _linear(document: Mapping[str, Any], experts: int, classes: int, layers: int) -> _Read:
    rule = LinearMap(
        _numbers(document["coefficients"]),
        _numbers(document["intercept"]),
        _known(document["inputs"], get_args(Inputs)),
    )
    fits = rule.coefficients.shape == (classes, experts * classes)
    return rule, fits and rule.intercept.shape == (classes,)


def _tempered(document: Mapping[str, Any], experts: int, classes: int, layers: int) -> _Read:
    powers = _numbers(document["powers"])
    if (powers <= 0).any():
        raise ValueError("a power that is not positive")
    inner = rule_from_json(document["inner"], experts, classes, layers)
    return Tempered(inner, powers), powers.shape == (experts,)


def _calibrated(document: Mapping[str, Any], experts: int, classes: int, layers: int) -> _Read:
    scale, offset = _numbers(document["scale"]), _numbers(document["offset"])
    if (scale < 0).any():
        raise ValueError("a negative scale")
    inner = rule_from_json(document["inner"], experts, classes, layers)
    return Calibrated(inner, scale, offset), scale.shape == offset.shape == (classes,)


def _stacked(document: Mapping[str, Any], experts: int, classes: int, layers: int) -> _Read:
    rules = [rule_from_json(one, experts, classes, layers) for one in document["first"]]
    second = rule_from_json(document["second"], len(rules), classes, layers)
    return Stacked(tuple(rules), second), bool(rules)


def _traces(document: Mapping[str, Any], experts: int, classes: int, layers: int) -> _Read:
    rule = TraceMap(_numbers(document["weights"]), _numbers(document["intercept"]))
    fits = rule.weights.shape == (classes, experts, classes)
    return rule, fits and rule.intercept.shape == (classes,)


_READERS: dict[str, Callable[[Mapping[str, Any], int, int, int], _Read]] = {
    "pooling": _pooling,
    "linear": _linear,
    "tempered": _tempered,
    "calibrated": _calibrated,
    "stacked": _stacked,
    "traces": _traces,
}


def _numbers(values: Any) -> Array:
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a number that is not finite")
    return numbers


def _known(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"'{value}' is none of {', '.join(choices)}")
    return value
