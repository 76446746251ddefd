"""A fusion method is fitted on posteriors, and then is a rule of plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self, TypeVar

from ensembles.fusion.rules import Rule
from ensembles.metrics import Array, Labels


class Fusion(Protocol):
    """An estimator that turns M experts' posteriors, or traces, into one."""

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels, /) -> Self:
        """(M, N, K), (N,), (N,) → self."""

    def rule(self) -> Rule:
        """Return the fitted rule."""


Build = Callable[[Sequence[str]], Fusion]
"""Makes the fusion of experts of these modalities."""
F = TypeVar("F", bound=Callable[[], Fusion])

REGISTERED: dict[str, dict[str, Build]] = {"classes": {}, "traces": {}}
"""Kind of prediction → name → a method that registered itself."""


def register_fusion(
    name: str, *, answers: Literal["classes", "traces"] = "classes"
) -> Callable[[F], F]:
    """Have the fusion search try a method wherever it tries its own, and after those.

    Args:
        name: What the leaderboard calls it.
        answers: What its experts predict.
    """

    def register(method: F) -> F:
        assert name not in REGISTERED[answers], f"two fusion methods are called '{name}'"
        REGISTERED[answers][name] = lambda _: method()
        return method

    return register
