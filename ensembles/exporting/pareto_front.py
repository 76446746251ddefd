"""The Pareto front of score against cost: a table, `front.csv`, `front.svg` and `front.png`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensembles.exporting.budget import PAPERS_MB, Assessed, Choice
from ensembles.metrics import get_metric

_AXES = ("latency of one clip, ms", "size of the folder, MB")


def front_table(choice: Choice) -> Table:
    """The candidates that no cheaper one equals; the chosen one is marked."""
    metric = get_metric(choice.metric)
    table = Table(
        "", "recipe", f"cross-fitted {metric.name}", "ms a clip", "MB", "experts", box=box.SIMPLE
    )
    for candidate in choice.front:
        table.add_row(
            _mark(choice, candidate),
            escape(candidate.candidate.name),
            metric.format_with_unit(candidate.score),
            f"{candidate.cost[0]:.3g}",
            f"{candidate.cost[1] + PAPERS_MB:.3g}",
            escape(", ".join(candidate.experts)),
        )
    return table


def _mark(choice: Choice, candidate: Assessed) -> str:
    if candidate is choice.chosen:
        return "→"
    return "" if (candidate.cost <= choice.budget.limits).all() else "too dear"


def print_choice(choice: Choice, hardware: str) -> None:
    """The front, and which scores belong to what."""
    console = Console()
    console.print(front_table(choice))
    for line in _explained(choice):
        console.print(line, highlight=False, markup=False)
    console.print(f"Latency: one clip, {hardware}.", highlight=False, markup=False)


def _explained(choice: Choice) -> list[str]:
    show, row = get_metric(choice.metric).format_with_unit, choice.row
    return [
        f"{choice.fitting} of {len(choice.candidates)} candidates fit {choice.budget}. "
        f"Chosen: {choice.chosen.candidate.name}, by its cross-fitted score "
        f"{show(choice.chosen.score)}: the best of those that fit, so a search score.",
        f"Honest score of this choice, made for each fold on the other folds: "
        f"{show(row.honest_score)} (95 % interval {show(row.interval.low)} to "
        f"{show(row.interval.high)}).",
    ]


def budget_section(choice: Choice, hardware: str) -> list[str]:
    """Return the model card's section about the budget, in Markdown."""
    chosen = choice.chosen
    return [
        "",
        "## Budget",
        "",
        *_explained(choice),
        "",
        f"One clip takes {chosen.cost[0]:.3g} ms, the sum of its experts ({hardware}); their files "
        f"take {chosen.cost[1]:.3g} MB. `front.csv` has every candidate.",
        "",
    ]


def budget_facts(choice: Choice, hardware: str) -> dict[str, Any]:
    """Return the manifest's entry about the front."""
    return {
        "max_latency_ms": choice.budget.max_latency_ms,
        "max_mb": choice.budget.max_mb,
        "latency_ms": float(choice.chosen.cost[0]),
        "experts_mb": float(choice.chosen.cost[1]),
        "search_score": choice.chosen.score,
        "candidates": len(choice.candidates),
        "fitting": choice.fitting,
        "measured_on": hardware,
    }


def write_front(choice: Choice, folder: Path, hardware: str) -> None:
    """Writes `front.csv` with every candidate, and both figures."""
    front = choice.front
    with (folder / "front.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["recipe", f"cross_fitted_{choice.metric}", "latency_ms", "folder_mb", "experts"]
        writer.writerow([*head, "fits", "on_front", "chosen", "measured_on"])
        for one in choice.candidates:
            fits = (one.cost <= choice.budget.limits).all()
            costs = [f"{one.cost[0]:.4f}", f"{one.cost[1] + PAPERS_MB:.4f}"]
            kept = np.isfinite(one.cost).all()
            on_front = any(one is other for other in front)
            marks = [int(fits), int(on_front), int(one is choice.chosen)]
            scores = [one.candidate.name, repr(one.score), *(costs if kept else ["", ""])]
            writer.writerow([*scores, " ".join(one.experts), *marks, hardware])
    _draw(choice, front, folder, hardware)


def _draw(choice: Choice, front: list[Assessed], folder: Path, hardware: str) -> None:
    from matplotlib.figure import Figure

    axis = choice.budget.axis
    extra = PAPERS_MB * axis
    metric = get_metric(choice.metric)
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    able = [c for c in choice.candidates if np.isfinite(c.cost).all()]
    axes.scatter(
        [c.cost[axis] + extra for c in able],
        [metric.scaled(c.score) for c in able],
        s=12,
        color="0.7",
        label=f"{len(able)} candidates",
    )
    axes.step(
        [c.cost[axis] + extra for c in front],
        [metric.scaled(c.score) for c in front],
        where="post",
        marker="o",
        markersize=4,
        color="tab:blue",
        label="front",
    )
    chosen, limit = choice.chosen, float(choice.budget.limits[axis]) + extra
    axes.plot(
        chosen.cost[axis] + extra,
        metric.scaled(chosen.score),
        "*",
        markersize=14,
        color="tab:red",
        label=f"chosen: {chosen.candidate.name}",
    )
    axes.axvline(limit, color="tab:red", linestyle=":", label=f"{choice.budget}")
    axes.set_xscale("log")
    axes.set_xlabel(f"{_AXES[axis]} ({hardware})", fontsize=8)
    unit = " in %" if metric.percent else ""
    axes.set_ylabel(f"cross-fitted {metric.name}{unit}, mean of the folds")
    axes.set_title("Each candidate's score; the best of them is a search score", fontsize=9)
    axes.legend(fontsize=8, loc="best")
    figure.savefig(folder / "front.svg", metadata={"Date": None})
    figure.savefig(folder / "front.png", dpi=120)
