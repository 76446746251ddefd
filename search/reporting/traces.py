"""Results of a run over continuous targets: scores by dimension, post-processing, predictions over time."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from datasets.storage.atomic import write_atomically
from ensembles.bank.trace_table import TraceTable
from ensembles.evaluation.assessment import Assessment
from ensembles.evaluation.trace_assessment import Processed, dimension_scores, recording_scores
from ensembles.fusion.postprocessing import STEPS
from ensembles.metrics import Array

LEGEND = """\
CCC      concordance: of each fold's recordings joined into one, the mean over folds
pooled   of all recordings joined into one
each     mean over recordings of each one's own
RMSE     of all steps together"""


def trace_legend(legend: str) -> str:
    """The leaderboard's legend, with what is called otherwise of traces."""
    return legend.replace("logistic: regression on posteriors", "ridge: regression on traces")


def trace_facts(assessment: Assessment, processed: Processed) -> dict[str, Any]:
    """For `summary.json`: the headline by dimension and recording, and its post-processing."""
    table = assessment.table
    assert isinstance(table, TraceTable)
    rows = {"fused": assessment.fused.log_posteriors, "before": processed.before.log_posteriors}
    rows |= {modality: row.log_posteriors for modality, row in assessment.singles.items()}
    return {
        "step_seconds": table.step_seconds,
        "dimensions": {name: dimension_scores(table, traces) for name, traces in rows.items()},
        "recordings": recording_scores(table, assessment.fused.log_posteriors),
        "postprocessing": processed.to_json(),
    }


def write_traces(path: Path, table: TraceTable, traces: Array) -> None:
    """Held-out traces beside what raters said: one row a step."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        [
            "recording",
            "speaker",
            "fold",
            "clip" if table.names else "seconds",
            *(f"gold:{n}" for n in table.classes),
            *table.classes,
        ]
    )
    ends = (table.steps + 1) * table.step_seconds
    where = table.names or tuple(f"{seconds:g}" for seconds in ends)
    for row, recording in enumerate(table.recording_of.tolist()):
        numbers = [*table.labels[row], *traces[row]]
        writer.writerow(
            [
                table.recordings[recording],
                table.recording_speakers[recording],
                table.recording_folds[recording],
                where[row],
                *(f"{value:.5f}" for value in numbers),
            ]
        )
    write_atomically(path, text.getvalue().encode())


def print_traces(console: Console, facts: dict[str, Any]) -> None:
    """The headline and the best experts by dimension, and which steps of post-processing were kept."""
    found = facts["traces"]
    names = list(next(iter(found["dimensions"].values())))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("CCC", "pooled", "each", "RMSE"):
        table.add_column(heading, justify="right", no_wrap=True)
    keys = ("ccc_fold_mean", "ccc", "ccc_recording_mean", "rmse")
    told = {"fused": "fused", "before": "fused, not processed"}
    for name in names:
        for row, scores in found["dimensions"].items():
            cells = [f"{scores[name][key]:.3f}" for key in keys]
            style = "bold" if row == "fused" else None
            table.add_row(f"{name}: {told.get(row, f'best {row}')}", *cells, style=style)
    console.print(table)
    console.print(LEGEND, style="dim", highlight=False)
    console.print(told_steps(found["postprocessing"], names), highlight=False)


def told_steps(postprocessing: dict[str, Any], names: list[str]) -> str:
    """Describe which steps were kept for how many folds, and what the final chain is, a line a dimension."""
    lines = []
    folds = postprocessing["by_fold"]
    for d, name in enumerate(names):
        counts = [
            f"{step} in {sum(step in fold['gains'][d] for fold in folds)}"
            for step in STEPS
            if any(step in fold["gains"][d] for fold in folds)
        ]
        gains = postprocessing["whole"]["gains"][d]
        whole = ", ".join(f"{step} {gain:+.3f}" for step, gain in gains.items()) or "nothing"
        lines.append(
            f"post-processing of {name}, fitted without each fold's speakers: "
            f"kept: {', '.join(counts) + f' of {len(folds)} folds' if counts else 'nothing, no step helped'}; "
            f"for export: {whole}"
        )
    return "\n".join(lines)
