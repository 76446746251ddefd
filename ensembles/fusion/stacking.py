"""Stacking of several layers: fusions of experts, fused again (Wolpert, 1992; Ting & Witten, 1999)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from ensembles.fusion.base import Fusion
from ensembles.fusion.calibration import held_out_fusion
from ensembles.fusion.fit_cache import fitted
from ensembles.fusion.rules import Stacked
from ensembles.metrics import Array, Labels


class StackedFusion:
    """A second fusion over what several first ones make of the same experts.

    The second one is fitted on posteriors of rows that the first ones were not fitted on; with
    one group there is none to hold out, and it is fitted on what the first ones were.

    Args:
        first: Make the first layer's fusions.
        second: Makes the fusion of these.
    """

    def __init__(self, first: Sequence[Callable[[], Fusion]], second: Callable[[], Fusion]) -> None:
        self.first, self.second = tuple(first), second

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Fits both layers on (M, N, K) log-posteriors, (N,) labels and (N,) groups."""
        self.first_ = tuple(fitted(b(), log_posteriors, labels, groups) for b in self.first)
        between = []
        for build, rule in zip(self.first, self.first_, strict=True):
            held_out = held_out_fusion(build, log_posteriors, labels, groups)
            between.append(rule.apply(log_posteriors) if held_out is None else held_out)
        self.second_ = self.second().fit(np.stack(between), labels, groups).rule()
        return self

    def rule(self) -> Stacked:
        """Return the fitted rule."""
        return Stacked(self.first_, self.second_)
