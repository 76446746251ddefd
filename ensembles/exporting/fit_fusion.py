"""Fit the chosen fusion on all held-out posteriors, for export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

from ensembles import EnsembleError
from ensembles.artifact.fitted_ensemble import Fused
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.fusion.candidates import Candidate, recipes_for


class Chooser:
    """Fits a run's chosen recipes again from its bank; what comes out is the same numbers.

    Args:
        fitter: Over the run's finished experts.
        candidates: Those that it may name; None for the run's recipes.
    """

    def __init__(self, fitter: CrossFitter, candidates: Iterable[Candidate] | None = None) -> None:
        self.fitter = fitter
        if candidates is None:
            candidates = recipes_for(fitter.experts, fitter.metric)
        self.candidates = {candidate.name: candidate for candidate in candidates}

    def fit(self, recipe: str, excluded: Iterable[int] = ()) -> Fused:
        """A recipe's experts and rule, chosen and fitted without the excluded folds.

        Raises:
            EnsembleError: If these experts do not allow the recipe.
        """
        known = self._known(recipe)
        members, rule = self.fitter.fit(known, frozenset(excluded))
        return Fused(recipe, tuple(self.fitter.experts.names[m] for m in members), rule)

    def substitutes(
        self, fused: Fused, inputs_of: Mapping[str, frozenset[str]]
    ) -> dict[frozenset[str], Fused]:
        """Fit the fusions that take the ensemble's place where a clip lacks some of its inputs.

        Args:
            fused: The whole ensemble.
            inputs_of: Expert → the inputs that it reads; those not named are not to be had.

        Returns:
            Inputs at hand → the ensemble's experts that these suffice for, fused by the same
            recipe fitted on them alone; where there are none, the best expert that they
            suffice for. Sets that suffice for no expert are left out.
        """
        inputs = sorted(frozenset().union(*inputs_of.values()))
        found = {}
        for count in range(1, len(inputs)):
            for some in map(frozenset, combinations(inputs, count)):
                substitute = self._substitute(fused, inputs_of, some)
                if substitute is not None and substitute.experts != fused.experts:
                    found[some] = substitute
        return found

    def _substitute(
        self, fused: Fused, inputs_of: Mapping[str, frozenset[str]], some: frozenset[str]
    ) -> Fused | None:
        experts = self.fitter.experts
        able = [m for m, n in enumerate(experts.names) if n in inputs_of and inputs_of[n] <= some]
        if not able:
            return None
        members = [m for m in able if experts.names[m] in fused.experts]
        if not members:
            merits = self.fitter.merits(frozenset())
            members = [max(able, key=lambda m: merits[m])]
        rule = self.fitter.fit_rule(self._known(fused.recipe), members, frozenset())
        used = [members[m] for m in rule.used]
        return Fused(fused.recipe, tuple(experts.names[m] for m in used), rule.of_used())

    def _known(self, recipe: str) -> Candidate:
        if recipe not in self.candidates:
            raise EnsembleError(
                f"The run's recipe '{recipe}' does not fit the experts in its bank. "
                "Continue the run with --resume to assess it again."
            )
        return self.candidates[recipe]
