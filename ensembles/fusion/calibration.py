"""Calibration of a fusion: temperature and vector scaling, before it and after it (Guo et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from ensembles.fusion.base import Fusion
from ensembles.fusion.fit_cache import fitted
from ensembles.fusion.rules import Calibrated, Tempered
from ensembles.metrics import Array, Labels, log_softmax

Kind = Literal["temperature", "vector"]
_PENALTY = 1e-3
_LEAST, _MOST = -3.0, 3.0
"""Natural logarithms of the powers that are tried: from a twentieth to twenty."""


class CalibratedFusion:
    """A fusion, and one temperature or one scale and offset a class after it.

    The calibration is fitted on posteriors of rows that the fusion was not fitted on: each group
    is fused by a fusion of the other groups. With one group there is none to hold out, and
    the fusion stays as it is.

    Args:
        build: Makes the fusion.
        kind: `temperature`: p ∝ p^a. `vector`: p ∝ p^aₖ · exp(bₖ), drawn towards a = 1, b = 0.
    """

    def __init__(self, build: Callable[[], Fusion], kind: Kind = "temperature") -> None:
        self.build, self.kind = build, kind

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Fits the fusion on all rows, and its calibration on rows held out from it."""
        held_out = held_out_fusion(self.build, log_posteriors, labels, groups)
        classes = log_posteriors.shape[2]
        self.scale_, self.offset_ = np.ones(classes), np.zeros(classes)
        if held_out is not None:
            self.scale_, self.offset_ = _calibration(held_out, labels, self.kind)
        self.inner_ = fitted(self.build(), log_posteriors, labels, groups)
        return self

    def rule(self) -> Calibrated:
        """Return the fitted rule."""
        return Calibrated(self.inner_, self.scale_, self.offset_)


class TemperedFusion:
    """A fusion of experts, each sharpened or softened by a temperature of its own first.

    An average of probabilities follows whoever is surest, right or wrong; this makes experts
    equally sure for equal reason. The posteriors at hand are out of fold, so that an expert's
    temperature is fitted on clips of speakers it does not know.

    Args:
        build: Makes the fusion.
    """

    def __init__(self, build: Callable[[], Fusion]) -> None:
        self.build = build

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Fits each expert's power, then the fusion of what it makes."""
        self.powers_: Array = np.asarray([best_power(one, labels) for one in log_posteriors])
        tempered = log_softmax(log_posteriors * self.powers_[:, None, None])
        self.inner_ = self.build().fit(tempered, labels, groups).rule()
        return self

    def rule(self) -> Tempered:
        """Return the fitted rule."""
        return Tempered(self.inner_, self.powers_)


def held_out_fusion(
    build: Callable[[], Fusion], log_posteriors: Array, labels: Labels, groups: Labels
) -> Array | None:
    """(N, K): every group fused by what was fitted on the other groups; None with one group."""
    names = np.unique(groups)
    if len(names) < 2:
        return None
    out = np.empty(log_posteriors.shape[1:])
    for group in names:
        outside = groups == group
        rule = fitted(build(), log_posteriors[:, ~outside], labels[~outside], groups[~outside])
        out[outside] = rule.apply(log_posteriors[:, outside])
    return out


def best_power(log_posteriors: Array, labels: Labels) -> float:
    """The power (one over the temperature) of least log-loss."""
    rows = np.arange(len(labels))

    def loss(logarithm: float) -> float:
        return float(-log_softmax(log_posteriors * np.exp(logarithm))[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(_LEAST, _MOST), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def _calibration(log_posteriors: Array, labels: Labels, kind: Kind) -> tuple[Array, Array]:
    """(scale, offset), (K,) each."""
    classes = log_posteriors.shape[1]
    if kind == "temperature":
        return np.full(classes, best_power(log_posteriors, labels)), np.zeros(classes)
    rows = np.arange(len(labels))
    truth = np.zeros_like(log_posteriors)
    truth[rows, labels] = 1.0
    floored = np.maximum(log_posteriors, -30.0)  # a class given up cannot pull the fit

    def loss(parameters: Array) -> tuple[float, Array]:
        scale, offset = parameters.reshape(2, classes)
        calibrated = log_softmax(floored * scale + offset)
        apart = (np.exp(calibrated) - truth) / len(labels)
        away = np.concatenate([scale - 1.0, offset])
        value = float(-calibrated[rows, labels].mean()) + _PENALTY * float(away @ away)
        slope = np.concatenate([(apart * floored).sum(axis=0), apart.sum(axis=0)])
        return value, slope + 2 * _PENALTY * away

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    bounds = [(0.0, None)] * classes + [(None, None)] * classes
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.asarray(found[:classes]), np.asarray(found[classes:])
