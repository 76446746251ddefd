"""Metrics: how each score is computed, compared and shown. `METRICS` is the registry.

Of classes a metric scores (N, K) log-posteriors against (N,) class indices, of traces and values
(S, D) predictions against (S, D) targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ensembles import EnsembleError

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Score = Callable[[NDArray[Any], Array], float]

CCC = "ccc"
"""Name of the only metric of traces and of values: the mean over dimensions."""

_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Sums:
    """A score computed from sums over clips, so that resampling does not visit each clip again.

    Attributes:
        add: (labels, predictions, (N,) cell of each clip, number of cells) → (cells, D) sums.
        score: (…, D) sums over any clips → (…) scores; NaN of none.
    """

    add: Callable[[NDArray[Any], Array, Labels, int], Array]
    score: Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score, its direction and its scale.

    Attributes:
        name: As in settings and files.
        title: As in tables and texts.
        description: What it measures, in a sentence.
        score: (labels, predictions) → score.
        task: What it scores.
        greater_is_better: Direction of the score; of a utility, greater is always better.
        bounds: Lowest and highest possible score.
        unit: `%` of scores that are shown times 100.
        digits: Decimal places, as shown.
        sums: The same score from sums; without, resampling scores every draw anew.
    """

    name: str
    title: str
    description: str
    score: Score
    task: Literal["classes", "continuous"] = "classes"
    greater_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    unit: str = "%"
    digits: int = 1
    sums: Sums | None = None

    @property
    def sign(self) -> float:
        """Factor between score and utility, in both directions."""
        return 1.0 if self.greater_is_better else -1.0

    @property
    def percent(self) -> bool:
        """Whether scores are shares of 1, shown times 100."""
        return self.unit == "%"

    @property
    def label(self) -> str:
        """Title of an axis."""
        label = f"{self.title}, {self.unit}" if self.unit else self.title
        return label if self.greater_is_better else f"{label} (less is better)"

    @property
    def scale(self) -> str:
        """How to read a score."""
        if self.percent:
            return "%"
        if not self.greater_is_better:
            return f"{self.unit}, less is better"
        return f"{self.bounds[1]:g} is perfect"

    @property
    def difference_unit(self) -> str:
        """Unit of differences of utilities."""
        if self.percent:
            return "points"
        return f"{self.unit or self.title} {'more' if self.greater_is_better else 'less'}"

    def utility(self, labels: NDArray[Any], predictions: Array) -> float:
        """Return the score, negated where less is better."""
        return self.sign * self.score(labels, predictions)

    def fold_scores(
        self, labels: NDArray[Any], predictions: Array, folds: Labels
    ) -> dict[int, float]:
        """Fold → its score."""
        return {
            int(k): self.score(labels[folds == k], predictions[folds == k])
            for k in np.unique(folds)
        }

    def fold_mean(self, labels: NDArray[Any], predictions: Array, folds: Labels) -> float:
        """Return the unweighted mean of the folds' scores."""
        return float(np.mean(list(self.fold_scores(labels, predictions, folds).values())))

    def clipped(self, low: float, high: float) -> tuple[float, float]:
        """Return an interval without impossible scores."""
        return max(low, self.bounds[0]), min(high, self.bounds[1])

    def scaled(self, value: float) -> float:
        """Return a score on the scale that is shown."""
        return 100 * value if self.percent else value

    def format(self, value: float) -> str:
        """Return a score as it is shown, without its unit."""
        return f"{self.scaled(value):.{self.digits}f}"

    def format_with_unit(self, value: float) -> str:
        """Return a score as it is shown, with `%` where it is in percent."""
        return f"{self.format(value)} %" if self.percent else self.format(value)

    def format_named(self, value: float) -> str:
        """Return a score with its unit and name, such as `81.2 % accuracy`."""
        if self.percent:
            return f"{self.format(value)} % {self.name}"
        unit = f"{self.unit} of " if self.unit else ""
        return f"{self.format(value)} {unit}{self.title}"

    def format_published(self, value: float) -> str:
        """Return a paper's score, which has one more digit in percent."""
        return f"{100 * value:.{self.digits + 1}f}" if self.percent else self.format(value)

    def format_interval(self, low: float, high: float) -> str:
        """Return an interval of scores."""
        return f"{self.format(low)} – {self.format(high)}"

    def format_difference(self, value: float) -> str:
        """Return a difference, with its sign."""
        return f"{self.scaled(value):+.{self.digits}f}"

    def format_differences(self, value: float, low: float, high: float) -> str:
        """Return a difference with its interval."""
        value_, low_, high_ = map(self.format_difference, (value, low, high))
        return f"{value_} ({low_} … {high_})"


METRICS: dict[str, Metric] = {}
"""Name → metric."""


def register_metric(metric: Metric) -> None:
    """Add a metric to the registry."""
    METRICS[metric.name] = metric


def metrics_of_classes() -> dict[str, Metric]:
    """Name → metric, of those that score classes."""
    return {name: metric for name, metric in METRICS.items() if metric.task == "classes"}


def get_metric(name: str) -> Metric:
    """Return a registered metric.

    Raises:
        EnsembleError: An unknown name; the text has the known ones.
    """
    if name not in METRICS:
        raise EnsembleError(_unknown(name, METRICS))
    return METRICS[name]


def check_metric(name: str) -> str:
    """Return the name of a metric of classes; raise EnsembleError with the known ones."""
    known = metrics_of_classes()
    if name not in known:
        raise EnsembleError(_unknown(name, known))
    return name


def _unknown(name: str, known: dict[str, Metric]) -> str:
    return f"Unknown metric '{name}'. Known: {', '.join(known)}."


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


ClipValue = Callable[[NDArray[Any], Array], NDArray[Any]]
"""(labels, predictions) → (N,) a value of each clip."""


def mean_over_clips(value: ClipValue) -> Score:
    """Build the score that is the mean of a value of each clip."""
    return lambda labels, predictions: float(value(labels, predictions).mean())


def sums_over_clips(value: ClipValue) -> Sums:
    """Build the sums of a mean over clips."""

    def add(labels: NDArray[Any], predictions: Array, cell_of: Labels, cells: int) -> Array:
        sums = np.bincount(cell_of, value(labels, predictions), cells)
        return np.stack([sums, np.bincount(cell_of, minlength=cells)], axis=1)

    return Sums(add, lambda sums: sums[..., 0] / sums[..., 1])


ClassValue = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], Array]
"""(…, K) clips that are right, of the class, and predicted as it → (…, K) a value of each class."""


def mean_over_classes(value: ClassValue) -> Score:
    """Build the score that is the mean over the classes that occur in the labels."""

    def score(labels: NDArray[Any], predictions: Array) -> float:
        matrix = confusion_matrix(labels, predictions.argmax(axis=1), predictions.shape[1])
        hits, actual, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        present = actual > 0
        return float(value(hits[present], actual[present], predicted[present]).mean())

    return score


def sums_over_classes(value: ClassValue) -> Sums:
    """Build the sums of a mean over classes: their confusions."""

    def add(labels: NDArray[Any], predictions: Array, cell_of: Labels, cells: int) -> Array:
        classes = predictions.shape[1]
        kind = labels * classes + predictions.argmax(axis=1)
        flat = np.bincount(cell_of * classes**2 + kind, minlength=cells * classes**2)
        return flat.reshape(cells, classes**2).astype(np.float64)

    def score(sums: Array) -> Array:
        classes = round(sums.shape[-1] ** 0.5)
        matrix = sums.reshape(*sums.shape[:-1], classes, classes)
        actual, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
        present = actual > 0
        each = value(np.diagonal(matrix, axis1=-2, axis2=-1), actual, predicted)
        return np.asarray(np.where(present, each, 0.0).sum(axis=-1) / present.sum(axis=-1))

    return Sums(add, score)


def _mean_ccc(gold: NDArray[Any], predicted: Array) -> float:
    """Mean over dimensions."""
    return float(np.mean([ccc(*pair) for pair in zip(gold.T, predicted.T, strict=True)]))


def _add_moments(gold: NDArray[Any], predicted: Array, cell_of: Labels, cells: int) -> Array:
    """(cells, 1 + 5·D) counts, and sums of both, their squares and their product."""
    columns = [np.ones(len(gold))]
    for mine, its in zip(np.asarray(gold, np.float64).T, predicted.T, strict=True):
        columns += [mine, its, mine**2, its**2, mine * its]
    return np.stack([np.bincount(cell_of, column, cells) for column in columns], axis=1)


def _ccc_of_moments(sums: Array) -> Array:
    """(…, 1 + 5·D) → (…) mean over dimensions; NaN of nothing."""
    means = sums[..., 1:] / sums[..., :1]
    scores = []
    for first in range(0, means.shape[-1], 5):
        gold, its, gold2, its2, both = np.moveaxis(means[..., first : first + 5], -1, 0)
        total = gold2 - gold**2 + its2 - its**2 + (gold - its) ** 2
        scores.append(np.where(total > _LEAST_VARIANCE, 2 * (both - gold * its) / total, 0.0))
    return np.where(sums[..., 0] > 0, np.mean(scores, axis=0), np.nan)


def _right(labels: NDArray[Any], log_posteriors: Array) -> NDArray[np.bool_]:
    return np.asarray(log_posteriors.argmax(axis=1) == labels)


def _loss(labels: NDArray[Any], log_posteriors: Array) -> Array:
    return np.asarray(-log_posteriors[np.arange(len(labels)), labels])


def _recall(hits: NDArray[Any], actual: NDArray[Any], predicted: NDArray[Any]) -> Array:
    return np.asarray(hits / actual)


def _f1(hits: NDArray[Any], actual: NDArray[Any], predicted: NDArray[Any]) -> Array:
    return np.asarray(2 * hits / (actual + predicted))


register_metric(
    Metric(
        name="accuracy",
        title="accuracy",
        description="Share of clips that are right.",
        score=mean_over_clips(_right),
        sums=sums_over_clips(_right),
    )
)
register_metric(
    Metric(
        name="uar",
        title="UAR",
        description="Unweighted average recall: mean over the classes that occur.",
        score=mean_over_classes(_recall),
        sums=sums_over_classes(_recall),
    )
)
register_metric(
    Metric(
        name="macro_f1",
        title="macro-F1",
        description="Mean F1 over the classes that occur.",
        score=mean_over_classes(_f1),
        sums=sums_over_classes(_f1),
    )
)
register_metric(
    Metric(
        name="log_loss",
        title="log-loss",
        description="Mean negative log-posterior of the true class.",
        score=mean_over_clips(_loss),
        greater_is_better=False,
        bounds=(0.0, np.inf),
        unit="nats",
        digits=3,
        sums=sums_over_clips(_loss),
    )
)
register_metric(
    Metric(
        name=CCC,
        title="CCC",
        description="Concordance correlation, mean over dimensions.",
        score=_mean_ccc,
        task="continuous",
        bounds=(-1.0, 1.0),
        unit="",
        digits=3,
        sums=Sums(_add_moments, _ccc_of_moments),
    )
)
