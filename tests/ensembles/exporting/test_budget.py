"""The best ensemble within a budget: what may be chosen, and by which score."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from ensembles import EnsembleError
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import _score_recipe
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.exporting.budget import PAPERS_MB, Budget, Candidates, Choice, Cost
from ensembles.fusion.candidates import recipes_for
from ensembles.fusion.greedy import GreedySelection
from ensembles.metrics import get_metric

MakeExperts = Callable[..., Experts]
RECIPES = ("best audio", "best video", "a+v: product", "top 3 each: average", "greedy: product")
MODALITIES = ("audio", "audio", "video", "video")
COSTS = {
    "e00": Cost(1.0, 1.0),
    "e01": Cost(2.0, 8.0),
    "e02": Cost(4.0, 1.0),
    "e03": Cost(50.0, 2.0),
}


@pytest.fixture(scope="module")
def experts(make_experts: MakeExperts) -> Experts:
    """Four experts; the best by far is the dearest."""
    return make_experts(skills=(0.5, 0.9, 0.9, 3.0), modalities=MODALITIES, folds=3, clips=12)


def choose(experts: Experts, budget: Budget, costs: Mapping[str, Cost] = COSTS) -> Choice:
    fitter = CrossFitter(experts, "accuracy")
    plain = [recipe for recipe in recipes_for(experts, "accuracy") if recipe.name in RECIPES]
    rows = [_score_recipe(fitter, recipe).to_json() for recipe in plain]
    recipes = {recipe.name: recipe for recipe in plain}
    return Candidates(fitter, recipes, costs).choose(
        rows, "greedy: product", ["greedy: product"] * len(fitter.folds), budget
    )


def test_what_is_chosen_fits_and_is_the_best_that_does(experts: Experts) -> None:
    choice = choose(experts, Budget(max_latency_ms=7.0))
    assert choice.chosen.cost[0] <= 7.0
    assert "e03" not in choice.chosen.experts
    assert len(choice.chosen.experts) > 1
    fitting = [c for c in choice.candidates if c.cost[0] <= 7.0]
    assert len(fitting) == choice.fitting < len(choice.candidates)
    assert choice.chosen.score == max(c.score for c in fitting)
    assert max(c.score for c in choice.candidates) > choice.chosen.score + 0.1, "the dear is best"


def test_no_fold_is_predicted_by_what_does_not_fit(experts: Experts) -> None:
    budget = Budget(max_latency_ms=3.5, max_mb=100)
    row = choose(experts, budget).row
    assert len(row.per_fold) == 3
    for _, names in row.per_fold:
        assert sum(COSTS[name].latency_ms for name in names) <= 3.5


def test_both_limits_hold_together(experts: Experts) -> None:
    choice = choose(experts, Budget(max_latency_ms=7.0, max_mb=3.0))
    assert set(choice.chosen.experts) <= {"e00", "e02"}
    assert choice.chosen.cost[1] + PAPERS_MB <= 3.0


def test_a_budget_for_everything_allows_the_runs_best(experts: Experts) -> None:
    choice = choose(experts, Budget(max_latency_ms=1e6))
    assert choice.fitting == len(choice.candidates)
    assert {c.candidate.name for c in choice.candidates} > set(RECIPES)
    assert choice.chosen.score == max(c.score for c in choice.candidates)


def test_the_front_rises_in_score_and_cost(experts: Experts) -> None:
    for budget, axis in ((Budget(max_latency_ms=7.0), 0), (Budget(max_mb=4.0), 1)):
        front = choose(experts, budget).front
        assert len(front) > 1
        costs, scores = [c.cost[axis] for c in front], [c.score for c in front]
        assert costs == sorted(costs)
        assert scores == sorted(set(scores))
        assert front[0].cost[axis] == min(
            getattr(c, ("latency_ms", "mb")[axis]) for c in COSTS.values()
        )


def test_the_chosen_is_on_the_front(experts: Experts) -> None:
    choice = choose(experts, Budget(max_latency_ms=7.0))
    assert any(candidate is choice.chosen for candidate in choice.front)


def test_each_score_is_that_of_held_out_predictions(experts: Experts) -> None:
    choice = choose(experts, Budget(max_latency_ms=7.0))
    fitter, table = CrossFitter(experts, "accuracy"), experts.table
    for candidate in choice.candidates:
        honest = fitter.honest(candidate.candidate)
        score = get_metric("accuracy").fold_mean(table.labels, honest, table.folds)
        assert candidate.score == pytest.approx(score), candidate.candidate.name


def test_a_folds_labels_do_not_change_what_is_chosen_without_it(experts: Experts) -> None:
    budget, fold = Budget(max_latency_ms=7.0), 1
    labels = experts.table.labels.copy()
    rows = np.flatnonzero(experts.table.folds == fold)
    labels[rows] = np.random.default_rng(0).permutation(labels[rows])
    table = type(experts.table)(**{**experts.table.__dict__, "labels": labels})
    moved = Experts(table, experts.names, experts.modalities, experts.log_posteriors)
    before, after = choose(experts, budget).row, choose(moved, budget).row
    assert before.per_fold[fold] == after.per_fold[fold]
    np.testing.assert_array_equal(before.log_posteriors[rows], after.log_posteriors[rows])


def test_by_chance_the_choices_honest_score_is_chance_and_the_search_score_is_not(
    make_experts: MakeExperts,
) -> None:
    useless = make_experts(
        3, skills=[0.0] * 12, modalities=["audio"] * 6 + ["video"] * 6, folds=3, clips=12
    )
    costs = {name: Cost(1.0 + m, 1.0) for m, name in enumerate(useless.names)}
    row = choose(useless, Budget(max_latency_ms=40.0), costs).row
    assert row.honest_score == pytest.approx(1 / 3, abs=0.08)
    assert row.search_score is not None
    assert row.search_score > row.honest_score


def test_a_budget_that_nothing_fits_names_the_cheapest(experts: Experts) -> None:
    with pytest.raises(
        EnsembleError,
        match=r"Nothing fits --max-latency-ms 0.5: the cheapest, 'e00' alone takes 1 ms",
    ):
        choose(experts, Budget(max_latency_ms=0.5))
    with pytest.raises(EnsembleError, match=r"Nothing fits --max-mb 0.1: .* 1 ms and 1.3 MB\."):
        choose(experts, Budget(max_mb=0.1))


def test_who_was_not_kept_is_in_nothing_that_fits(experts: Experts) -> None:
    kept = {name: cost for name, cost in COSTS.items() if name != "e00"}
    choice = choose(experts, Budget(max_latency_ms=7.0), kept)
    assert set(choice.chosen.experts) <= {"e01", "e02"}
    with pytest.raises(EnsembleError, match="kept no expert's weights"):
        choose(experts, Budget(max_mb=7.0), {})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_a_number_above_zero(value: float) -> None:
    with pytest.raises(EnsembleError, match=f"--max-mb must be a number above 0, got {value}"):
        Budget(max_mb=value)


def test_recipes_of_another_bank_are_refused(experts: Experts) -> None:
    fitter = CrossFitter(experts, "accuracy")
    with pytest.raises(EnsembleError, match=r"fusions \(summary.json\) do not fit its bank"):
        Candidates(fitter, {}, COSTS).choose(
            [{"name": "a+v: product"}], "a+v: product", [], Budget(max_mb=9.0)
        )


@pytest.mark.parametrize("space", ["arithmetic", "log"])
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_greedy_selection_stays_within_its_limits(
    experts: Experts, space: str, metric: str
) -> None:
    costs = np.asarray([[c.latency_ms, c.mb] for c in COSTS.values()])
    values, labels = experts.log_posteriors[:3], experts.table.labels
    limits = np.asarray([5.0, 100.0])

    def taken(**how: object) -> set[int]:
        found = GreedySelection(space, metric=metric, **how)  # type: ignore[arg-type]
        return set(np.flatnonzero(found.fit(values, labels, labels).counts_))

    assert {1, 2} <= taken(), "without limits it takes what costs more together"
    limited = taken(costs=costs[:3], limits=limits)
    assert costs[sorted(limited)].sum(axis=0)[0] <= 5.0
    assert taken(costs=costs[:3], limits=np.full(2, 1e9)) == taken()
