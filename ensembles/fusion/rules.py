"""Fitted fusions as plain numbers: what a run scores, an export stores and a prediction applies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from ensembles import EnsembleError
from ensembles.metrics import Array, Labels, log_softmax

Space = Literal["arithmetic", "log"]
Inputs = Literal["probabilities", "logits"]

_LOGIT_FLOOR = -20.0
_CALIBRATION_FLOOR = -30.0
_MOST_LAYERS = 8
"""Most layers of rules within rules, in a file."""


class Rule(ABC):
    """A fitted fusion of M experts; `class MyRule(Rule, kind="mine")` makes it readable from JSON.

    Attributes:
        kind: What JSON calls the class.
        kinds: Kind → class.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Rule]]] = {}

    def __init_subclass__(cls, *, kind: str) -> None:
        cls.kind, cls.kinds[kind] = kind, cls

    @property
    @abstractmethod
    def used(self) -> Labels:
        """Indices of the experts that weigh something, in order."""

    @abstractmethod
    def restrict(self, kept: Labels) -> Self:
        """Return the same rule over some of its experts, among them all that it uses."""

    def of_used(self) -> Self:
        """Return the same rule over the used experts alone."""
        return self.restrict(self.used)

    @abstractmethod
    def apply(self, log_posteriors: Array) -> Array:
        """(M, N, K) → (N, K) log-posteriors; or traces."""

    @abstractmethod
    def fits(self, experts: int, classes: int) -> bool:
        """Tell whether its numbers are of so many experts and classes, or dimensions."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return what `rule_from_json` reads."""

    @classmethod
    @abstractmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read `to_json`; raises ValueError, KeyError or TypeError for what no rule can be."""


@dataclass(frozen=True)
class Pooling(Rule, kind="pooling"):
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

    def restrict(self, kept: Labels) -> Self:
        """See `Rule`."""
        return replace(self, weights=self.weights[kept])

    def apply(self, log_posteriors: Array) -> Array:
        """See `Rule`."""
        values = log_posteriors if self.floor is None else np.maximum(log_posteriors, self.floor)
        if self.space == "log":
            return log_softmax(np.tensordot(self.weights, values, axes=1))
        mixed = np.tensordot(self.weights / self.weights.sum(), np.exp(values), axes=1)
        return np.asarray(np.log(mixed + 1e-300))

    def fits(self, experts: int, classes: int) -> bool:
        """See `Rule`."""
        return self.weights.shape == (experts,)

    def to_json(self) -> dict[str, Any]:
        """See `Rule`."""
        return {
            "kind": self.kind,
            "space": self.space,
            "weights": self.weights.tolist(),
            "floor": self.floor,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """See `Rule`."""
        floor, weights = document["floor"], _numbers(document["weights"])
        if (weights < 0).any():
            raise ValueError("a negative weight")
        space = _known(document["space"], get_args(Space))
        return cls(weights, space, None if floor is None else float(floor))


@dataclass(frozen=True)
class LinearMap(Rule, kind="linear"):
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

    def restrict(self, kept: Labels) -> Self:
        """See `Rule`."""
        classes = len(self.intercept)
        columns = (kept[:, None] * classes + np.arange(classes)).ravel()
        return replace(self, coefficients=np.take(self.coefficients, columns, axis=1))

    def apply(self, log_posteriors: Array) -> Array:
        """See `Rule`."""
        return self.apply_table(posterior_table(log_posteriors, self.inputs))

    def apply_table(self, table: Array) -> Array:
        """Apply like `apply`, from (N, M·K)."""
        return log_softmax(table @ self.coefficients.T + self.intercept)

    def fits(self, experts: int, classes: int) -> bool:
        """See `Rule`."""
        return (self.coefficients.shape, self.intercept.shape) == (
            (classes, experts * classes),
            (classes,),
        )

    def to_json(self) -> dict[str, Any]:
        """See `Rule`."""
        return {
            "kind": self.kind,
            "inputs": self.inputs,
            "coefficients": self.coefficients.tolist(),
            "intercept": self.intercept.tolist(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """See `Rule`."""
        return cls(
            _numbers(document["coefficients"]),
            _numbers(document["intercept"]),
            _known(document["inputs"], get_args(Inputs)),
        )


@dataclass(frozen=True)
class TraceMap(Rule, kind="traces"):
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

    def restrict(self, kept: Labels) -> Self:
        """See `Rule`."""
        return replace(self, weights=self.weights[:, kept])

    def apply(self, traces: Array) -> Array:
        """(M, S, D) → (S, D)."""
        joined = np.tensordot(self.weights, traces, axes=([1, 2], [0, 2]))
        return np.asarray(joined.T + self.intercept)

    def fits(self, experts: int, classes: int) -> bool:
        """See `Rule`."""
        return (self.weights.shape, self.intercept.shape) == (
            (classes, experts, classes),
            (classes,),
        )

    def to_json(self) -> dict[str, Any]:
        """See `Rule`."""
        return {
            "kind": self.kind,
            "weights": self.weights.tolist(),
            "intercept": self.intercept.tolist(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """See `Rule`."""
        return cls(_numbers(document["weights"]), _numbers(document["intercept"]))


@dataclass(frozen=True)
class Tempered(Rule, kind="tempered"):
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

    def restrict(self, kept: Labels) -> Self:
        """See `Rule`."""
        return replace(self, inner=self.inner.restrict(kept), powers=self.powers[kept])

    def apply(self, log_posteriors: Array) -> Array:
        """See `Rule`."""
        return self.inner.apply(log_softmax(log_posteriors * self.powers[:, None, None]))

    def fits(self, experts: int, classes: int) -> bool:
        """See `Rule`."""
        return self.powers.shape == (experts,) and self.inner.fits(experts, classes)

    def to_json(self) -> dict[str, Any]:
        """See `Rule`."""
        return {"kind": self.kind, "powers": self.powers.tolist(), "inner": self.inner.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """See `Rule`."""
        powers = _numbers(document["powers"])
        if (powers <= 0).any():
            raise ValueError("a power that is not positive")
        return cls(_read(document["inner"]), powers)


@dataclass(frozen=True)
class Calibrated(Rule, kind="calibrated"):
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

    def restrict(self, kept: Labels) -> Self:
        """See `Rule`."""
        return replace(self, inner=self.inner.restrict(kept))

    def apply(self, log_posteriors: Array) -> Array:
        """See `Rule`."""
        fused = np.maximum(self.inner.apply(log_posteriors), _CALIBRATION_FLOOR)
        return log_softmax(fused * self.scale + self.offset)

    def fits(self, experts: int, classes: int) -> bool:
        """See `Rule`."""
        of_classes = self.scale.shape == self.offset.shape == (classes,)
        return of_classes and self.inner.fits(experts, classes)

    def to_json(self) -> dict[str, Any]:
        """See `Rule`."""
        return {
            "kind": self.kind,
            "scale": self.scale.tolist(),
            "offset": self.offset.tolist(),
            "inner": self.inner.to_json(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """See `Rule`."""
        scale, offset = _numbers(document["scale"]), _numbers(document["offset"])
        if (scale < 0).any():
            raise ValueError("a negative scale")
        return cls(_read(document["inner"]), scale, offset)


@dataclass(frozen=True)
class Stacked(Rule, kind="stacked"):
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

    def restrict(self, kept: Labels) -> Self:
        """See `Rule`; first rules that the second one does not use are left out."""
        first = tuple(self.first[layer].restrict(kept) for layer in self.second.used)
        return replace(self, first=first, second=self.second.of_used())

    def apply(self, log_posteriors: Array) -> Array:
        """See `Rule`."""
        return self.second.apply(np.stack([rule.apply(log_posteriors) for rule in self.first]))

    def fits(self, experts: int, classes: int) -> bool:
        """See `Rule`."""
        first = bool(self.first) and all(rule.fits(experts, classes) for rule in self.first)
        return first and self.second.fits(len(self.first), classes)

    def to_json(self) -> dict[str, Any]:
        """See `Rule`."""
        return {
            "kind": self.kind,
            "first": [rule.to_json() for rule in self.first],
            "second": self.second.to_json(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """See `Rule`."""
        return cls(tuple(map(_read, document["first"])), _read(document["second"]))


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
        EnsembleError: If the numbers do not fit this many experts and classes, or rules lie
            within rules too deep.
    """
    if _layers(document) > _MOST_LAYERS:
        raise EnsembleError(f"Damaged fusion parameters: more than {_MOST_LAYERS} layers.")
    try:
        rule = _read(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, EnsembleError):
            raise
        raise EnsembleError(f"Damaged fusion parameters: {error!r}.") from error
    if not rule.fits(experts, classes):
        raise EnsembleError(
            f"The fusion's parameters do not fit {experts} experts and {classes} classes."
        )
    return rule


def _layers(document: Any) -> int:
    """How many rules lie within each other, the outer one counted."""
    if isinstance(document, Mapping):
        return 1 + max(map(_layers, document.values()), default=0)
    return max(map(_layers, document), default=0) if isinstance(document, list) else 0


def _read(document: Mapping[str, Any]) -> Rule:
    kind = document["kind"]
    if kind not in Rule.kinds:
        with suppress(ModuleNotFoundError):  # an export's own program knows the kinds of this file
            import_module("ensembles.fusion.methods")
    if kind not in Rule.kinds:
        raise EnsembleError(f"Unknown kind of fusion '{kind}'.")
    return Rule.kinds[kind].from_json(document)


def _numbers(values: Any) -> Array:
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a number that is not finite")
    return numbers


def _known(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"'{value}' is none of {', '.join(choices)}")
    return value
