"""Is one run better than another? `python -m search.compare RUN_A RUN_B …`.

Compares held-out predictions of the same clips, paired by speaker: each run with the first one. Reads
what the runs left (`summary.json`, `predictions.csv`); nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ensembles import EnsembleError
from ensembles.evaluation.paired_comparison import Difference, difference, recall_differences
from ensembles.metrics import Metric, check_metric, get_metric, metrics_of_classes
from search.reporting.predictions import PREDICTION_FILES, RunPredictions, predictions_of_run


def check_comparable(one: RunPredictions, other: RunPredictions) -> None:
    """Raises EnsembleError unless both are of the same clips, speakers, labels and classes."""
    mine, its = one.table, other.table
    if mine.classes != its.classes:
        raise EnsembleError(
            f"'{one.run}' has the classes {', '.join(mine.classes)}, '{other.run}' "
            f"{', '.join(its.classes)}: not the same task."
        )
    apart = sorted(set(mine.clips) ^ set(its.clips))
    if apart:
        raise EnsembleError(
            f"{len(apart)} clips are not in both '{one.run}' and '{other.run}', such as "
            f"'{apart[0]}': scores of different clips cannot be compared."
        )
    for clip, *told in zip(
        mine.clips, mine.speakers, its.speakers, mine.labels, its.labels, strict=True
    ):
        if told[0] != told[1] or told[2] != told[3]:
            raise EnsembleError(
                f"'{one.run}' and '{other.run}' differ in speaker or label of clip '{clip}'."
            )


def compare(
    one: RunPredictions, other: RunPredictions, metric: str
) -> tuple[Difference, dict[str, Difference]]:
    """The other less the first: by the metric, and each class's recall.

    With the same folds in both, scores are means over folds; otherwise over all clips together.
    """
    table = one.table
    if not same_folds([one, other]):
        table = replace(table, folds=np.zeros_like(table.folds))
    values = (other.log_posteriors, one.log_posteriors)
    return difference(metric, table, *values), recall_differences(table, *values)


def same_folds(runs: Sequence[RunPredictions]) -> bool:
    """Whether all hold out the same clips together."""
    return all(np.array_equal(runs[0].table.folds, run.table.folds) for run in runs[1:])


def _show(metric: Metric, found: Difference) -> str:
    value, low, high = map(metric.format_difference, (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def _print(runs: list[RunPredictions], metric: Metric, row: str, console: Console) -> None:
    first, *others = runs
    table = first.table
    together = not same_folds(runs)
    for run in runs:
        if run.leak:
            console.print(f"{run.run}: {run.leak}.", style="bold", highlight=False, markup=False)
    console.print(
        f"{row}, {metric.name}, {len(table.clips)} clips of {len(set(table.speakers))} speakers; "
        f"differences to {first.run} in {metric.difference_unit} with 95 % intervals over speakers",
        highlight=False,
    )
    if together:
        console.print(
            "The runs were split into different folds: scores are over all clips together.",
            highlight=False,
        )
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "score", "difference", "verdict"):
        shown.add_column(heading, justify="left" if heading in {"run", "verdict"} else "right")
    for run in runs:
        folds = np.zeros_like(run.table.folds) if together else run.table.folds
        scored = metric.format(metric.fold_mean(run.table.labels, run.log_posteriors, folds))
        if run is first:
            shown.add_row(run.run, scored, "", "")
        else:
            found, _ = compare(first, run, metric.name)
            shown.add_row(run.run, scored, _show(metric, found), found.verdict)
    console.print(shown)
    classes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    classes.add_column("recall of")
    for run in others:
        classes.add_column(run.run, justify="right")
    each = [compare(first, run, metric.name)[1] for run in others]
    for name in each[0]:
        classes.add_row(name, *(_show(get_metric("accuracy"), found[name]) for found in each))
    console.print(classes)
    console.print(
        "comparable: within one standard error; or chance: the interval holds zero. Of twenty "
        "comparisons of equals, one leaves its interval by luck.",
        style="dim",
        highlight=False,
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: compared; 2: in one line, why not."""
    parser = argparse.ArgumentParser(
        prog="python -m search.compare", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs"
    )
    parser.add_argument(
        "--row",
        choices=tuple(PREDICTION_FILES),
        default="fused",
        help="the headline, or a best expert",
    )
    known = ", ".join(metrics_of_classes())
    parser.add_argument("--metric", help=f"one of {known} (default: the first run's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args(arguments)
    try:
        if len(given.runs) < 2:
            raise EnsembleError("Name two runs or more; the others are compared with the first.")
        runs = [predictions_of_run(path, given.row) for path in given.runs]
        metric = check_metric(given.metric or runs[0].metric)
        for other in runs[1:]:
            check_comparable(runs[0], other)
    except EnsembleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        document = {}
        for other in runs[1:]:
            found, classes = compare(runs[0], other, metric)
            document[other.run] = {
                "all": found.to_json(),
                "classes": {name: one.to_json() for name, one in classes.items()},
            }
        leaks = {run.run: run.leak for run in runs if run.leak}
        told = {
            "leaks": leaks,
            "first": runs[0].run,
            "row": given.row,
            "metric": metric,
            "others": document,
        }
        print(json.dumps(told, indent=1))
        return 0
    _print(runs, get_metric(metric), given.row, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
