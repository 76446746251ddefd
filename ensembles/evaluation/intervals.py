"""Confidence intervals of a score over speakers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ensembles.bank.posterior_bank import Table
from ensembles.evaluation.bias_correction import MIN_GROUPS, Candidates
from ensembles.metrics import Array, Metric, get_metric

_MIN_SPEAKERS_A_FOLD = 3
"""With fewer, drawing within folds shows little of the speakers' scatter; of one speaker, none."""


_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, and how it was made."""

    low: float
    high: float
    method: str


def speaker_interval(table: Table, metric: str, log_posteriors: Array) -> Interval:
    """95 % interval of the fold mean over speakers: what other speakers would have given.

    With ten speakers or more, three or more a fold: a percentile bootstrap that draws
    speakers within their fold. Otherwise: a t-interval over the speakers' own scores.
    Training and selection are not repeated, so their own scatter comes on top.
    """
    scale, speakers = get_metric(metric), np.asarray(table.speakers)
    names = np.unique(speakers)
    rows_of = {name: np.flatnonzero(speakers == name) for name in names}
    groups = [np.unique(speakers[table.folds == k]) for k in np.unique(table.folds)]
    if len(names) < MIN_GROUPS or min(map(len, groups)) < _MIN_SPEAKERS_A_FOLD:
        if scale.task == "continuous" and len(names) > 1:
            return _jackknife(table, scale, log_posteriors)
        values = [scale.score(table.labels[r], log_posteriors[r]) for r in rows_of.values()]
        middle = scale.fold_mean(table.labels, log_posteriors, table.folds)
        if len(values) < 2:
            return Interval(middle, middle, "one speaker: none")
        half = float(
            stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        )
        low, high = scale.clipped(middle - half, middle + half)
        return Interval(low, high, f"t over {len(values)} speakers")
    candidates = Candidates(metric, table)
    candidates.add([log_posteriors])
    resampled = candidates.within_folds(_RESAMPLES)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(low), float(high), f"bootstrap over {len(names)} speakers")


def _jackknife(table: Table, metric: Metric, traces: Array) -> Interval:
    """Interval of a score that is no mean over speakers, from the scores without each of them."""
    candidates = Candidates(metric.name, table)
    candidates.add([traces])
    without, count = candidates.left_out(), len(candidates.names)
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, count - 1) * error)
    middle = metric.fold_mean(table.labels, traces, table.folds)
    low, high = metric.clipped(middle - half, middle + half)
    return Interval(low, high, f"jackknife over {count} speakers")
