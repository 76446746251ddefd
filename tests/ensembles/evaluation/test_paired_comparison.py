"""Differences between two sets of predictions: by hand, and paired by speaker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ensembles.evaluation.assessment import assess
from ensembles.evaluation.paired_comparison import (
    Difference,
    difference,
    fusion_gains,
    recall_differences,
)
from ensembles.metrics import get_metric, metrics_of_classes


@pytest.mark.parametrize("metric", metrics_of_classes())
def test_the_difference_is_that_of_the_scores_more_being_better(
    metric: str, make_experts: Any
) -> None:
    experts = make_experts(skills=(1.5, 0.5), speakers=20, clips=12)
    table, (one, other) = experts.table, experts.log_posteriors
    mine, its = (get_metric(metric).fold_mean(table.labels, x, table.folds) for x in (one, other))
    found = difference(metric, table, one, other)
    assert found.value == pytest.approx(its - mine if metric == "log_loss" else mine - its)
    assert 0 < found.low < found.value < found.high
    assert found.verdict == "better"
    back = difference(metric, table, other, one)
    assert back.value == pytest.approx(-found.value)
    assert back.verdict == "worse"


def test_what_makes_a_speaker_hard_for_both_cancels(make_experts: Any) -> None:
    # Speakers differ by tens of points; the other one is wrong in one more clip of each.
    experts = make_experts(skills=(0.0,), speakers=24, clips=20, classes=4, folds=4)
    table = experts.table
    hits = np.concatenate([np.arange(20) < 4 + s % 12 for s in range(24)])
    fewer = np.concatenate([np.arange(20) < 3 + s % 12 for s in range(24)])

    def say(right: Any) -> Any:
        wrong = (table.labels + 1) % 4
        said = np.where(right, table.labels, wrong)
        return np.log(np.where(np.arange(4) == said[:, None], 0.7, 0.1))

    found = difference("accuracy", table, say(hits), say(fewer))
    assert found.value == pytest.approx(0.05)
    assert found.high - found.low < 1e-9


def test_a_difference_with_itself_is_comparable(make_experts: Any) -> None:
    experts = make_experts(skills=(1.0,), speakers=20)
    (one,) = experts.log_posteriors
    found = difference("accuracy", experts.table, one, one)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.verdict == "comparable"


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.9, -1.0, 3.0, "comparable"),
        (-0.9, -3.0, 1.0, "comparable"),
        (1.5, -0.5, 3.5, "better, or chance"),
        (-1.5, -3.5, 0.5, "worse, or chance"),
        (3.0, 1.0, 5.0, "better"),
    ],
)
def test_a_verdict_says_no_more_than_it_knows(
    value: float, low: float, high: float, verdict: str
) -> None:
    assert Difference(value, 1.0, low, high).verdict == verdict


def test_few_speakers_get_a_t_interval_of_their_own_differences(make_experts: Any) -> None:
    experts = make_experts(skills=(1.5, 0.5), speakers=6, clips=12, folds=3)
    table, (one, other) = experts.table, experts.log_posteriors
    speakers = np.asarray(table.speakers)
    apart = [
        get_metric("accuracy").score(table.labels[rows], one[rows])
        - get_metric("accuracy").score(table.labels[rows], other[rows])
        for rows in (speakers == name for name in np.unique(speakers))
    ]
    found = difference("accuracy", table, one, other)
    half = 2.5706 * np.std(apart, ddof=1) / np.sqrt(6)  # t, five degrees of freedom
    assert found.value == pytest.approx(np.mean(apart))
    assert found.high - found.value == pytest.approx(half, rel=1e-4)
    assert found.value - found.low == pytest.approx(half, rel=1e-4)


def test_a_class_recall_is_over_all_its_clips_and_absent_classes_are_left_out(
    make_experts: Any,
) -> None:
    experts = make_experts(skills=(1.5, 0.5), speakers=20, clips=12)
    table, (one, other) = experts.table, experts.log_posteriors
    table = replace(table, classes=(*table.classes, "never"))
    found = recall_differences(table, one, other)
    assert list(found) == ["a", "b", "c"]
    for number, name in enumerate("abc"):
        rows = table.labels == number
        recall = [(x[rows].argmax(axis=1) == number).mean() for x in (one, other)]
        assert found[name].value == pytest.approx(recall[0] - recall[1])


def test_fusion_of_two_complementary_experts_gains_over_both(make_experts: Any) -> None:
    experts = make_experts(
        skills=(1.0, 1.0), modalities=("audio", "video"), speakers=60, clips=12, folds=2
    )
    assessment = assess(experts, "accuracy")
    gains = fusion_gains(assessment)
    assert list(gains) == ["audio", "video"]
    for modality, gain in gains.items():
        row = assessment.row(f"best {modality}")
        assert row is not None
        assert gain.over == row.name
        assert gain.all.value == pytest.approx(assessment.fused.honest_score - row.honest_score)
        assert gain.all.low > 0
        assert set(gain.classes) == {"a", "b", "c"}
