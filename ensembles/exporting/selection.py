"""Select the ensemble to export: the run's own choice, or the best within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from threadpoolctl import threadpool_limits

from ensembles import EnsembleError
from ensembles.artifact.fitted_ensemble import Fused
from ensembles.artifact.fold_networks import load_folded, read_plan, shape_of
from ensembles.artifact.formats import PROGRAM
from ensembles.artifact.manifest import FORMATS
from ensembles.evaluation.assessment import Scored
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.exporting.budget import PAPERS_MB, Budget, Candidates, Choice, Cost
from ensembles.exporting.finished_run import FinishedRun, inputs_by_expert
from ensembles.exporting.fit_fusion import Chooser
from ensembles.exporting.latency import hardware, measure
from ensembles.fusion.candidates import recipes_for
from ensembles.metrics import CCC


@dataclass(frozen=True)
class ToExport:
    """Choice of the ensemble to export.

    Attributes:
        fused: The ensemble.
        by_fold: The same choice made without each fold; none where they take too much room.
        substitutes: Inputs at hand → what takes over.
        summary: The run's, its headline that of this choice.
        choice: How it was made under a budget; None if the run made it.
        hardware: Where costs were measured.
    """

    fused: Fused
    by_fold: tuple[Fused, ...]
    substitutes: Mapping[frozenset[str], Fused]
    summary: Mapping[str, Any]
    choice: Choice | None = None
    hardware: str = ""

    @property
    def experts(self) -> list[str]:
        """Every expert that some of it needs."""
        ensembles = [self.fused, *self.by_fold, *self.substitutes.values()]
        return sorted({name for ensemble in ensembles for name in ensemble.experts})


def as_the_run_chose(run: FinishedRun) -> ToExport:
    """The run's chosen ensemble."""
    chooser = Chooser(CrossFitter(run.experts, run.summary["metric"]))
    fused = chooser.fit(run.summary["chosen_recipe"])
    by_fold = [
        chooser.fit(choice["recipe"], [fold])
        for choice, fold in zip(
            run.summary["headline"]["fused"]["per_fold"], chooser.fitter.folds, strict=True
        )
    ]
    if run.summary["metric"] == CCC:  # a fold's own experts would be there for nothing else
        by_fold = []
    substitutes = chooser.substitutes(fused, inputs_by_expert(run))
    return ToExport(fused, tuple(by_fold), substitutes, run.summary)


def under_a_budget(
    run: FinishedRun,
    budget: Budget,
    formats: tuple[str, ...] = FORMATS,
    console: Console | None = None,
) -> ToExport:
    """The best ensemble that a budget allows, of the run's recipes and reductions of them.

    Raises:
        EnsembleError: If nothing fits, or the size of a format is not known beforehand.
    """
    if budget.max_mb is not None and PROGRAM in formats:
        raise EnsembleError(
            f"--max-mb does not count {PROGRAM}, whose size shows only when it is written. "
            f"Leave {PROGRAM} out of --format."
        )
    console = console or Console(quiet=True)
    costs = _measure(run, formats, console)
    fitter = CrossFitter(run.experts, run.summary["metric"])
    recipes = {recipe.name: recipe for recipe in recipes_for(run.experts, fitter.metric)}
    candidates = Candidates(fitter, recipes, costs)
    choice = _choose(run, candidates, budget, console)
    chooser = Chooser(fitter, [assessed.candidate for assessed in choice.candidates])
    fused = chooser.fit(choice.chosen.candidate.name)
    names = choice.row.per_fold
    by_fold = [chooser.fit(name, [k]) for (name, _), k in zip(names, fitter.folds, strict=True)]
    together = candidates.cost([*fused.experts, *(n for one in by_fold for n in one.experts)])
    if together[1] > budget.limits[1]:
        console.print(
            f"Left out: the experts of single folds alone (predict --fold); with them the folder "
            f"takes {together[1] + PAPERS_MB:.3g} MB.",
            highlight=False,
        )
        by_fold = []
    within = {name for name, cost in costs.items() if cost.latency_ms <= budget.limits[0]}
    if budget.max_mb is not None:  # who takes over takes no room of its own
        within &= {name for one in (fused, *by_fold) for name in one.experts}
    inputs = {name: reads for name, reads in inputs_by_expert(run).items() if name in within}
    substitutes = chooser.substitutes(fused, inputs)
    summary = with_headline(run.summary, choice.row)
    return ToExport(fused, tuple(by_fold), substitutes, summary, choice, hardware())


def _choose(run: FinishedRun, candidates: Candidates, budget: Budget, console: Console) -> Choice:
    """Among the run's recipes and reductions of those that it chose."""
    per_fold = run.summary["headline"]["fused"]["per_fold"]
    with console.status("assessing what fits") as status, threadpool_limits(1):
        return candidates.choose(
            run.summary.get("fusions", []),
            run.summary["chosen_recipe"],
            [choice["recipe"] for choice in per_fold],
            budget,
            lambda done, count: status.update(f"assessing reductions: {done} of {count}"),
        )


def with_headline(summary: Mapping[str, Any], row: Scored) -> dict[str, Any]:
    """A run's summary for another ensemble than its own, which test speakers did not score."""
    scored_on = (summary.get("test_speakers") or {}).get("speakers", [])
    return {
        **summary,
        "headline": {**summary["headline"], "fused": row.to_json()},
        "held_out": summary.get("held_out") or scored_on,
        "test_speakers": None,
    }


def _measure(run: FinishedRun, formats: tuple[str, ...], console: Console) -> dict[str, Cost]:
    """Measure the cost of each expert whose weights were kept; one that has no graph is named."""
    kept = [name for name in run.experts.names if run.weights(name).is_dir()]
    costs: dict[str, Cost] = {}
    with console.status("") as status:
        for number, name in enumerate(kept, start=1):
            status.update(f"measuring experts: {number} of {len(kept)}")
            expert = load_folded(run.weights(name))
            plan = read_plan(run.weights(name) / "plan.json")
            shape = replace(shape_of(plan), saliency_maps=expert.reads_saliency)
            try:
                costs[name] = measure(expert, shape, run.weights(name), formats)
            except (EnsembleError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                console.print(f"Left out: '{name}' cannot be exported: {reason}", highlight=False)
    return costs
