"""Honest scores: chosen fold by fold from the other folds, with an interval over speakers.

Two numbers, two names. The *search score* is the best that the search saw: experts and
recipe were chosen on the very folds that are scored. The *honest score* chooses trials,
fusion and recipe for each fold from the other folds only. docs/honesty.md says for every
number what its training, selection, stacking and scaling saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from ensembles.bank import ClipTable, Experts, Table
from ensembles.correction import MIN_GROUPS, Candidates, Corrected
from ensembles.metrics import (
    CCC,
    METRICS,
    Array,
    calibration_error,
    confusion_matrix,
    fold_mean,
    score,
)
from ensembles.recipes import CrossFitter, Recipe, recipes_for

_MIN_SPEAKERS_A_FOLD = 3
"""With fewer, drawing within folds shows little of the speakers' scatter; of one speaker, none."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, and how it was made."""

    low: float
    high: float
    method: str


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
    """All that is said of a bank of experts.

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
    singles = {f"best {modality}": found.corrected() for modality, found in of_modality.items()}
    return [replace(row, corrected=singles.get(row.name)) for row in rows]


def _best(rows: Sequence[Scored], metric: str) -> Scored:
    """The row that the search saw as best."""
    sign = -1.0 if metric == "log_loss" else 1.0
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
    searched = fold_mean(fitter.metric, table.labels, fitter.searched(recipe), table.folds)
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
    folds = np.unique(table.folds)
    fold_scores = tuple(
        score(metric, table.labels[table.folds == k], log_posteriors[table.folds == k])
        for k in folds
    )
    return Scored(
        name=name,
        search_score=search_score,
        honest_score=float(np.mean(fold_scores)),
        honest_pooled=score(metric, table.labels, log_posteriors),
        interval=speaker_interval(table, metric, log_posteriors),
        fold_scores=fold_scores,
        experts=experts,
        log_posteriors=log_posteriors,
        per_fold=per_fold,
    )


def speaker_interval(table: Table, metric: str, log_posteriors: Array) -> Interval:
    """95 % interval of the fold mean over speakers: what other speakers would have given.

    With ten speakers or more, three or more a fold: a percentile bootstrap that draws
    speakers within their fold. Otherwise: a t-interval over the speakers' own scores.
    Training and selection are not repeated, so their own scatter comes on top.
    """
    speakers = np.asarray(table.speakers)
    names = np.unique(speakers)
    rows_of = {name: np.flatnonzero(speakers == name) for name in names}
    groups = [np.unique(speakers[table.folds == k]) for k in np.unique(table.folds)]
    if len(names) < MIN_GROUPS or min(map(len, groups)) < _MIN_SPEAKERS_A_FOLD:
        if metric == CCC and len(names) > 1:
            return _jackknife(table, log_posteriors)
        values = [score(metric, table.labels[r], log_posteriors[r]) for r in rows_of.values()]
        middle = fold_mean(metric, table.labels, log_posteriors, table.folds)
        if len(values) < 2:
            return Interval(middle, middle, "one speaker: none")
        half = float(
            stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        )
        largest = np.inf if metric == "log_loss" else 1.0
        low, high = max(middle - half, 0.0), min(middle + half, largest)
        return Interval(low, float(high), f"t over {len(values)} speakers")
    candidates = Candidates(metric, table)
    candidates.add([log_posteriors])
    resampled = candidates.within_folds(_RESAMPLES)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(low), float(high), f"bootstrap over {len(names)} speakers")


def _jackknife(table: Table, traces: Array) -> Interval:
    """Of concordance, which is no mean over speakers: from the scores without each of them."""
    candidates = Candidates(CCC, table)
    candidates.add([traces])
    without, count = candidates.left_out(), len(candidates.names)
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, count - 1) * error)
    middle = fold_mean(CCC, table.labels, traces, table.folds)
    return Interval(
        max(middle - half, -1.0), min(middle + half, 1.0), f"jackknife over {count} speakers"
    )


@dataclass(frozen=True)
class Detail:
    """What one set of held-out predictions is worth, from every side.

    Attributes:
        confusion: Counts; rows are the true classes.
        recall: Of each class.
        speakers: Accuracy of each.
        metrics: Every metric and the calibration error, on all clips together.
        groups: Accuracy of each value of what is known of speakers, such as their gender, where they differ in it.
    """

    confusion: list[list[int]]
    recall: dict[str, float]
    speakers: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)


def detail(
    table: ClipTable,
    log_posteriors: Array,
    people: Mapping[str, Mapping[str, str]] | None = None,
) -> Detail:
    """Scores of held-out predictions by class, speaker and kind of speaker.

    Args:
        table: The clips.
        log_posteriors: (N, K).
        people: What is known of speakers: attribute → speaker → value.
    """
    labels, predictions = table.labels, log_posteriors.argmax(axis=1).astype(np.int64)
    matrix = confusion_matrix(labels, predictions, len(table.classes))
    recall = np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1)
    right = predictions == labels
    kinds = {
        attribute: [values.get(speaker, "unknown") for speaker in table.speakers]
        for attribute, values in (people or {}).items()
    }
    return Detail(
        matrix.tolist(),
        {name: float(value) for name, value in zip(table.classes, recall, strict=True)},
        _means(right, table.speakers),
        {
            **{metric: score(metric, labels, log_posteriors) for metric in METRICS},
            "calibration_error": calibration_error(labels, log_posteriors),
        },
        {attribute: _means(right, of) for attribute, of in kinds.items() if len(set(of)) > 1},
    )


def _means(right: Array, kinds: Sequence[str]) -> dict[str, float]:
    """Share of what is right, by kind."""
    names = np.asarray(kinds)
    return {str(name): float(right[names == name].mean()) for name in np.unique(names)}
