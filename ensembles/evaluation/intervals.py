"""Confidence intervals of a score over speakers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ensembles.bank.posterior_bank import Table
from ensembles.evaluation.bias_correction import MIN_GROUPS, Candidates
from ensembles.metrics import CCC, Array, fold_mean, score

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
    speakers = np.asarray(table.speakers)
    names = np.unique(speakers)
    rows_of = {name: np.flatnonzero(speakers == name) for name in names}
    groups = [np.unique(speakers[table.folds == k]) for k in np.unique(table.folds)]
    if len(names) < MIN_GROUPS or min(map(len, groups)) < _MIN_SPEAKERS_A_FOLD:
        if metric == CCC and len(names) > 1:
            return _jackknife(table, log_posteriors)
        values = [score(metric, table.labels[r], log_posteriors[r]) for r in rows_of.values()]
        middle = fold_mean(metric, table.labels, log_posteriors, table.folds)
        if len(values) < 2:
            return Interval(middle, middle, "one speaker: none")
        half = float(
            stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        )
        largest = np.inf if metric == "log_loss" else 1.0
        low, high = max(middle - half, 0.0), min(middle + half, largest)
        return Interval(low, float(high), f"t over {len(values)} speakers")
    candidates = Candidates(metric, table)
    candidates.add([log_posteriors])
    resampled = candidates.within_folds(_RESAMPLES)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(low), float(high), f"bootstrap over {len(names)} speakers")


def _jackknife(table: Table, traces: Array) -> Interval:
    """Of concordance, which is no mean over speakers: from the scores without each of them."""
    candidates = Candidates(CCC, table)
    candidates.add([traces])
    without, count = candidates.left_out(), len(candidates.names)
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, count - 1) * error)
    middle = fold_mean(CCC, table.labels, traces, table.folds)
    return Interval(
        max(middle - half, -1.0), min(middle + half, 1.0), f"jackknife over {count} speakers"
    )
