"""A fitted ensemble: which experts, and the fitted rule that fuses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensembles.fusion.rules import Rule, rule_from_json
from ensembles.metrics import Array


@dataclass(frozen=True)
class Fused:
    """Experts and their fusion.

    Attributes:
        recipe: How they were chosen.
        experts: Names, in the rule's order.
        rule: The fitted fusion.
    """

    recipe: str
    experts: tuple[str, ...]
    rule: Rule

    def apply(self, log_posteriors: Mapping[str, Array]) -> Array:
        """Each expert's (N, K) log-posteriors → (N, K)."""
        return self.rule.apply(np.stack([log_posteriors[name] for name in self.experts]))

    def to_json(self) -> dict[str, Any]:
        """For an export's manifest."""
        return {"recipe": self.recipe, "experts": list(self.experts), "rule": self.rule.to_json()}

    @staticmethod
    def from_json(document: Mapping[str, Any], classes: int) -> Fused:
        """The inverse of `to_json`; raises EnsembleError."""
        experts = tuple(document["experts"])
        rule = rule_from_json(document["rule"], len(experts), classes)
        return Fused(str(document["recipe"]), experts, rule)
