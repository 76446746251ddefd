"""Cross-fitting: fit a fusion without each fold and apply it to that fold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from ensembles.bank.posterior_bank import Experts
from ensembles.fusion.candidates import Candidate, Fitted, Recipe
from ensembles.fusion.fit_cache import fitted, remembering
from ensembles.fusion.rules import Rule
from ensembles.metrics import Array, get_metric

C = TypeVar("C", bound=Candidate)


@dataclass
class CrossFitter:
    """Selects and fits candidates on some folds and predicts others, remembering what it did.

    No row that is predicted takes part in choosing the experts or fitting their fusion.
    """

    experts: Experts
    metric: str
    _fitted: dict[tuple[str, frozenset[int]], Fitted] = field(default_factory=dict)
    _rules: dict[tuple[str, tuple[int, ...], frozenset[int]], Rule] = field(default_factory=dict)
    _known: dict[bytes, Rule] = field(default_factory=dict)
    _merits: dict[frozenset[int], Array] = field(default_factory=dict)

    @property
    def folds(self) -> list[int]:
        """The folds' numbers."""
        return [int(k) for k in np.unique(self.experts.table.folds)]

    def merits(self, excluded: frozenset[int]) -> Array:
        """(M,) mean of each expert's fold scores outside the excluded folds, higher is better."""
        if excluded not in self._merits:
            table, values = self.experts.table, self.experts.log_posteriors
            utility = get_metric(self.metric).utility
            rows = [table.folds == k for k in self.folds if k not in excluded]
            self._merits[excluded] = np.asarray(
                [np.mean([utility(table.labels[r], one[r]) for r in rows]) for one in values]
            )
        return self._merits[excluded]

    def fit(self, candidate: Candidate, excluded: frozenset[int]) -> Fitted:
        """Experts that weigh something, and their fusion, with no look at the excluded folds."""
        key = (candidate.name, excluded)
        if key not in self._fitted:
            self._fitted[key] = candidate.fit(self, excluded)
        return self._fitted[key]

    def fit_rule(self, candidate: Candidate, taken: list[int], excluded: frozenset[int]) -> Rule:
        """Fit a candidate's fusion of given experts outside the excluded folds."""
        key = (candidate.name, tuple(taken), excluded)
        if key not in self._rules:
            table = self.experts.table
            rows = ~np.isin(table.folds, list(excluded))
            values = self.experts.log_posteriors[taken][:, rows]
            fusion = candidate.build([self.experts.modalities[m] for m in taken])
            with remembering(self._known):
                self._rules[key] = fitted(fusion, values, table.labels[rows], table.folds[rows])
        return self._rules[key]

    def predict(self, candidate: Candidate, excluded: frozenset[int], fold: int) -> Array:
        """Log-posteriors of one fold's clips, (n, K)."""
        assert fold in excluded, "a fold must not be predicted by what was fitted on it"
        taken, rule = self.fit(candidate, excluded)
        rows = self.experts.table.folds == fold
        return rule.apply(self.experts.log_posteriors[taken][:, rows])

    def searched(self, recipe: Recipe) -> Array:
        """(N, K): experts chosen on ALL folds, fusion cross-fitted. Optimistic: the search's view."""
        taken = recipe.select(self.experts, self.merits(frozenset()))
        out = np.empty(self.experts.log_posteriors.shape[1:])
        for fold in self.folds:
            rows = self.experts.table.folds == fold
            rule = self.fit_rule(recipe, taken, frozenset({fold}))
            out[rows] = rule.apply(self.experts.log_posteriors[taken][:, rows])
        return out

    def honest(self, candidate: Candidate) -> Array:
        """(N, K): for each fold, experts chosen and fusion fitted on the other folds alone."""
        out = np.empty(self.experts.log_posteriors.shape[1:])
        for fold in self.folds:
            out[self.experts.table.folds == fold] = self.predict(candidate, frozenset({fold}), fold)
        return out

    def inner_score(self, candidate: Candidate, fold: int) -> float:
        """A candidate's merit without a fold: cross-fitted over the other folds alone.

        Of classes by log-loss, whatever the metric: over a few folds a proper score tells two dozen
        candidates apart where counting hits mostly picks the luckiest.
        """
        metric, table = get_metric(self.metric), self.experts.table
        by = get_metric("log_loss") if metric.task == "classes" else metric
        merits = []
        for other in self.folds:
            if other != fold:
                predicted = self.predict(candidate, frozenset({fold, other}), other)
                merits.append(by.utility(table.labels[table.folds == other], predicted))
        return float(np.mean(merits))

    def choose(self, candidates: list[C], fold: int) -> C:
        """The candidate that is best without a fold; ties go to the plainer one.

        With two folds nothing is left to cross-fit on; then the experts' own merits decide.
        """
        if len(self.folds) < 3:
            return max(candidates, key=lambda c: self._plain_merit(c, frozenset({fold})))
        return max(candidates, key=lambda c: self.inner_score(c, fold))

    def _plain_merit(self, candidate: Candidate, excluded: frozenset[int]) -> float:
        """In-sample score; used only where there are too few folds to do better."""
        taken, rule = self.fit(candidate, excluded)
        table, metric = self.experts.table, get_metric(self.metric)
        rows = ~np.isin(table.folds, list(excluded))
        values = rule.apply(self.experts.log_posteriors[taken][:, rows])
        return metric.sign * metric.fold_mean(table.labels[rows], values, table.folds[rows])
