"""Honest scores of traces: as of classes, and the post-processing chain, fitted without each fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensembles.bank.posterior_bank import Experts
from ensembles.bank.trace_table import TraceTable
from ensembles.evaluation.assessment import Assessment, Scored, assess, scored
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.fusion.candidates import recipes_for
from ensembles.fusion.postprocessing import PostProcessing, Spans, fit_postprocessing
from ensembles.metrics import CCC, Array, ccc, get_metric, rmse


@dataclass(frozen=True)
class Processed:
    """Fused traces before and after post-processing.

    Attributes:
        before: The headline without it.
        by_fold: For each fold, the chain that was fitted on the others.
        whole: Fitted on all of them, for export.
    """

    before: Scored
    by_fold: tuple[PostProcessing, ...]
    whole: PostProcessing

    def to_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {
            "before": self.before.to_json(),
            "by_fold": [chain.to_json() for chain in self.by_fold],
            "whole": self.whole.to_json(),
        }


def assess_traces(
    experts: Experts,
    *,
    rungs: Iterable[tuple[str, Array]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Assessment, Processed]:
    """Assess traces as `assess` does, with the headline post-processed.

    For each fold the chain is fitted on what the fold's own choice of recipe makes of the others,
    where it was fitted without them (with two folds, on them: then there is no third).
    """
    assessment = assess(experts, CCC, rungs=rungs, on_progress=on_progress)
    before = assessment.fused
    chains = _fit_chains(experts, before)
    after = apply_by_fold(experts, before, chains)
    whole = fit_postprocessing(before.log_posteriors, *_of(experts, slice(None)))
    after = replace(after, search_score=_search_score(experts, assessment.chosen))
    return replace(assessment, fused=after), Processed(before, chains, whole)


def _search_score(experts: Experts, recipe: str) -> float:
    """Search score of the best recipe, post-processed on the very folds that are scored."""
    table = _table(experts)
    known = {known.name: known for known in recipes_for(experts, CCC)}
    traces = CrossFitter(experts, CCC).searched(known[recipe])
    chain = fit_postprocessing(traces, *_of(experts, slice(None)))
    processed = chain.apply(traces, table.spans)
    return get_metric(CCC).fold_mean(table.labels, processed, table.folds)


def apply_by_fold(experts: Experts, row: Scored, chains: Iterable[PostProcessing]) -> Scored:
    """A row's traces, each fold's through the chain that was fitted without it, scored."""
    table = _table(experts)
    out = row.log_posteriors.copy()
    for fold, chain in zip(np.unique(table.folds), chains, strict=True):
        rows = np.flatnonzero(table.folds == fold)
        out[rows] = chain.apply(row.log_posteriors[rows], table.take(rows).spans)
    return scored(row.name, table, CCC, out, row.search_score, row.experts, row.per_fold)


def _fit_chains(experts: Experts, row: Scored) -> tuple[PostProcessing, ...]:
    fitter = CrossFitter(experts, CCC)
    recipes = {recipe.name: recipe for recipe in recipes_for(experts, CCC)}
    table, chains = _table(experts), []
    for fold, (name, _) in zip(fitter.folds, row.per_fold, strict=True):
        recipe, out = recipes[name], np.full(table.labels.shape, np.nan)
        for other in fitter.folds:
            if other != fold and len(fitter.folds) > 2:
                out[table.folds == other] = fitter.predict(recipe, frozenset({fold, other}), other)
        if len(fitter.folds) < 3:
            members, rule = fitter.fit(recipe, frozenset({fold}))
            out = rule.apply(experts.log_posteriors[members])
        rows = np.flatnonzero(table.folds != fold)
        chains.append(fit_postprocessing(out[rows], *_of(experts, rows)))
    return tuple(chains)


def _of(experts: Experts, rows: Any) -> tuple[Array, Spans, float]:
    """Gold, spans and step of some rows, which a chain is fitted by."""
    table = _table(experts)
    taken = table if isinstance(rows, slice) else table.take(rows)
    return taken.labels, taken.spans, table.step_seconds


def _table(experts: Experts) -> TraceTable:
    assert isinstance(experts.table, TraceTable), "these are no traces"
    return experts.table


def dimension_scores(table: TraceTable, traces: Array) -> dict[str, dict[str, float]]:
    """Dimension → concordance and RMSE.

    `ccc` is of all recordings joined into one, `ccc_fold_mean` the mean over folds of that,
    `ccc_recording_mean` the mean over recordings of each one's own.
    """
    found = {}
    for d, name in enumerate(table.classes):
        gold, predicted = table.labels[:, d], traces[:, d]
        by_fold = [
            ccc(gold[table.folds == k], predicted[table.folds == k]) for k in np.unique(table.folds)
        ]
        alone = [ccc(gold[start:end], predicted[start:end]) for start, end in table.spans]
        found[name] = {
            "ccc": ccc(gold, predicted),
            "ccc_fold_mean": float(np.mean(by_fold)),
            "ccc_recording_mean": float(np.mean(alone)),
            "rmse": rmse(gold, predicted),
        }
    return found


def recording_scores(table: TraceTable, traces: Array) -> dict[str, dict[str, float]]:
    """Recording → dimension → its own concordance."""
    return {
        table.recordings[table.recording_of[start]]: {
            name: ccc(table.labels[start:end, d], traces[start:end, d])
            for d, name in enumerate(table.classes)
        }
        for start, end in table.spans
    }
