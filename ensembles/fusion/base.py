"""What every fusion method is: fitted on posteriors, then a rule of plain numbers."""

from __future__ import annotations

from typing import Protocol, Self

from ensembles.fusion.rules import Rule
from ensembles.metrics import Array, Labels


class Fusion(Protocol):
    """An estimator that turns M experts' posteriors, or traces, into one."""

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels, /) -> Self:
        """(M, N, K), (N,), (N,) → self."""

    def predict(self, log_posteriors: Array, /) -> Array:
        """(M, N, K) → (N, K) log-posteriors."""

    def rule(self) -> Rule:
        """What was fitted, as plain numbers."""
