"""Honest scores: chosen fold by fold from the other folds, with an interval over speakers.

Two numbers, two names. The *search score* is the best that the search saw: experts and
recipe were chosen on the very folds that are scored. The *honest score* chooses trials,
fusion and recipe for each fold from the other folds only. docs/honesty.md says for every
number what its training, selection, stacking and scaling saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ensembles.bank.posterior_bank import MODALITIES, Experts, Table
from ensembles.evaluation.bias_correction import Candidates, Corrected
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.evaluation.intervals import Interval, speaker_interval
from ensembles.fusion.candidates import Recipe, recipes_for, single_name
from ensembles.metrics import Array, get_metric


@dataclass(frozen=True)
class Scored:
    """One row of the leaderboard.

    Attributes:
        name: Recipe, or `fused` for the recipe chosen fold by fold.
        search_score: Best that the search saw, fold mean; None where it has no meaning.
        honest_score: Mean of the fold scores.
        honest_pooled: Score of all folds' predictions together.
        interval: Of the honest score, over speakers.
        fold_scores: (folds,) honest.
        experts: Those taken when all folds may choose.
        log_posteriors: (N, K) honest.
        per_fold: For each fold the recipe and the experts that were chosen without it.
        corrected: What the winner of this choice is worth, corrected for its luck; None where
            nothing was chosen, or there are too few speakers.
    """

    name: str
    search_score: float | None
    honest_score: float
    honest_pooled: float
    interval: Interval
    fold_scores: tuple[float, ...]
    experts: tuple[str, ...]
    log_posteriors: Array
    per_fold: tuple[tuple[str, tuple[str, ...]], ...] = ()
    corrected: Corrected | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the posteriors."""
        return {
            "name": self.name,
            "search_score": self.search_score,
            "honest_score": self.honest_score,
            "honest_score_pooled": self.honest_pooled,
            "interval_95": [self.interval.low, self.interval.high],
            "interval_method": self.interval.method,
            "fold_scores": list(self.fold_scores),
            "experts": list(self.experts),
            "per_fold": [
                {"recipe": recipe, "experts": list(names)} for recipe, names in self.per_fold
            ],
            "corrected": self.corrected.to_json() if self.corrected else None,
        }


@dataclass(frozen=True)
class Assessment:
    """Scores of a bank of experts.

    Attributes:
        metric: What is scored.
        recipes: Every recipe, single experts first.
        fused: The recipe chosen fold by fold: the headline.
        chosen: The recipe that all folds together choose, for export.
        alone: Modality → the recipe chosen fold by fold among those of its experts alone.
    """

    metric: str
    table: Table
    recipes: tuple[Scored, ...]
    fused: Scored
    chosen: str
    alone: dict[str, Scored] = field(default_factory=dict)

    def row(self, name: str) -> Scored | None:
        """A recipe's row, or None."""
        return next((row for row in self.recipes if row.name == name), None)

    @property
    def singles(self) -> dict[str, Scored]:
        """Modality → the row of its best expert, of modalities that have one."""
        found = {modality: self.row(single_name(modality)) for modality in MODALITIES}
        return {modality: row for modality, row in found.items() if row is not None}


def assess(
    experts: Experts,
    metric: str,
    *,
    rungs: Iterable[tuple[str, Array]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Assessment:
    """Cross-fits every recipe and scores it, and the choice among them, honestly.

    Args:
        experts: What may be fused.
        metric: What is scored.
        rungs: Modality and (N, K) log-posteriors of all that the search could have chosen, for
            the correction of single experts' scores (default: the experts).
        on_progress: Told how many recipes of how many are done.
    """
    fitter = CrossFitter(experts, metric)
    recipes = recipes_for(experts, metric)
    # The fits are small: a second thread costs more in waiting than it gains.
    with threadpool_limits(1):
        rows = _score_recipes(fitter, recipes, on_progress)
        rows = _corrected_singles(experts, metric, rows, rungs)
    alone = {}
    for modality in dict.fromkeys(recipe.within for recipe in recipes if not recipe.single):
        if modality is not None:
            within = [recipe for recipe in recipes if recipe.within == modality]
            alone[modality] = _score_choice(fitter, within, rows, f"{modality} alone")
    fused = _score_choice(fitter, recipes, rows, "fused")
    return Assessment(metric, experts.table, tuple(rows), fused, _best(rows, metric).name, alone)


def _corrected_singles(
    experts: Experts,
    metric: str,
    rows: Sequence[Scored],
    rungs: Iterable[tuple[str, Array]] | None,
) -> list[Scored]:
    """The best expert of each modality: chosen among every rung of every trial."""
    of_modality: dict[str, Candidates] = {}
    for modality, log_posteriors in rungs or zip(
        experts.modalities, experts.log_posteriors, strict=True
    ):
        candidates = of_modality.setdefault(modality, Candidates(metric, experts.table))
        candidates.add([log_posteriors])
    singles = {single_name(modality): found.corrected() for modality, found in of_modality.items()}
    return [replace(row, corrected=singles.get(row.name)) for row in rows]


def _best(rows: Sequence[Scored], metric: str) -> Scored:
    """The row that the search saw as best."""
    sign = get_metric(metric).sign
    return max(rows, key=lambda row: sign * (row.search_score or 0.0))


def _score_recipes(
    fitter: CrossFitter, recipes: list[Recipe], on_progress: Callable[[int, int], None] | None
) -> list[Scored]:
    rows = []
    for done, recipe in enumerate(recipes, start=1):
        rows.append(_score_recipe(fitter, recipe))
        if len(fitter.folds) > 2:
            for fold in fitter.folds:
                fitter.inner_score(recipe, fold)  # remembered for the choice that follows
        if on_progress:
            on_progress(done, len(recipes))
    return rows


def _score_recipe(fitter: CrossFitter, recipe: Recipe) -> Scored:
    experts, table = fitter.experts, fitter.experts.table
    metric = get_metric(fitter.metric)
    searched = metric.fold_mean(table.labels, fitter.searched(recipe), table.folds)
    taken, _ = fitter.fit(recipe, frozenset())
    per_fold = []
    for fold in fitter.folds:
        members, _ = fitter.fit(recipe, frozenset({fold}))
        per_fold.append((recipe.name, tuple(experts.names[m] for m in members)))
    names = tuple(experts.names[m] for m in taken)
    return scored(
        recipe.name, table, fitter.metric, fitter.honest(recipe), searched, names, tuple(per_fold)
    )


def _score_choice(
    fitter: CrossFitter, recipes: list[Recipe], rows: Sequence[Scored], name: str
) -> Scored:
    """The choice among some recipes, made for each fold on the other folds."""
    experts, table = fitter.experts, fitter.experts.table
    known = {recipe.name for recipe in recipes}
    among = [row for row in rows if row.name in known]
    best = _best(among, fitter.metric)
    candidates = Candidates(fitter.metric, table)
    candidates.add(row.log_posteriors for row in among)
    out = np.empty(experts.log_posteriors.shape[1:])
    per_fold = []
    for fold in fitter.folds:
        recipe = fitter.choose(recipes, fold)
        out[table.folds == fold] = fitter.predict(recipe, frozenset({fold}), fold)
        members, _ = fitter.fit(recipe, frozenset({fold}))
        per_fold.append((recipe.name, tuple(experts.names[m] for m in members)))
    found = scored(
        name, table, fitter.metric, out, best.search_score, best.experts, tuple(per_fold)
    )
    return replace(found, corrected=candidates.corrected())


def replay(experts: Experts, choice: Scored, metric: str, name: str = "fused") -> Scored:
    """The same choice of recipes and experts, on posteriors of another training seed.

    Only the fusion's own parameters are fitted again, for each fold on the other folds.
    """
    fitter = CrossFitter(experts, metric)
    recipes = {recipe.name: recipe for recipe in recipes_for(experts, metric)}
    out = np.empty(experts.log_posteriors.shape[1:])
    for fold, (recipe_name, names) in zip(fitter.folds, choice.per_fold, strict=True):
        taken = [experts.names.index(n) for n in names]
        rule = fitter.fit_rule(recipes[recipe_name], taken, frozenset({fold}))
        rows = experts.table.folds == fold
        out[rows] = rule.apply(experts.log_posteriors[taken][:, rows])
    return scored(name, experts.table, metric, out, None, choice.experts, choice.per_fold)


def scored(
    name: str,
    table: Table,
    metric: str,
    log_posteriors: Array,
    search_score: float | None,
    experts: tuple[str, ...],
    per_fold: tuple[tuple[str, tuple[str, ...]], ...],
) -> Scored:
    """Scores held-out predictions, with an interval over speakers."""
    scale = get_metric(metric)
    by_fold = scale.fold_scores(table.labels, log_posteriors, table.folds)
    fold_scores = tuple(by_fold.values())
    return Scored(
        name=name,
        search_score=search_score,
        honest_score=float(np.mean(fold_scores)),
        honest_pooled=scale.score(table.labels, log_posteriors),
        interval=speaker_interval(table, metric, log_posteriors),
        fold_scores=fold_scores,
        experts=experts,
        log_posteriors=log_posteriors,
        per_fold=per_fold,
    )
