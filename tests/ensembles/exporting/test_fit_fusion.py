"""The ensemble that leaves the house gives the numbers that the run was scored by."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from ensembles import EnsembleError
from ensembles.artifact.fitted_ensemble import Fused
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import assess
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.exporting.fit_fusion import Chooser
from ensembles.metrics import Array

MakeExperts = Callable[..., Experts]
MODALITIES = ("audio", "audio", "video", "early")
INPUTS = {
    "e00": frozenset({"audio"}),
    "e01": frozenset({"audio"}),
    "e02": frozenset({"video"}),
    "e03": frozenset({"audio", "features"}),
}


@pytest.fixture(scope="module")
def experts(make_experts: MakeExperts) -> Experts:
    return make_experts(skills=(0.6, 1.4, 1.0, 1.2), modalities=MODALITIES, folds=3)


@pytest.fixture(scope="module")
def chooser(experts: Experts) -> Chooser:
    """By UAR; to be asked, not changed."""
    return Chooser(CrossFitter(experts, "uar"))


def by_name(experts: Experts, rows: Array | None = None) -> dict[str, Array]:
    """Each expert's posteriors, of some clips."""
    values = experts.log_posteriors if rows is None else experts.log_posteriors[:, rows]
    return dict(zip(experts.names, values, strict=True))


def test_each_recipe_fitted_again_gives_the_run_its_held_out_posteriors(
    experts: Experts, chooser: Chooser
) -> None:
    assessment = assess(experts, "uar")
    assert len(assessment.recipes) > 20
    for row in (assessment.fused, *assessment.recipes):
        for fold, (recipe, names) in enumerate(row.per_fold):
            fused = chooser.fit(recipe, [fold])
            held_out = experts.table.folds == fold
            assert fused.experts == names
            np.testing.assert_array_equal(
                fused.apply(by_name(experts, held_out)), row.log_posteriors[held_out]
            )
    for row in assessment.recipes:
        assert chooser.fit(row.name).experts == row.experts


def test_an_ensemble_comes_back_from_json_bit_identical(experts: Experts, chooser: Chooser) -> None:
    for recipe in chooser.candidates:
        fused = chooser.fit(recipe, [0])
        again = Fused.from_json(json.loads(json.dumps(fused.to_json())), classes=3)
        assert (again.recipe, again.experts) == (recipe, fused.experts)
        np.testing.assert_array_equal(
            again.apply(by_name(experts)), fused.apply(by_name(experts)), err_msg=recipe
        )


def test_a_recipe_that_the_experts_do_not_allow_is_refused(make_experts: MakeExperts) -> None:
    chooser = Chooser(CrossFitter(make_experts(skills=(1.0,)), "accuracy"))
    with pytest.raises(EnsembleError, match=r"recipe 'a\+v: product' does not fit the experts"):
        chooser.fit("a+v: product")


def test_where_inputs_are_missing_the_members_that_need_none_are_fused_anew(
    experts: Experts, chooser: Chooser
) -> None:
    whole = chooser.fit("a+v+e: product")
    assert whole.experts == ("e01", "e02", "e03")
    found = chooser.substitutes(whole, INPUTS)
    assert {some: fused.experts for some, fused in found.items()} == {
        frozenset({"audio"}): ("e01",),
        frozenset({"video"}): ("e02",),
        frozenset({"audio", "video"}): ("e01", "e02"),
        frozenset({"audio", "features"}): ("e01", "e03"),
        frozenset({"features", "video"}): ("e02",),
    }
    both = found[frozenset({"audio", "features"})].apply(by_name(experts))
    expected = experts.log_posteriors[[1, 3]].mean(axis=0)
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(both, expected)


def test_where_no_member_can_the_best_expert_that_can_takes_over(chooser: Chooser) -> None:
    found = chooser.substitutes(chooser.fit("best video"), INPUTS)
    assert {some: fused.experts for some, fused in found.items()} == {
        frozenset({"audio"}): ("e01",),
        frozenset({"audio", "features"}): ("e01",),
    }


def test_an_expert_that_was_not_kept_takes_nothing_over(chooser: Chooser) -> None:
    kept = {name: inputs for name, inputs in INPUTS.items() if name != "e01"}
    found = chooser.substitutes(chooser.fit("best video"), kept)
    assert found[frozenset({"audio"})].experts == ("e00",)


def test_an_ensemble_is_never_empty_however_bad_its_experts(make_experts: MakeExperts) -> None:
    # The audio expert is worse than chance, so that a fitted weight of it is 0.
    bad = make_experts(skills=(-3.0, 2.0), modalities=("audio", "video"), folds=3)
    chooser = Chooser(CrossFitter(bad, "accuracy"))
    whole = chooser.fit("a+v: weighted product")
    assert whole.experts == ("e01",)
    found = chooser.substitutes(whole, {"e00": frozenset({"audio"}), "e01": frozenset({"video"})})
    assert found[frozenset({"audio"})].experts == ("e00",)
    probabilities = np.exp(found[frozenset({"audio"})].apply(by_name(bad)))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
