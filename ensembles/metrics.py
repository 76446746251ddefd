"""Scores: of classes accuracy, UAR, macro-F1, log-loss and calibration; of traces concordance (CCC)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensembles import EnsembleError

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

METRICS = ("accuracy", "uar", "macro_f1", "log_loss")
"""Of classes."""

CCC = "ccc"
"""Of traces and of values, the only one: the mean over dimensions."""

_LEAST_VARIANCE = 1e-12


def check_metric(name: str) -> str:
    """Returns the name of a metric of classes; raises EnsembleError with the known ones."""
    if name not in METRICS:
        raise EnsembleError(f"Unknown metric '{name}'. Known: {', '.join(METRICS)}.")
    return name


def ccc(gold: Array, predicted: Array) -> float:
    """Concordance correlation (Lin, 1989) of (n,) with (n,): 2·cov / (σ² + σ² + (μ - μ)²).

    Population moments. Two traces that do not move agree in nothing: 0.
    """
    means = gold.mean(), predicted.mean()
    covariance = ((gold - means[0]) * (predicted - means[1])).mean()
    total = gold.var() + predicted.var() + (means[0] - means[1]) ** 2
    return float(2 * covariance / total) if total > _LEAST_VARIANCE else 0.0


def rmse(gold: Array, predicted: Array) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(((gold - predicted) ** 2).mean()))


def score(metric: str, labels: NDArray[Any], log_posteriors: Array) -> float:
    """Scores (N, K) log-posteriors against (N,) class indices; for CCC (S, D) traces against (S, D).

    Higher is better for accuracy, uar and macro_f1, lower for log_loss. UAR and macro-F1
    average over the classes that occur in `labels`.
    """
    if metric == CCC:
        pairs = zip(labels.T, log_posteriors.T, strict=True)
        return float(np.mean([ccc(gold, predicted) for gold, predicted in pairs]))
    labels = np.asarray(labels, np.int64)
    if metric == "log_loss":
        return float(-log_posteriors[np.arange(len(labels)), labels].mean())
    predictions = log_posteriors.argmax(axis=1)
    if metric == "accuracy":
        return float((predictions == labels).mean())
    matrix = confusion_matrix(labels, predictions, log_posteriors.shape[1])
    hits, actual, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    present = actual > 0
    if metric == "uar":
        return float((hits[present] / actual[present]).mean())
    assert metric == "macro_f1", metric
    return float((2 * hits[present] / (actual[present] + predicted[present])).mean())


def told(metric: str, value: float) -> str:
    """As it is printed: in percent, log-loss and concordance as they are."""
    return f"{value:.3f}" if metric in {"log_loss", CCC} else f"{100 * value:.1f}"


def utility(metric: str, labels: NDArray[Any], log_posteriors: Array) -> float:
    """The score, turned so that higher is better."""
    return score(metric, labels, log_posteriors) * (-1.0 if metric == "log_loss" else 1.0)


def fold_scores(
    metric: str, labels: NDArray[Any], log_posteriors: Array, folds: Labels
) -> dict[int, float]:
    """Fold → its score."""
    return {
        int(k): score(metric, labels[folds == k], log_posteriors[folds == k])
        for k in np.unique(folds)
    }


def fold_mean(metric: str, labels: NDArray[Any], log_posteriors: Array, folds: Labels) -> float:
    """Unweighted mean of the folds' scores."""
    return float(np.mean(list(fold_scores(metric, labels, log_posteriors, folds).values())))


def calibration_error(labels: Labels, log_posteriors: Array, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., 2017): how far confidence is from accuracy.

    The mean over clips of the gap between both in its bin of confidence, bins of equal width.
    """
    confidence = np.exp(log_posteriors.max(axis=1))
    right = log_posteriors.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, confidence, bins) - np.bincount(bin_of, right, bins)
    return float(np.abs(gaps).sum() / len(labels))


def confusion_matrix(labels: Labels, predictions: Labels, num_classes: int) -> Labels:
    """(K, K) counts, rows are the true classes."""
    flat = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def log_softmax(logits: Array) -> Array:
    """(…, K) logits → log-posteriors, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
