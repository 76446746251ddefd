"""Two sets of held-out predictions of the same clips, compared speaker by speaker."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import of_clips
from ensembles.evaluation.assessment import Assessment
from ensembles.evaluation.bias_correction import MIN_GROUPS, Candidates
from ensembles.metrics import Array, get_metric

_DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """Advantage of one set of predictions over the other; greater is better.

    Attributes:
        value: Of the scores; of log-loss, how much less.
        error: Standard error over speakers.
        low: Of the 95 % interval.
        high: Of the 95 % interval.
    """

    value: float
    error: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`comparable` within a standard error; `better` or `worse` beyond the interval."""
        if abs(self.value) <= self.error:
            return "comparable"
        word = "better" if self.value > 0 else "worse"
        return word if self.low > 0 or self.high < 0 else f"{word}, or chance"

    def to_json(self) -> dict[str, Any]:
        """With the verdict."""
        return {**asdict(self), "verdict": self.verdict}


def difference(metric: str, table: ClipTable, one: Array, other: Array) -> Difference:
    """One less the other, (N, K) log-posteriors each: mean over folds, paired by speaker.

    Both are scored on the same draws of speakers, so that what makes a speaker hard for both
    cancels. Below ten speakers: a t-interval over the speakers' own differences.
    """
    sign = get_metric(metric).sign
    candidates = Candidates(metric, table)
    candidates.add([one, other])
    mine, its = sign * candidates.scores()
    value = float(mine - its)
    if len(candidates.names) < MIN_GROUPS:
        return _over_speakers(metric, table, one, other, value)
    drawn = sign * candidates.resampled(_DRAWS)
    apart = drawn[:, 0] - drawn[:, 1]
    low, high = np.quantile(apart, [0.025, 0.975])
    return Difference(value, float(apart.std(ddof=1)), float(low), float(high))


def _over_speakers(
    metric: str, table: ClipTable, one: Array, other: Array, value: float
) -> Difference:
    speakers, utility = np.asarray(table.speakers), get_metric(metric).utility
    apart = []
    for name in np.unique(speakers):
        rows = speakers == name
        mine, its = (utility(table.labels[rows], x[rows]) for x in (one, other))
        apart.append(mine - its)
    if len(apart) < 2:
        return Difference(value, 0.0, value, value)
    error = float(np.std(apart, ddof=1) / np.sqrt(len(apart)))
    half = float(stats.t.ppf(0.975, len(apart) - 1)) * error
    return Difference(value, error, value - half, value + half)


def recall_differences(table: ClipTable, one: Array, other: Array) -> dict[str, Difference]:
    """Class → difference of its recall, over all clips of that class together."""
    found = {}
    for number, name in enumerate(table.classes):
        rows = np.flatnonzero(table.labels == number)
        if len(rows):
            part = table.take(rows)
            part = replace(part, folds=np.zeros_like(part.folds))
            found[name] = difference("accuracy", part, one[rows], other[rows])
    return found


@dataclass(frozen=True)
class Gain:
    """Gain of fusion over the best expert of a modality.

    Attributes:
        over: The row that it is compared with, such as `best audio`.
        all: By the run's metric.
        classes: Recall of each class.
    """

    over: str
    all: Difference
    classes: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {
            "over": self.over,
            "all": self.all.to_json(),
            "classes": {name: found.to_json() for name, found in self.classes.items()},
        }


def fusion_gains(assessment: Assessment) -> dict[str, Gain]:
    """Modality → what the headline adds over its best expert, both chosen fold by fold."""
    found = {}
    fused, table = assessment.fused.log_posteriors, of_clips(assessment.table)
    for modality, row in assessment.singles.items():
        found[modality] = Gain(
            row.name,
            difference(assessment.metric, table, fused, row.log_posteriors),
            recall_differences(table, fused, row.log_posteriors),
        )
    return found
