"""The bias-corrected score: against a plain loop, and against what is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ensembles.bank.clip_table import ClipTable
from ensembles.evaluation.assessment import assess
from ensembles.evaluation.bias_correction import MIN_GROUPS, Candidates
from ensembles.metrics import METRICS, get_metric, metrics_of_classes


def plain_bbc(
    metric: str, table: ClipTable, values: Any, groups: Any, draws: int, seed: int
) -> list[float]:
    """Draw by draw, candidate by candidate, from the clips themselves."""
    generator = np.random.default_rng(seed)
    names = np.unique(groups)
    scores = []
    for _ in range(draws):
        drawn = names[generator.integers(len(names), size=len(names))]
        inside = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        outside = np.flatnonzero(~np.isin(groups, drawn))
        sign = get_metric(metric).sign

        def mean(one: Any, rows: Any) -> float:
            return get_metric(metric).fold_mean(table.labels[rows], one[rows], table.folds[rows])

        best = max(values, key=lambda one: sign * mean(one, inside))
        scores.append(mean(best, outside))
    return scores


@pytest.mark.parametrize("metric", metrics_of_classes())
def test_the_correction_is_that_of_a_plain_loop(metric: str, make_experts: Any) -> None:
    experts = make_experts(skills=(0.3, 0.4, 0.5, 0.4), speakers=14, clips=7, folds=3)
    table, values = experts.table, experts.log_posteriors
    candidates = Candidates(metric, table)
    candidates.add(values)
    found = candidates.corrected(draws=40, seed=3)
    expected = plain_bbc(metric, table, values, np.asarray(table.speakers), 40, 3)
    assert found is not None
    assert found.score == pytest.approx(np.mean(expected))
    assert found.candidates == len(candidates) == 4
    assert found.low < found.score < found.high


@pytest.mark.parametrize("metric", metrics_of_classes())
def test_speakers_drawn_within_their_folds_are_scored_as_their_clips_are(
    metric: str, make_experts: Any
) -> None:
    experts = make_experts(skills=(0.5,), speakers=10, clips=7, folds=3)
    table, (values,) = experts.table, experts.log_posteriors
    candidates = Candidates(metric, table)
    candidates.add([values])
    generator, speakers = np.random.default_rng(3), np.asarray(table.speakers)
    by_fold = []
    for fold in range(3):
        own = np.unique(speakers[table.folds == fold])
        drawn = own[generator.integers(len(own), size=(20, len(own)))]
        rows = [np.concatenate([np.flatnonzero(speakers == s) for s in names]) for names in drawn]
        by_fold.append(
            [get_metric(metric).score(table.labels[some], values[some]) for some in rows]
        )
    np.testing.assert_allclose(candidates.within_folds(20, seed=3), np.mean(by_fold, axis=0))


def test_a_metric_without_sums_is_resampled_the_same(
    make_experts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "plain", replace(get_metric("macro_f1"), name="plain", sums=None))
    experts = make_experts(skills=(0.3, 0.4, 0.5, 0.4), speakers=14, clips=7, folds=3)
    summed, plain = (Candidates(name, experts.table) for name in ("macro_f1", "plain"))
    for candidates in (summed, plain):
        candidates.add(experts.log_posteriors)
    np.testing.assert_allclose(plain.scores(), summed.scores())
    np.testing.assert_allclose(plain.resampled(20), summed.resampled(20))
    np.testing.assert_allclose(plain.within_folds(20), summed.within_folds(20))
    found, expected = plain.corrected(draws=40), summed.corrected(draws=40)
    assert found is not None
    assert expected is not None
    assert (found.score, found.low, found.high) == pytest.approx(
        (expected.score, expected.low, expected.high)
    )


def test_groups_are_drawn_whole(make_experts: Any) -> None:
    # Twelve pairs of speakers, as in sessions: a pair is never on both sides.
    experts = make_experts(skills=(0.3, 0.4, 0.5), speakers=24, folds=3)
    table, values = experts.table, experts.log_posteriors
    pairs = [f"pair{int(name[-2:]) // 2}" for name in table.speakers]
    candidates = Candidates("accuracy", table, pairs)
    candidates.add(values)
    found = candidates.corrected(draws=40)
    assert found is not None
    expected = plain_bbc("accuracy", table, values, np.asarray(pairs), 40, 0)
    assert found.score == pytest.approx(np.mean(expected))


def test_the_luckiest_of_many_coin_tosses_is_worth_a_coin_toss(make_experts: Any) -> None:
    experts = make_experts(skills=(0.0,) * 200, speakers=24, clips=20, classes=4, folds=5)
    table, values = experts.table, experts.log_posteriors
    naive = max(get_metric("accuracy").fold_mean(table.labels, one, table.folds) for one in values)
    candidates = Candidates("accuracy", table)
    candidates.add(values)
    found = candidates.corrected(draws=300)
    assert found is not None
    assert naive > 0.29
    assert found.score == pytest.approx(0.25, abs=0.02)
    assert found.low < 0.25 < found.high < naive + 0.03


def test_who_is_far_better_than_the_rest_loses_nothing(make_experts: Any) -> None:
    experts = make_experts(skills=(0.0, 0.1, 3.0), speakers=24, clips=20)
    table, values = experts.table, experts.log_posteriors
    candidates = Candidates("accuracy", table)
    candidates.add(values)
    found = candidates.corrected(draws=300)
    assert found is not None
    best = get_metric("accuracy").fold_mean(table.labels, values[2], table.folds)
    assert found.score == pytest.approx(best, abs=0.005)


@pytest.mark.parametrize(
    ("speakers", "there"), [(MIN_GROUPS - 1, False), (MIN_GROUPS, True)], ids=["few", "enough"]
)
def test_few_groups_give_no_correction(speakers: int, there: bool, make_experts: Any) -> None:
    experts = make_experts(speakers=speakers, folds=3)
    candidates = Candidates("accuracy", experts.table)
    assert candidates.corrected() is None  # of nothing
    candidates.add(experts.log_posteriors)
    assert (candidates.corrected(draws=10) is not None) is there


def test_a_fold_a_speaker_works(make_experts: Any) -> None:
    experts = make_experts(skills=(0.5, 1.0), speakers=12, clips=10, folds=12)
    candidates = Candidates("uar", experts.table)
    candidates.add(experts.log_posteriors)
    found = candidates.corrected(draws=50)
    assert found is not None
    table, (_, best_one) = experts.table, experts.log_posteriors
    best = get_metric("uar").fold_mean(table.labels, best_one, table.folds)
    assert found.score == pytest.approx(best, abs=0.05)


def test_the_assessment_corrects_every_choice_for_all_that_was_in_it(make_experts: Any) -> None:
    experts = make_experts(
        skills=(0.5, 0.6, 0.7),
        modalities=("audio", "audio", "video"),
        speakers=12,
        folds=2,
    )
    found = assess(experts, "accuracy")
    rungs = [("audio", one) for one in experts.log_posteriors] * 3
    wide = assess(experts, "accuracy", rungs=rungs)
    best, among = found.row("best audio"), wide.row("best audio")
    assert best is not None
    assert best.corrected is not None
    assert best.corrected.candidates == 2
    assert among is not None
    assert among.corrected is not None
    assert among.corrected.candidates == 9
    assert wide.row("best video").corrected is None  # type: ignore[union-attr]
    assert found.fused.corrected is not None
    assert found.fused.corrected.candidates == len(found.recipes)
    within = [row for row in found.recipes if row.name.startswith(("best audio", "audio "))]
    assert found.alone["audio"].corrected is not None
    assert found.alone["audio"].corrected.candidates == len(within)
    assert found.row("a+v: average").corrected is None  # type: ignore[union-attr]
    # In the search's own order of merit nothing changes.
    assert get_metric("accuracy").utility(
        experts.table.labels, found.fused.log_posteriors
    ) == get_metric("accuracy").utility(experts.table.labels, wide.fused.log_posteriors)
