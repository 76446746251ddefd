"""No label of a scored fold chooses anything that is scored on it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import Assessment, Scored, assess, replay, scored
from ensembles.evaluation.breakdown import detail
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.evaluation.intervals import speaker_interval
from ensembles.fusion.candidates import recipes_for
from ensembles.metrics import get_metric, log_softmax, metrics_of_classes

THREE = ("audio", "video", "early")
CHEAP = re.compile(
    r"(?!.*greedy).*: product|a\+v\+e: (weighted product|logistic \(probabilities\)|stacked)|greedy: product"
)
"""Plain products, and of each kind that is fitted one."""


def test_what_cannot_be_known_scores_at_chance_on_average(make_experts: Any) -> None:
    """Twenty worlds of 30 experts that know nothing; the luckiest of ten lies two points above chance."""
    scores = defaultdict(list)
    for seed in range(20):
        experts = make_experts(
            seed, skills=(0.0,) * 30, modalities=THREE * 10, speakers=24, clips=30, classes=4
        )
        fitter, table = CrossFitter(experts, "accuracy"), experts.table
        plain = [r for r in recipes_for(experts) if r.single or CHEAP.fullmatch(r.name)]
        predictions = {recipe.name: fitter.honest(recipe) for recipe in plain}
        chosen = np.empty_like(predictions["best audio"])
        for fold in fitter.folds:
            recipe = fitter.choose(plain, fold)
            chosen[table.folds == fold] = fitter.predict(recipe, frozenset({fold}), fold)
        predictions["the best without each fold"] = chosen
        for name, values in predictions.items():
            scores[name].append(get_metric("accuracy").fold_mean(table.labels, values, table.folds))
    # Singles; the product within each modality, of top 3 and 5; four across; four fitted; the choice among these.
    assert len(scores) == 3 + 3 * 2 + 4 + 4 + 1, sorted(scores)
    for name, found in scores.items():
        # A world's standard error is 1.6 points, the mean's 0.36.
        assert np.mean(found) == pytest.approx(0.25, abs=0.01), name


def test_what_cannot_be_known_looks_better_to_the_search(make_experts: Any) -> None:
    experts = make_experts(skills=(0.0,) * 30, speakers=24, clips=20, classes=4, folds=5)
    fitter = CrossFitter(experts, "accuracy")
    (best,) = (r for r in recipes_for(experts) if r.single)
    table = experts.table
    search, honest = (
        get_metric("accuracy").fold_mean(table.labels, values, table.folds)
        for values in (fitter.searched(best), fitter.honest(best))
    )
    alone = [
        get_metric("accuracy").fold_mean(table.labels, one, table.folds)
        for one in experts.log_posteriors
    ]
    assert search == max(alone)
    # The largest of 30 draws lies two standard errors (of 2 points) above chance.
    assert search > 0.25 + 1.5 * 0.02
    assert search > honest + 0.02


@pytest.fixture(scope="module")
def coin_tosses(make_experts: Any) -> Assessment:
    """Nine experts that know nothing, of three modalities."""
    return assess(make_experts(skills=(0.0,) * 9, modalities=THREE * 3, folds=3), "accuracy")


def test_the_headlines_search_score_is_the_best_that_the_search_saw(
    coin_tosses: Assessment,
) -> None:
    best = max(coin_tosses.recipes, key=lambda row: row.search_score or 0.0)
    assert coin_tosses.fused.search_score == best.search_score
    assert coin_tosses.chosen == best.name
    assert best.search_score is not None
    assert best.search_score > coin_tosses.fused.honest_score
    assert set(coin_tosses.alone) == set(THREE)


@pytest.fixture(scope="module")
def small(make_experts: Any) -> Experts:
    """Eight experts, some of whom know something."""
    return make_experts(
        7, skills=(0.6, 0.5, 0.4, 0.8, 0.3, 0.7, 0.6, 0.5), modalities=(*THREE, *THREE, *THREE[:2])
    )


@pytest.fixture(scope="module")
def assessed(small: Experts) -> Callable[[str], Assessment]:
    """`small`, assessed by a metric once."""
    return cache(lambda metric: assess(small, metric))


def with_labels(experts: Experts, labels: np.ndarray) -> Experts:
    return Experts(
        replace(experts.table, labels=labels),
        experts.names,
        experts.modalities,
        experts.log_posteriors,
    )


@pytest.mark.parametrize(("metric", "fold"), [("accuracy", 0), ("log_loss", 3)])
def test_the_labels_of_a_fold_do_not_touch_its_predictions(
    metric: str, fold: int, small: Experts, assessed: Callable[[str], Assessment]
) -> None:
    table, unchanged = small.table, assessed(metric)
    inside = table.folds == fold
    labels = table.labels.copy()
    labels[inside] = (labels[inside] + 1) % 3
    other = assess(with_labels(small, labels), metric)
    changed_elsewhere = 0
    for before, after in zip(
        (unchanged.fused, *unchanged.recipes), (other.fused, *other.recipes), strict=True
    ):
        assert before.name == after.name
        np.testing.assert_array_equal(
            before.log_posteriors[inside], after.log_posteriors[inside], err_msg=before.name
        )
        assert before.per_fold[fold] == after.per_fold[fold]
        changed_elsewhere += not np.array_equal(
            before.log_posteriors[~inside], after.log_posteriors[~inside]
        )
    # The other folds were chosen and fitted with the help of these labels.
    assert changed_elsewhere >= 10


def test_the_labels_of_a_fold_do_not_touch_its_predictions_with_two_folds(
    make_experts: Any,
) -> None:
    experts = make_experts(skills=(0.6, 0.5, 0.4, 0.8), modalities=("audio", "video") * 2, folds=2)
    inside = experts.table.folds == 1
    labels = experts.table.labels.copy()
    labels[inside] = (labels[inside] + 1) % 3
    before = assess(experts, "accuracy")
    after = assess(with_labels(experts, labels), "accuracy")
    for one, other in zip(
        (before.fused, *before.recipes), (after.fused, *after.recipes), strict=True
    ):
        np.testing.assert_array_equal(one.log_posteriors[inside], other.log_posteriors[inside])


@pytest.mark.parametrize(("metric", "fold"), [("accuracy", 2), ("log_loss", 1)])
def test_the_posteriors_of_a_fold_choose_nothing_for_it(
    metric: str, fold: int, small: Experts, assessed: Callable[[str], Assessment]
) -> None:
    unchanged = assessed(metric)
    values = small.log_posteriors.copy()
    inside = small.table.folds == fold
    values[:, inside] = log_softmax(
        np.random.default_rng(99).normal(size=values[:, inside].shape) * 3
    )
    noisy = Experts(small.table, small.names, small.modalities, values)
    other = assess(noisy, metric)
    for before, after in zip(
        (unchanged.fused, *unchanged.recipes), (other.fused, *other.recipes), strict=True
    ):
        assert before.per_fold[fold] == after.per_fold[fold], before.name
    assert any(
        before.per_fold != after.per_fold
        for before, after in zip(unchanged.recipes, other.recipes, strict=True)
    ), "the noise should have moved what other folds choose"


@pytest.mark.parametrize("metric", metrics_of_classes())
def test_a_planted_best_expert_is_chosen_for_every_fold(metric: str, make_experts: Any) -> None:
    experts = make_experts(skills=(0.0, 0.3, 4.0, 0.2, 0.5), speakers=12)
    fitter = CrossFitter(experts, metric)
    (best,) = (r for r in recipes_for(experts) if r.single)
    for fold in fitter.folds:
        assert fitter.fit(best, frozenset({fold}))[0] == [2]
    np.testing.assert_allclose(fitter.honest(best), experts.log_posteriors[2], atol=1e-12)


def test_with_log_loss_the_least_is_best(make_experts: Any) -> None:
    table = make_experts().table
    right = np.eye(3)[table.labels]
    wrong = np.eye(3)[(table.labels + 1) % 3]
    sure, modest = right.copy(), right.copy()
    rows = np.arange(len(table.labels))
    sure[rows % 8 == 0] = wrong[rows % 8 == 0]  # 7 of 8 right, and 20 nats lost on the rest
    modest[rows % 4 == 0] = wrong[rows % 4 == 0]  # 3 of 4 right, never sure
    experts = Experts(
        table,
        ("sure", "modest"),
        ("audio", "audio"),
        log_softmax(np.stack([20 * sure, 2 * modest])),
    )
    for metric, expected in (("accuracy", "sure"), ("log_loss", "modest")):
        row = assess(experts, metric).row("best audio")
        assert row is not None
        assert row.experts == (expected,)
        assert {names for _, names in row.per_fold} == {(expected,)}


def test_with_log_loss_the_exported_recipe_has_the_least_of_it(
    assessed: Callable[[str], Assessment],
) -> None:
    assessment = assessed("log_loss")
    assert assessment.fused.search_score == min(r.search_score or 9 for r in assessment.recipes)
    chosen = assessment.row(assessment.chosen)
    assert chosen is not None
    assert chosen.search_score == assessment.fused.search_score


def uneven() -> tuple[ClipTable, np.ndarray]:
    """Speaker a, fold 0: one clip, right. Speaker b, fold 1: one of three right."""
    table = ClipTable(
        clips=("1", "2", "3", "4"),
        speakers=("a", "b", "b", "b"),
        folds=np.array([0, 1, 1, 1]),
        labels=np.array([0, 0, 0, 1]),
        classes=("x", "y"),
    )
    return table, np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])


def test_the_honest_score_is_the_unweighted_mean_of_the_folds() -> None:
    table, values = uneven()
    row = scored("mine", table, "accuracy", values, None, ("e",), ())
    assert row.fold_scores == (1.0, pytest.approx(1 / 3))
    assert row.honest_score == pytest.approx(2 / 3)
    assert row.honest_pooled == 0.5
    assert row.search_score is None


def test_few_speakers_give_a_t_interval() -> None:
    table, values = uneven()
    # Log-losses 0.10536 and 0.78113: mean 0.44325, its deviation 0.33789; t(1) = 12.7062.
    interval = speaker_interval(table, "log_loss", values)
    assert interval.method == "t over 2 speakers"
    assert interval.high == pytest.approx(0.44325 + 12.7062 * 0.33789, abs=1e-3)
    assert interval.low == 0.0, "no loss is negative"
    shares = speaker_interval(table, "accuracy", values)
    assert (shares.low, shares.high) == (0.0, 1.0), "nor is any share outside 0 to 1"


def test_one_speaker_gives_no_interval() -> None:
    table, values = uneven()
    interval = speaker_interval(replace(table, speakers=("a",) * 4), "accuracy", values)
    assert interval.method == "one speaker: none"
    assert interval.low == interval.high == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", metrics_of_classes())
@pytest.mark.parametrize("speakers", [8, 24], ids=["t", "bootstrap"])
def test_the_interval_covers_the_score(metric: str, speakers: int, make_experts: Any) -> None:
    experts = make_experts(skills=(1.0,), speakers=speakers, clips=20)
    table, values = experts.table, experts.log_posteriors[0]
    interval = speaker_interval(table, metric, values)
    middle = get_metric(metric).fold_mean(table.labels, values, table.folds)
    assert interval.low < middle < interval.high
    assert interval.method.endswith(f"over {speakers} speakers")
    assert interval.method.startswith("t " if speakers < 10 else "bootstrap")


def test_repeating_every_clip_does_not_make_speakers_more(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0,), speakers=24, clips=10)
    table, values = experts.table, experts.log_posteriors[0]
    again = np.repeat(np.arange(len(table.labels)), 16)
    repeated = ClipTable(
        clips=tuple(f"{i}" for i in range(len(again))),
        speakers=tuple(table.speakers[i] for i in again),
        folds=table.folds[again],
        labels=table.labels[again],
        classes=table.classes,
    )
    one = speaker_interval(table, "accuracy", values)
    many = speaker_interval(repeated, "accuracy", values[again])
    # Over clips the interval would shrink to a quarter.
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=1e-6)


def test_the_bootstrap_is_as_wide_as_the_speakers_scatter(make_experts: Any) -> None:
    # Half of the speakers are always right, half never: the scores' deviation is ½.
    table = make_experts(speakers=40, clips=4, folds=4).table
    lucky = np.array([int(s.removeprefix("speaker")) % 8 < 4 for s in table.speakers])
    answers = np.where(lucky, table.labels, (table.labels + 1) % 3)
    values = log_softmax(9.0 * np.eye(3)[answers])
    interval = speaker_interval(table, "accuracy", values)
    width = 2 * 1.96 * 0.5 / np.sqrt(40) * np.sqrt(9 / 10)  # drawn within folds of ten
    assert interval.high - interval.low == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("metric", ["accuracy", "uar"])
@pytest.mark.parametrize("folds", [12, 6], ids=["one speaker a fold", "two speakers a fold"])
def test_folds_of_too_few_speakers_to_draw_from_give_a_t_interval(
    metric: str, folds: int, make_experts: Any
) -> None:
    experts = make_experts(skills=(1.0,), speakers=12, clips=6, folds=folds)
    table, values = experts.table, experts.log_posteriors[0]
    names = np.array(table.speakers)
    own = [
        get_metric(metric).score(table.labels[names == s], values[names == s])
        for s in np.unique(names)
    ]
    half = stats.t.ppf(0.975, 11) * np.std(own, ddof=1) / np.sqrt(12)
    interval = speaker_interval(table, metric, values)
    assert interval.method == "t over 12 speakers"
    assert interval.high - interval.low == pytest.approx(2 * half)
    assert half > 0.01


def test_where_speakers_are_balanced_the_interval_of_uar_is_that_of_accuracy(
    make_experts: Any,
) -> None:
    experts = make_experts(skills=(1.0,), speakers=24, clips=12)
    table, values = experts.table, experts.log_posteriors[0]
    accuracy, uar = (speaker_interval(table, metric, values) for metric in ("accuracy", "uar"))
    assert accuracy.method == uar.method == "bootstrap over 24 speakers"
    assert (accuracy.low, accuracy.high) == (pytest.approx(uar.low), pytest.approx(uar.high))


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_replaying_the_same_posteriors_gives_the_same_scores(
    metric: str, small: Experts, assessed: Callable[[str], Assessment]
) -> None:
    fitter, known = CrossFitter(small, metric), {r.name: r for r in recipes_for(small, metric)}

    def drops_none(row: Scored) -> bool:
        return all(
            len(names) == len(known[name].select(small, fitter.merits(frozenset({fold}))))
            for fold, (name, names) in zip(fitter.folds, row.per_fold, strict=True)
        )

    exact = 0
    for row in (assessed(metric).fused, *assessed(metric).recipes):
        again = replay(small, row, metric, name=row.name)
        if drops_none(row):
            exact += 1
            # Rounding aside: `row` left out a stack's first rules without weight, and BLAS kernels
            # with AVX-512 sum one term fewer in another order.
            np.testing.assert_allclose(again.log_posteriors, row.log_posteriors, rtol=1e-12)
            assert again.fold_scores == pytest.approx(row.fold_scores, rel=1e-12)
        # Experts without weight are not trained again; the others' weights then start elsewhere.
        np.testing.assert_allclose(
            np.exp(again.log_posteriors), np.exp(row.log_posteriors), atol=0.1
        )
        assert again.honest_score == pytest.approx(row.honest_score, abs=0.03)
        assert again.search_score is None
    assert exact > 20


def test_replaying_fresh_posteriors_keeps_the_choice(
    small: Experts, assessed: Callable[[str], Assessment], make_experts: Any
) -> None:
    headline = assessed("accuracy").fused
    fresh = make_experts(8, skills=(0.0,) * 8).log_posteriors
    replaced = small.replace(dict(zip(small.names, fresh, strict=True)))
    again = replay(replaced, headline, "accuracy")
    assert again.per_fold == headline.per_fold
    assert again.honest_score != headline.honest_score


def test_a_fold_is_never_predicted_by_what_was_fitted_on_it(small: Experts) -> None:
    fitter = CrossFitter(small, "accuracy")
    with pytest.raises(AssertionError, match="must not be predicted by what was fitted on it"):
        fitter.predict(recipes_for(small)[0], frozenset({0}), 1)


def test_merits_are_means_over_the_folds_that_may_look(small: Experts) -> None:
    table = small.table
    expected = [
        np.mean(
            [
                get_metric("uar").score(table.labels[table.folds == k], one[table.folds == k])
                for k in (0, 2)
            ]
        )
        for one in small.log_posteriors
    ]
    merits = CrossFitter(small, "uar").merits(frozenset({1, 3}))
    np.testing.assert_allclose(merits, expected)


def test_a_recipes_inner_score_is_the_log_loss_cross_fitted_without_the_fold(
    small: Experts,
) -> None:
    fitter, table = CrossFitter(small, "accuracy"), small.table
    recipe = next(r for r in recipes_for(small) if r.name == "a+v: logistic (logits)")
    merits = []
    for other in (1, 2, 3):
        rows = ~np.isin(table.folds, [0, other])
        taken = recipe.select(small, fitter.merits(frozenset({0, other})))
        fusion = recipe.build([small.modalities[m] for m in taken]).fit(
            small.log_posteriors[taken][:, rows], table.labels[rows], table.folds[rows]
        )
        held = table.folds == other
        predicted = fusion.rule().apply(small.log_posteriors[taken][:, held])
        merits.append(-get_metric("log_loss").score(table.labels[held], predicted))
    assert fitter.inner_score(recipe, 0) == pytest.approx(np.mean(merits))


def test_the_recipe_for_a_fold_is_the_best_without_it_and_ties_go_to_the_plainer(
    small: Experts,
) -> None:
    fitter, recipes = CrossFitter(small, "accuracy"), recipes_for(small)
    inner = [fitter.inner_score(r, 2) for r in recipes]
    assert fitter.choose(recipes, 2) is recipes[int(np.argmax(inner))]
    single = next(r for r in recipes if r.single)
    twin = replace(single, name="its twin")
    assert fitter.choose([single, twin], 2) is single


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [
        (("audio",), {"best audio"}),
        (("audio", "audio"), {"best audio", "audio top 3", "audio greedy"}),
        (("audio",) * 4, {"best audio", "audio top 3", "audio top 5", "audio greedy"}),
        (("audio", "video"), {"best audio", "best video", "a+v", "greedy"}),
        (THREE, {"best audio", "best video", "best early", "a+v", "a+v+e", "greedy"}),
        (("mine", "yours"), {"best mine", "best yours", "all", "greedy"}),
    ],
)
def test_recipes_are_those_that_the_experts_allow(
    modalities: tuple[str, ...], expected: set[str], make_experts: Any
) -> None:
    experts = make_experts(skills=(1.0,) * len(modalities), modalities=modalities)
    recipes = recipes_for(experts)
    assert {recipe.name.split(":")[0] for recipe in recipes} == expected
    names = [recipe.name for recipe in recipes]
    assert len(set(names)) == len(names)
    assert [r.single for r in recipes] == sorted((r.single for r in recipes), reverse=True)


def test_ten_experts_of_each_modality_allow_every_recipe(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0,) * 30, modalities=THREE * 10, speakers=4, clips=1)
    # Singles; each modality alone; a+v, a+v+e, top 3 and top 5 each, ten ways, the pair two more,
    # the last two with one weight a modality; greedy.
    assert len(recipes_for(experts)) == 3 + 3 * 8 + (4 * 10 + 2 + 2) + 4


def test_a_lone_expert_is_passed_through(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0,))
    assessment = assess(experts, "accuracy")
    assert [row.name for row in assessment.recipes] == ["best audio"]
    np.testing.assert_allclose(
        assessment.fused.log_posteriors, experts.log_posteriors[0], atol=1e-12
    )
    assert assessment.fused.honest_score == assessment.fused.search_score


def test_progress_counts_the_recipes(make_experts: Any) -> None:
    seen: list[tuple[int, int]] = []
    experts = make_experts(skills=(1.0,))
    assess(experts, "accuracy", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]


def test_details_by_hand() -> None:
    table, values = uneven()
    got = detail(table, values)
    assert got.confusion == [[2, 1], [1, 0]]
    assert got.recall == {"x": pytest.approx(2 / 3), "y": 0.0}
    assert got.speakers == {"a": 1.0, "b": pytest.approx(1 / 3)}


def test_a_row_as_json_has_both_numbers_by_name(coin_tosses: Assessment) -> None:
    got = coin_tosses.fused.to_json()
    assert got["honest_score"] == coin_tosses.fused.honest_score
    assert got["search_score"] == coin_tosses.fused.search_score
    assert len(got["fold_scores"]) == len(got["per_fold"]) == 3
    assert "log_posteriors" not in got


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_expert_that_is_not_finite_is_named(value: float, make_experts: Any) -> None:
    experts = make_experts()
    values = experts.log_posteriors.copy()
    values[1, 3, 2] = value
    with pytest.raises(Exception, match="Expert 'e01' has posteriors that are not finite"):
        Experts(experts.table, experts.names, experts.modalities, values)
