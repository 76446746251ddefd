"""Is one run better than another? `python -m search.compare RUN_A RUN_B …`.

Compares held-out predictions of the same clips, paired by speaker: each run with the first one. Reads
what the runs left (`summary.json`, `predictions.csv`); nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    here, there = (zip(table.speakers, table.labels, strict=True) for table in (mine, its))
    for clip, *about in zip(mine.clips, here, there, strict=True):
        if about[0] != about[1]:
            raise EnsembleError(
                f"'{one.run}' and '{other.run}' differ in speaker or label of clip '{clip}'."
            )


@dataclass(frozen=True)
class Compared:
    """A run less the first one.

    Attributes:
        run: The run.
        all: By the metric.
        recalls: Class → of its recall.
    """

    run: RunPredictions
    all: Difference
    recalls: dict[str, Difference]


def compare(one: RunPredictions, other: RunPredictions, metric: str) -> Compared:
    """The other less the first.

    With the same folds in both, scores are means over folds; otherwise over all clips together.
    """
    table = one.table
    if not same_folds([one, other]):
        table = replace(table, folds=np.zeros_like(table.folds))
    values = (other.log_posteriors, one.log_posteriors)
    recalls = recall_differences(table, *values)
    return Compared(other, difference(metric, table, *values), recalls)


def same_folds(runs: Sequence[RunPredictions]) -> bool:
    """Whether all hold out the same clips together."""
    return all(np.array_equal(runs[0].table.folds, run.table.folds) for run in runs[1:])


def _show(metric: Metric, found: Difference) -> str:
    value, low, high = map(metric.format_difference, (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def _print(
    first: RunPredictions, others: list[Compared], metric: Metric, row: str, console: Console
) -> None:
    table, runs = first.table, [first, *(one.run for one in others)]
    for run in runs:
        if run.leak:
            console.print(f"{run.run}: {run.leak}.", style="bold", highlight=False, markup=False)
    console.print(
        f"{row}, {metric.name}, {len(table.clips)} clips of {len(set(table.speakers))} speakers; "
        f"differences to {first.run} in {metric.difference_unit} with 95 % intervals over speakers",
        highlight=False,
    )
    together = not same_folds(runs)
    if together:
        console.print(
            "The runs were split into different folds: scores are over all clips together.",
            highlight=False,
        )
    console.print(_scores(first, others, metric, together))
    console.print(_recalls(others))
    console.print(
        "comparable: within one standard error; or chance: the interval holds zero. Of twenty "
        "comparisons of equals, one leaves its interval by luck.",
        style="dim",
        highlight=False,
    )


def _scores(first: RunPredictions, others: list[Compared], metric: Metric, together: bool) -> Table:
    def score(run: RunPredictions) -> str:
        folds = np.zeros_like(run.table.folds) if together else run.table.folds
        return metric.format(metric.fold_mean(run.table.labels, run.log_posteriors, folds))

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "score", "difference", "verdict"):
        shown.add_column(heading, justify="left" if heading in {"run", "verdict"} else "right")
    shown.add_row(first.run, score(first), "", "")
    for one in others:
        shown.add_row(one.run.run, score(one.run), _show(metric, one.all), one.all.verdict)
    return shown


def _recalls(others: list[Compared]) -> Table:
    shown, accuracy = Table(box=box.SIMPLE_HEAD, pad_edge=False), get_metric("accuracy")
    shown.add_column("recall of")
    for one in others:
        shown.add_column(one.run.run, justify="right")
    for name in others[0].recalls:
        shown.add_row(name, *(_show(accuracy, one.recalls[name]) for one in others))
    return shown


def _to_json(first: RunPredictions, others: list[Compared], metric: str, row: str) -> str:
    document = {
        one.run.run: {
            "all": one.all.to_json(),
            "classes": {name: found.to_json() for name, found in one.recalls.items()},
        }
        for one in others
    }
    runs = [first, *(one.run for one in others)]
    found = {
        "leaks": {run.run: run.leak for run in runs if run.leak},
        "first": first.run,
        "row": row,
        "metric": metric,
        "others": document,
    }
    return json.dumps(found, indent=1)


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
        first, *rest = [predictions_of_run(path, given.row) for path in given.runs]
        metric = check_metric(given.metric or first.metric)
        for other in rest:
            check_comparable(first, other)
    except EnsembleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    others = [compare(first, other, metric) for other in rest]
    if given.json:
        print(_to_json(first, others, metric, given.row))
    else:
        _print(first, others, get_metric(metric), given.row, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
