"""What holds for every fusion, and what holds for one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.optimize import minimize as scipy_minimize
from sklearn.linear_model import LogisticRegression

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.fusion import late
from ensembles.fusion.base import Fusion
from ensembles.fusion.calibration import CalibratedFusion, TemperedFusion, best_power
from ensembles.fusion.candidates import recipes_for
from ensembles.fusion.fit_cache import fitted as remembered
from ensembles.fusion.fit_cache import remembering
from ensembles.fusion.greedy import GreedySelection
from ensembles.fusion.late import AverageFusion, GroupedFusion, WeightedFusion
from ensembles.fusion.logistic import PENALTIES, LogisticFusion
from ensembles.fusion.regression import Regressions
from ensembles.fusion.rules import Pooling, rule_from_json
from ensembles.fusion.stacking import StackedFusion
from ensembles.metrics import METRICS, get_metric, log_softmax

Build = Callable[[Sequence[str]], Fusion]
"""Makes the fusion of experts of these modalities."""


def every_way() -> dict[str, Build]:
    """What `recipes_for` builds, each way once, under the name that follows its experts'."""
    found: dict[str, Build] = {}
    for modalities in (("audio", "video", "early") * 4, ("mine", "yours")):
        table = ClipTable(
            clips=("c",),
            speakers=("s",),
            folds=np.zeros(1, np.int64),
            labels=np.zeros(1, np.int64),
            classes=("a", "b"),
        )
        names = tuple(f"e{m}" for m in range(len(modalities)))
        experts = Experts(table, names, modalities, np.zeros((len(names), 1, 2)))
        for recipe in recipes_for(experts):
            way = recipe.name.rpartition(": ")[2]
            if not recipe.single:
                found.setdefault(f"greedy {way}" if "greedy" in recipe.name else way, recipe.build)
    return found


WAYS = every_way()
IDENTITY = (
    "average",
    "product",
    "weighted average",
    "greedy average",
    "greedy product",
    "greedy by log-loss",
    "greedy bagged",
)
"""Ways that leave one expert as it is; the others may calibrate it, or undo its mistakes."""
KINDS = ("audio", "video", "audio", "early", "video")


def fitted(build: Build, experts: Experts, rows: Any = slice(None)) -> Fusion:
    """Fitted on some clips of experts, whose modalities are the first of `KINDS`."""
    table, values = experts.table, experts.log_posteriors[:, rows]
    return build(KINDS[: len(values)]).fit(values, table.labels[rows], table.folds[rows])


every_fusion = pytest.mark.parametrize("build", WAYS.values(), ids=WAYS.keys())
both_spaces = pytest.mark.parametrize("space", ["arithmetic", "log"])


@every_fusion
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_sum_to_1(classes: int, build: Build, make_experts: Any) -> None:
    experts = make_experts(classes=classes, skills=(2.0, 1.0))
    fused = fitted(build, experts).rule().apply(experts.log_posteriors)
    assert fused.shape == (72, classes)
    np.testing.assert_allclose(np.exp(fused).sum(axis=1), 1.0, rtol=1e-9)
    assert get_metric("accuracy").score(experts.table.labels, fused) > 0.75


@pytest.mark.parametrize("way", IDENTITY)
def test_one_expert_is_the_identity(way: str, make_experts: Any) -> None:
    experts = make_experts(skills=(1.0,))
    fused = fitted(WAYS[way], experts).rule().apply(experts.log_posteriors)
    tolerance = 1e-12 if way in ("average", "product") else 1e-9  # the others are fitted
    np.testing.assert_allclose(fused, experts.log_posteriors[0], atol=tolerance)


# Bags are drawn by place.
@pytest.mark.parametrize("way", sorted(set(WAYS) - {"greedy bagged"}))
def test_the_order_of_experts_does_not_matter(way: str, make_experts: Any) -> None:
    experts = make_experts(skills=(0.5, 1.0, 1.5, 0.0))
    table, values = experts.table, experts.log_posteriors
    order = [2, 0, 3, 1]
    one = fitted(WAYS[way], experts).rule().apply(values)
    other = WAYS[way]([KINDS[m] for m in order]).fit(values[order], table.labels, table.folds)
    np.testing.assert_allclose(np.exp(other.rule().apply(values[order])), np.exp(one), atol=1e-4)


# By log-loss a bag's longest selection may be another's twice over, and only rounding tells them apart.
@pytest.mark.parametrize("way", [*sorted(set(WAYS) - {"greedy bagged"}), "bagged by accuracy"])
def test_the_order_of_clips_does_not_matter(way: str, make_experts: Any) -> None:
    build = WAYS.get(way, lambda _: GreedySelection("log", bags=3))
    experts = make_experts()
    values = experts.log_posteriors
    order = np.random.default_rng(0).permutation(len(experts.table.labels))
    one, other = (
        fitted(build, experts, rows).rule().apply(values) for rows in (slice(None), order)
    )
    np.testing.assert_allclose(np.exp(other), np.exp(one), atol=1e-3)


@every_fusion
def test_predicting_does_not_look_at_other_clips(build: Build, make_experts: Any) -> None:
    experts = make_experts()
    values, fusion = experts.log_posteriors, fitted(build, experts)
    apart = np.concatenate([fusion.rule().apply(values[:, [n]]) for n in range(10)])
    np.testing.assert_allclose(
        np.exp(apart), np.exp(fusion.rule().apply(values)[:10]), rtol=1e-9, atol=1e-7
    )


@every_fusion
@pytest.mark.parametrize("missing", [0, 2])
def test_a_class_missing_in_the_fitted_rows_works(
    missing: int, build: Build, make_experts: Any
) -> None:
    experts = make_experts(skills=(3.0, 3.0))
    rows = experts.table.labels != missing
    fused = fitted(build, experts, rows).rule().apply(experts.log_posteriors)
    assert np.isfinite(fused).all()
    assert fused.shape == (72, 3)
    assert get_metric("accuracy").score(experts.table.labels[rows], fused[rows]) > 0.75


@every_fusion
def test_overconfident_experts_stay_finite(build: Build, make_experts: Any) -> None:
    experts = make_experts(scale=400.0)
    assert experts.log_posteriors.min() < -700
    assert np.isfinite(fitted(build, experts).rule().apply(experts.log_posteriors)).all()


@every_fusion
def test_fusing_beats_a_lone_expert(build: Build, make_experts: Any) -> None:
    # Five independent experts of equal skill, fitted on one half and scored on the other.
    experts = make_experts(skills=(1.0,) * 5, speakers=40, clips=12)
    table, values = experts.table, experts.log_posteriors
    rows = table.folds < 2
    fused = fitted(build, experts, rows).rule().apply(values[:, ~rows])
    alone = [get_metric("accuracy").score(table.labels[~rows], one[~rows]) for one in values]
    assert get_metric("accuracy").score(table.labels[~rows], fused) > max(alone)


@every_fusion
def test_what_was_fitted_comes_back_from_json(build: Build, make_experts: Any) -> None:
    experts = make_experts(scale=60.0)
    rule = fitted(build, experts).rule()
    again = rule_from_json(json.loads(json.dumps(rule.to_json())), 3, 3)
    np.testing.assert_array_equal(
        again.apply(experts.log_posteriors), rule.apply(experts.log_posteriors)
    )


def test_averages_by_hand() -> None:
    values = np.log([[[0.9, 0.1]], [[0.5, 0.5]]])
    np.testing.assert_allclose(
        np.exp(Pooling(np.array([0.5, 0.5]), "arithmetic").apply(values)), [[0.7, 0.3]]
    )
    np.testing.assert_allclose(
        np.exp(Pooling(np.array([3.0, 1.0]), "arithmetic").apply(values)), [[0.8, 0.2]]
    )
    # √(0.9·0.5) : √(0.1·0.5) = 3 : 1
    np.testing.assert_allclose(
        np.exp(Pooling(np.array([0.5, 0.5]), "log").apply(values)), [[0.75, 0.25]]
    )
    # 0.9² : 0.1² = 81 : 1, a sharper expert: in log space the sum of weights is free.
    np.testing.assert_allclose(
        np.exp(Pooling(np.array([2.0, 0.0]), "log").apply(values)), [[81 / 82, 1 / 82]]
    )


# A uniform factor changes nothing in log space, so that its weight means nothing there.
@pytest.mark.parametrize(
    ("space", "useless"), [("arithmetic", "uniform"), ("arithmetic", "random"), ("log", "random")]
)
def test_a_useless_expert_gets_almost_no_weight(
    space: Any, useless: str, make_experts: Any
) -> None:
    experts = make_experts(skills=(2.0, 0.0), speakers=40, clips=12)
    values = experts.log_posteriors.copy()
    if useless == "uniform":
        values[1] = np.log(1 / 3)
    fusion = WeightedFusion(space).fit(values, experts.table.labels, experts.table.folds)
    share = fusion.weights_ / fusion.weights_.sum()
    assert share[1] < 0.1
    assert (fusion.weights_ >= 0).all()


def test_arithmetic_weights_lie_on_the_simplex(make_experts: Any) -> None:
    experts = make_experts(skills=(2.0, 0.5, 1.0))
    fusion = WeightedFusion("arithmetic").fit(
        experts.log_posteriors, experts.table.labels, experts.table.folds
    )
    assert fusion.weights_.sum() == pytest.approx(1.0)
    assert (fusion.weights_ >= 0).all()


def loss_of(fusion: WeightedFusion, weights: np.ndarray, experts: Any) -> float:
    offset = weights - 1 / len(weights)
    fused = Pooling(weights, fusion.space).apply(experts.log_posteriors)
    return get_metric("log_loss").score(experts.table.labels, fused) + fusion.penalty * float(
        offset @ offset
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_weighted_product_is_at_its_optimum(seed: int, make_experts: Any) -> None:
    experts = make_experts(seed, skills=(2.0, 0.5, 1.0), scale=2.0)
    fusion = WeightedFusion("log").fit(
        experts.log_posteriors, experts.table.labels, experts.table.folds
    )
    best = loss_of(fusion, fusion.weights_, experts)
    assert best < loss_of(fusion, np.full(3, 1 / 3), experts)
    # Nelder–Mead sees no gradient; the problem is convex.
    found = scipy_minimize(
        lambda w: loss_of(fusion, np.maximum(w, 0), experts),
        fusion.weights_,
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-10},
    )
    assert best <= found.fun + 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_the_weighted_average_is_at_its_optimum(seed: int, make_experts: Any) -> None:
    experts = make_experts(seed, skills=(2.0, 1.0))
    fusion = WeightedFusion("arithmetic", penalty=0.0).fit(
        experts.log_posteriors, experts.table.labels, experts.table.folds
    )
    on_a_grid = min(loss_of(fusion, np.array([w, 1 - w]), experts) for w in np.linspace(0, 1, 1001))
    assert loss_of(fusion, fusion.weights_, experts) <= on_a_grid + 1e-4


def test_the_weighted_products_gradient_is_right(
    make_experts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = make_experts(skills=(2.0, 0.5, 1.0))
    losses: list[Any] = []

    def remember(loss: Any, start: Any, **options: Any) -> Any:
        losses.append(loss)
        return scipy_minimize(loss, start, **options)

    monkeypatch.setattr(late, "minimize", remember)
    WeightedFusion("log").fit(experts.log_posteriors, experts.table.labels, experts.table.folds)
    (loss,) = losses
    for weights in ([0.3, 0.3, 0.3], [2.0, 0.1, 0.0]):
        error = check_grad(lambda w: loss(w)[0], lambda w: loss(w)[1], np.array(weights))
        assert error < 1e-5


@both_spaces
@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["calibrated", "overconfident"])
def test_greedy_never_scores_below_its_best_expert_where_it_was_fitted(
    scale: float, space: Any, make_experts: Any
) -> None:
    for seed in range(60):
        experts = make_experts(seed, skills=(0.2, 1.0, 0.5, 0.9, 0.0), scale=scale)
        table, values = experts.table, experts.log_posteriors
        fusion = GreedySelection(space).fit(values, table.labels, table.folds)
        best = max(get_metric("accuracy").score(table.labels, one) for one in values)
        assert get_metric("accuracy").score(table.labels, fusion.rule().apply(values)) >= best, (
            f"seed {seed}"
        )


@both_spaces
def test_greedy_keeps_a_lone_best_expert(space: Any, make_experts: Any) -> None:
    experts = make_experts(skills=(9.0, 0.0, 0.0))
    fusion = GreedySelection(space).fit(
        experts.log_posteriors, experts.table.labels, experts.table.folds
    )
    assert fusion.counts_[0] > 0
    assert fusion.counts_[0] >= 3 * fusion.counts_[1:].sum()


@both_spaces
def test_greedy_of_one_member_is_the_most_accurate_expert(space: Any, make_experts: Any) -> None:
    experts = make_experts(skills=(0.0, 2.0, 1.0))
    table, values = experts.table, experts.log_posteriors
    fusion = GreedySelection(space, size=1).fit(values, table.labels, table.folds)
    assert fusion.counts_.tolist() == [0, 1, 0]
    np.testing.assert_allclose(fusion.rule().apply(values), values[1], atol=1e-9)


def test_greedy_breaks_ties_of_accuracy_by_log_loss() -> None:
    # Both are right twice; the second is surer of it.
    values = np.log([[[0.6, 0.4], [0.4, 0.6]], [[0.9, 0.1], [0.1, 0.9]]])
    fusion = GreedySelection("arithmetic", size=1).fit(values, np.array([0, 1]), np.zeros(2, int))
    assert fusion.counts_.tolist() == [0, 1]


def plain_greedy(values: np.ndarray, labels: np.ndarray, space: str, metric: str) -> list[int]:
    """Every candidate in turn, by the score of its pooled posteriors, then by their log-loss."""
    parts = np.maximum(values, -30.0)
    parts = parts if space == "log" else np.exp(parts)
    taken: list[int] = []
    best_order: list[int] = []
    best = (-np.inf, -np.inf)
    for length in range(1, 16):
        merits = []
        for candidate in parts:
            mean = (parts[taken].sum(axis=0) + candidate) / length
            pooled = log_softmax(mean) if space == "log" else np.log(mean + 1e-12)
            by = get_metric("uar" if metric == "macro_f1" else metric)
            loss = get_metric("log_loss").score(labels, pooled)
            merits.append((by.utility(labels, pooled), -loss))
        order = max(range(len(parts)), key=lambda m: merits[m])
        taken.append(order)
        if merits[order] > best:
            best, best_order = merits[order], list(taken)
    return np.bincount(best_order, minlength=len(values)).tolist()


@pytest.mark.parametrize(
    ("metric", "space", "scale"),
    [
        ("accuracy", "arithmetic", 1.0),
        ("accuracy", "log", 60.0),
        ("uar", "arithmetic", 60.0),
        ("uar", "log", 1.0),
        ("macro_f1", "arithmetic", 1.0),
        ("macro_f1", "log", 60.0),
        ("log_loss", "arithmetic", 60.0),
        ("log_loss", "log", 1.0),
    ],
)
def test_greedy_chooses_what_a_plain_loop_chooses(
    metric: str, space: Any, scale: float, make_experts: Any
) -> None:
    for seed in range(4):
        experts = make_experts(
            seed, skills=(0.2, 1.0, 0.5, 0.9, 0.7, 0.8, 1.0, 0.0), scale=scale, speakers=20
        )
        values, labels = experts.log_posteriors, experts.table.labels.copy()
        labels[:30] = 0  # classes of different size, so that accuracy and UAR differ
        fusion = GreedySelection(space, metric=metric).fit(values, labels, labels)
        assert fusion.counts_.tolist() == plain_greedy(values, labels, space, metric), f"{seed}"


@pytest.mark.parametrize("space", ["log", "arithmetic"])
def test_greedy_selects_by_a_metric_that_it_does_not_know(
    space: Any, make_experts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "new", replace(get_metric("uar"), name="new", sums=None))
    experts = make_experts(3, skills=(0.2, 1.0, 0.5, 0.9, 0.7, 0.8, 1.0, 0.0), speakers=20)
    values, labels = experts.log_posteriors, experts.table.labels.copy()
    labels[:30] = 0
    counts = [
        GreedySelection(space, metric=name).fit(values, labels, labels).counts_.tolist()
        for name in ("new", "uar")
    ]
    assert counts[0] == counts[1]


def test_bagged_greedy_averages_selections_from_halves_of_the_experts(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0,) * 6, speakers=20)
    values, labels = experts.log_posteriors, experts.table.labels
    bagged = GreedySelection(bags=5, size=4).fit(values, labels, labels).counts_
    again = GreedySelection(bags=5, size=4).fit(values, labels, labels).counts_
    other = GreedySelection(bags=5, size=4, seed=1).fit(values, labels, labels).counts_
    assert bagged.tolist() == again.tolist() != other.tolist()
    assert 5 <= bagged.sum() <= 20
    # No bag holds them all, so that no expert can be taken by every bag from all of them.
    once = GreedySelection(bags=1, size=1).fit(values, labels, labels).counts_
    many = GreedySelection(bags=40, size=1).fit(values, labels, labels).counts_
    assert once.max() == 1
    assert 10 < many[once.argmax()] < 35


@pytest.mark.parametrize("inputs", ["probabilities", "logits"])
def test_logistic_takes_the_penalty_with_the_least_loss_on_held_out_groups(
    inputs: Any, make_experts: Any
) -> None:
    experts = make_experts(skills=(0.5, 0.5))
    table, values = experts.table, experts.log_posteriors
    losses = []
    for penalty in PENALTIES:
        held_out = np.empty((len(table.labels), 3))
        for fold in range(4):
            rows = table.folds != fold
            fusion = LogisticFusion(inputs, (penalty,))
            fusion.fit(values[:, rows], table.labels[rows], table.folds[rows])
            held_out[~rows] = fusion.rule().apply(values[:, ~rows])
        losses.append(get_metric("log_loss").score(table.labels, held_out))
    chosen = LogisticFusion(inputs).fit(values, table.labels, table.folds).penalty_
    assert chosen == PENALTIES[int(np.argmin(losses))]


def test_logistic_penalises_noise_more_than_skill(make_experts: Any) -> None:
    chosen = [
        LogisticFusion("logits")
        .fit(experts.log_posteriors, experts.table.labels, experts.table.folds)
        .penalty_
        for experts in (make_experts(skills=(0.0, 0.0)), make_experts(skills=(4.0, 4.0)))
    ]
    assert chosen[0] < chosen[1]


def test_logistic_without_groups_to_hold_out_takes_a_middle_penalty(make_experts: Any) -> None:
    experts = make_experts()
    fusion = LogisticFusion().fit(
        experts.log_posteriors, experts.table.labels, np.zeros_like(experts.table.labels)
    )
    assert fusion.penalty_ == PENALTIES[2]


def test_logistic_gives_a_class_that_it_never_saw_the_least_probability(make_experts: Any) -> None:
    experts = make_experts(skills=(3.0, 3.0))
    rows = experts.table.labels != 1
    fusion = LogisticFusion().fit(
        experts.log_posteriors[:, rows], experts.table.labels[rows], experts.table.folds[rows]
    )
    fused = fusion.rule().apply(experts.log_posteriors)
    assert (fused.argmin(axis=1) == 1).all()
    assert np.exp(fused[:, 1]).max() < 1e-6


def test_logistic_undoes_an_expert_that_mixes_up_its_classes(make_experts: Any) -> None:
    # Averages cannot learn that an expert says b where it means a.
    experts = make_experts(skills=(3.0,))
    swapped = experts.log_posteriors[:, :, [1, 0, 2]]
    table = experts.table
    assert get_metric("accuracy").score(table.labels, swapped[0]) < 0.5
    fused = LogisticFusion().fit(swapped, table.labels, table.folds).rule().apply(swapped)
    assert get_metric("accuracy").score(table.labels, fused) > 0.8
    assert np.allclose(log_softmax(fused), fused)


def test_greedy_selection_follows_the_metric_it_is_given() -> None:
    # 8 clips of class 0, 2 of class 1: guessing 0 wins accuracy, the other expert wins UAR.
    labels = np.array([0] * 8 + [1] * 2)
    majority = np.log(np.tile([0.9, 0.1], (10, 1)))
    balanced = np.log(np.where((np.arange(10) >= 3)[:, None], [[0.1, 0.9]], [[0.9, 0.1]]))
    balanced[3:6] = np.log([0.6, 0.4])
    stacked = np.stack([majority, balanced])
    counts = {
        metric: GreedySelection(size=1, metric=metric)
        .fit(stacked, labels, labels * 0)
        .counts_.tolist()
        for metric in ("accuracy", "uar")
    }
    assert counts == {"accuracy": [1, 0], "uar": [0, 1]}


def test_the_best_power_undoes_a_temperature(make_experts: Any) -> None:
    experts = make_experts(skills=(2.0,), speakers=60, clips=12)
    (values,), labels = experts.log_posteriors, experts.table.labels
    plain = best_power(values, labels)
    assert best_power(log_softmax(values * 5), labels) == pytest.approx(plain / 5, rel=0.01)
    on_a_grid = min(
        get_metric("log_loss").score(labels, log_softmax(values * power))
        for power in np.linspace(0.2, 5, 500)
    )
    assert get_metric("log_loss").score(labels, log_softmax(values * plain)) <= on_a_grid + 1e-6


def test_a_tempered_average_does_not_follow_whoever_is_surest(make_experts: Any) -> None:
    experts = make_experts(skills=(2.0, 0.3), speakers=40, clips=12)
    values, table = experts.log_posteriors.copy(), experts.table
    values[1] = log_softmax(values[1] * 50)
    plain, tempered = AverageFusion(), TemperedFusion(AverageFusion)
    plain.fit(values, table.labels, table.folds)
    tempered.fit(values, table.labels, table.folds)
    assert tempered.powers_[1] < 0.05
    assert get_metric("accuracy").score(
        table.labels, tempered.rule().apply(values)
    ) > 0.1 + get_metric("accuracy").score(table.labels, plain.rule().apply(values))


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_a_calibration_is_fitted_on_rows_that_the_fusion_was_not(
    kind: Any, make_experts: Any
) -> None:
    class Memory:
        """Knows the rows it was fitted on for certain, and nothing of others."""

        def fit(self, values: Any, labels: Any, groups: Any) -> Memory:
            self.known = {one.tobytes(): k for one, k in zip(values[0], labels, strict=True)}
            return self

        def rule(self) -> Any:
            return self

        def apply(self, values: Any) -> Any:
            out = np.zeros(values.shape[1:])
            for row, one in enumerate(values[0]):  # the last bits are as good as random
                out[row, self.known.get(one.tobytes(), one.tobytes()[0] % 3)] = 9.0
            return log_softmax(out)

    experts = make_experts(speakers=24)
    table = experts.table
    fusion = CalibratedFusion(Memory, kind)
    fusion.fit(experts.log_posteriors, table.labels[::-1].copy(), table.folds)
    # In sample it is never wrong; out of sample it guesses, so that it must be made unsure.
    assert fusion.scale_.max() < 0.3


def test_vector_scaling_gives_back_what_a_biased_expert_withholds(make_experts: Any) -> None:
    experts = make_experts(skills=(1.5,), speakers=60, clips=12)
    biased = log_softmax(experts.log_posteriors + np.array([0.0, -4.0, 0.0]))
    table = experts.table
    fusion = CalibratedFusion(AverageFusion, "vector").fit(biased, table.labels, table.folds)
    assert fusion.offset_[1] - fusion.offset_[0] > 2
    gained = get_metric("accuracy").score(table.labels, fusion.rule().apply(biased))
    assert gained > 0.1 + get_metric("accuracy").score(table.labels, biased[0])


def test_grouped_weights_are_shared_within_a_group(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0, 1.0, 1.0, 0.0), speakers=40)
    table = experts.table
    fusion = GroupedFusion(["audio", "audio", "audio", "video"])
    fusion.fit(experts.log_posteriors, table.labels, table.folds)
    first, second, third, useless = fusion.weights_
    assert first == second == third > 5 * useless
    both = GroupedFusion(["a", "b", "b"]).fit(
        experts.log_posteriors[[0, 1, 1]], table.labels, table.folds
    )
    pair = WeightedFusion().fit(experts.log_posteriors[:2], table.labels, table.folds)
    np.testing.assert_allclose(
        both.weights_, [pair.weights_[0], pair.weights_[1] / 2, pair.weights_[1] / 2], atol=1e-4
    )


@pytest.mark.parametrize("scaling", ["standard", "minmax", "none"])
def test_logistic_scales_the_rows_it_is_fitted_on(scaling: Any, make_experts: Any) -> None:
    experts = make_experts(skills=(1.0, 2.0))
    values, table = experts.log_posteriors, experts.table
    columns = np.exp(values).transpose(1, 0, 2).reshape(72, 6)
    shift, scale = {
        "standard": (columns.mean(axis=0), columns.std(axis=0)),
        "minmax": (columns.min(axis=0), np.ptp(columns, axis=0)),
        "none": (np.zeros(6), np.ones(6)),
    }[scaling]
    model = LogisticRegression(C=0.3, max_iter=10_000, tol=1e-8)
    model.fit((columns - shift) / scale, table.labels)
    fusion = LogisticFusion("probabilities", (0.3,), scaling).fit(values, table.labels, table.folds)
    np.testing.assert_allclose(
        np.exp(fusion.rule().apply(values)),
        model.predict_proba((columns - shift) / scale),
        atol=1e-4,
    )


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(
    ("experts", "classes", "scale", "missing"),
    [(2, 2, 1.0, None), (3, 3, 60.0, None), (3, 3, 1.0, 1), (2, 5, 3.0, 4), (14, 8, 1.0, None)],
    ids=["two classes", "overconfident", "two of three classes", "a class missing", "wide"],
)
def test_logistic_finds_scikit_learns_optimum(
    experts: int, classes: int, scale: float, missing: int | None, penalty: float, make_experts: Any
) -> None:
    made = make_experts(skills=(1.0,) * experts, classes=classes, scale=scale, clips=10)
    rows = made.table.labels != missing
    values, labels = made.log_posteriors[:, rows], made.table.labels[rows]
    columns = np.maximum(values, -20).transpose(1, 0, 2).reshape(len(labels), -1)
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    model = LogisticRegression(C=penalty, max_iter=10_000, tol=1e-8).fit(columns, labels)
    fusion = LogisticFusion("logits", (penalty,)).fit(values, labels, labels * 0)
    np.testing.assert_allclose(
        np.exp(fusion.rule().apply(values)[:, model.classes_]),
        model.predict_proba(columns),
        atol=1e-4,
    )


def test_regressions_of_several_sets_of_rows_are_those_of_each_alone(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0, 2.0))
    table, columns = experts.table, np.concatenate(experts.log_posteriors, axis=1)
    inside = table.folds != np.arange(4)[:, None]
    inside[3] &= table.labels != 1
    sets = np.stack([columns] * 4)
    together = Regressions(sets, table.labels, inside, 3).solve((0.03, 3.0), 1e-9)
    for penalty, found in zip((0.03, 3.0), together, strict=True):
        for own, rows in zip(found, inside, strict=True):
            alone = Regressions(columns[None, rows], table.labels[rows], rows[None, rows], 3)
            ((expected,),) = alone.solve((penalty,), 1e-9)
            np.testing.assert_allclose(own, expected, atol=1e-5)


def test_logistic_of_many_columns_is_scikit_learns(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0,) * 50)
    values, labels = experts.log_posteriors, experts.table.labels
    rows = labels != 2
    columns = values[:, rows].transpose(1, 0, 2).reshape(rows.sum(), -1)
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    model = LogisticRegression(C=0.3, max_iter=200, tol=1e-3).fit(columns, labels[rows])
    fusion = LogisticFusion("logits", (0.3,)).fit(values[:, rows], labels[rows], labels[rows])
    fused = np.exp(fusion.rule().apply(values[:, rows]))
    np.testing.assert_allclose(fused[:, :2], model.predict_proba(columns), atol=1e-6)
    assert fused[:, 2].max() < 1e-6


def test_the_same_settings_on_the_same_rows_are_fitted_once(make_experts: Any) -> None:
    fits = []

    class Counted(AverageFusion):
        def fit(self, log_posteriors: Any, labels: Any, groups: Any) -> Any:
            fits.append(dict(vars(self)))
            return super().fit(log_posteriors, labels, groups)

    experts = make_experts()
    values, labels, folds = experts.log_posteriors, experts.table.labels, experts.table.folds
    others = [
        (values[::-1], labels, folds),
        (values, labels[::-1], folds),
        (values, labels, labels),
    ]
    with remembering({}):
        first = remembered(Counted("log"), values, labels, folds)
        assert remembered(Counted("log"), values.copy(), labels.copy(), folds.copy()) is first
        assert len(fits) == 1
        for rows in others:
            assert remembered(Counted("log"), *rows) is not first
        assert isinstance(remembered(Counted("arithmetic"), values, labels, folds), Pooling)
        assert len(fits) == 5
        # Two functions can share an address, one after the other.
        stack = StackedFusion([lambda: Counted("log")], lambda: Counted("log"))
        assert remembered(stack, values, labels, folds) is not remembered(
            stack, values, labels, folds
        )
    before = len(fits)
    remembered(Counted("log"), values, labels, folds)
    remembered(Counted("log"), values, labels, folds)
    assert len(fits) == before + 2


def test_a_stack_of_one_layer_of_one_is_that_fusion_weighed(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0, 2.0), speakers=40)
    values, table = experts.log_posteriors, experts.table
    fusion = StackedFusion([WeightedFusion], AverageFusion).fit(values, table.labels, table.folds)
    alone = WeightedFusion().fit(values, table.labels, table.folds)
    np.testing.assert_allclose(fusion.rule().apply(values), alone.rule().apply(values), atol=1e-9)
