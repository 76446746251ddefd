"""Scores against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from ensembles import EnsembleError
from ensembles.metrics import (
    calibration_error,
    check_metric,
    confusion_matrix,
    get_metric,
    log_softmax,
    metrics_of_classes,
)


def drawn(seed: int, present: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """60 labels of the first `present` of 4 classes, and posteriors over all 4."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, present, 60)
    logits = generator.normal(size=(60, 4))
    logits[np.arange(60), labels] += 1.0
    return labels, log_softmax(logits)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("present", [4, 3], ids=["all classes", "one class never occurs"])
def test_scores_are_scikit_learns(seed: int, present: int) -> None:
    labels, posteriors = drawn(seed, present)
    predicted = posteriors.argmax(axis=1)
    assert set(predicted) == {0, 1, 2, 3}
    assert get_metric("accuracy").score(labels, posteriors) == pytest.approx(
        reference.accuracy_score(labels, predicted)
    )
    assert get_metric("uar").score(labels, posteriors) == pytest.approx(
        reference.balanced_accuracy_score(labels, predicted)
    )
    # Macro-F1 averages over the classes that occur in the labels.
    assert get_metric("macro_f1").score(labels, posteriors) == pytest.approx(
        reference.f1_score(labels, predicted, labels=range(present), average="macro")
    )
    assert get_metric("log_loss").score(labels, posteriors) == pytest.approx(
        reference.log_loss(labels, np.exp(posteriors), labels=range(4))
    )
    np.testing.assert_array_equal(
        confusion_matrix(labels, predicted, 4),
        reference.confusion_matrix(labels, predicted, labels=range(4)),
    )


def test_scores_by_hand() -> None:
    # Class 0: two of three right; class 1: right. Class 2 is predicted once and never occurs.
    labels = np.array([0, 0, 0, 1])
    posteriors = np.log([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.7, 0.2]])
    assert get_metric("accuracy").score(labels, posteriors) == 0.75
    assert get_metric("uar").score(labels, posteriors) == pytest.approx((2 / 3 + 1) / 2)
    assert get_metric("macro_f1").score(labels, posteriors) == pytest.approx((4 / 5 + 1) / 2)
    assert get_metric("log_loss").score(labels, posteriors) == pytest.approx(
        -np.log([0.8, 0.5, 0.2, 0.7]).mean()
    )
    assert confusion_matrix(labels, posteriors.argmax(axis=1), 3).tolist() == [
        [2, 0, 1],
        [0, 1, 0],
        [0, 0, 0],
    ]


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        EnsembleError, match=r"Unknown metric 'f1'. Known: accuracy, uar, macro_f1, log_loss\."
    ):
        check_metric("f1")


@pytest.mark.parametrize("metric", metrics_of_classes())
def test_utility_is_higher_for_the_better_predictions(metric: str) -> None:
    labels, posteriors = drawn(0)
    assert check_metric(metric) == metric
    perfect = log_softmax(5.0 * np.eye(4)[labels])
    assert get_metric(metric).utility(labels, perfect) > get_metric(metric).utility(
        labels, posteriors
    )


def test_the_fold_mean_is_not_weighted_by_the_folds_sizes() -> None:
    # Fold 5: one of one right; fold 7: one of three.
    labels = np.array([0, 0, 0, 0])
    posteriors = np.log([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    folds = np.array([5, 7, 7, 7])
    assert get_metric("accuracy").fold_mean(labels, posteriors, folds) == pytest.approx(
        (1 + 1 / 3) / 2
    )


def test_log_softmax_survives_large_logits() -> None:
    got = log_softmax(np.array([[1000.0, 1000.0], [-1000.0, 1000.0]], np.float32))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [[np.log(0.5), np.log(0.5)], [-2000.0, 0.0]])


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    # Ten clips at 0.9 of which 7 are right, ten at 0.6 of which 6 are: (0.2 × 10 + 0 × 10) / 20.
    sure, unsure = np.log([0.9, 0.1]), np.log([0.6, 0.4])
    log_posteriors = np.stack([sure] * 10 + [unsure] * 10)
    labels = np.array([0] * 7 + [1] * 3 + [0] * 6 + [1] * 4)
    assert calibration_error(labels, log_posteriors) == pytest.approx(0.1)
    certain = np.log([[1.0, 1e-300]])
    assert calibration_error(np.array([0]), certain) == pytest.approx(0.0)
    assert calibration_error(np.array([1]), certain) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("uar", ("81.2", "81.2 %", "81.2 % uar", "81.23", "+81.2", "UAR, %", "%", "points")),
        (
            "log_loss",
            (
                *("0.812", "0.812", "0.812 nats of log-loss", "0.812", "+0.812"),
                *("log-loss, nats (less is better)", "nats, less is better", "nats less"),
            ),
        ),
        (
            "ccc",
            (
                *("0.812", "0.812", "0.812 CCC", "0.812", "+0.812"),
                *("CCC", "1 is perfect", "CCC more"),
            ),
        ),
    ],
)
def test_a_metric_knows_how_it_is_shown(name: str, texts: tuple[str, ...]) -> None:
    metric = get_metric(name)
    forms = (
        metric.format,
        metric.format_with_unit,
        metric.format_named,
        metric.format_published,
        metric.format_difference,
    )
    shown = (*(form(0.8123) for form in forms), metric.label, metric.scale, metric.difference_unit)
    assert shown == texts


def test_intervals_hold_possible_scores_alone() -> None:
    assert get_metric("accuracy").clipped(-0.1, 1.1) == (0.0, 1.0)
    assert get_metric("log_loss").clipped(-0.1, 1.1) == (0.0, 1.1)
    assert get_metric("ccc").clipped(-1.5, 0.2) == (-1.0, 0.2)
    assert get_metric("uar").format_interval(0.5, 0.75) == "50.0 – 75.0"
    assert get_metric("uar").format_differences(0.1, -0.05, 0.2) == "+10.0 (-5.0 … +20.0)"
