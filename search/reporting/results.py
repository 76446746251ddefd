"""Write a run's results: `summary.json`, `leaderboard.csv` and predictions."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

from datasets.storage.atomic import write_atomically
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Table, of_clips
from ensembles.bank.prediction_tables import write_predictions
from ensembles.bank.run_format import RUN_FORMAT
from ensembles.bank.trace_table import TraceTable
from ensembles.evaluation.assessment import Assessment, Scored
from ensembles.evaluation.breakdown import detail
from ensembles.evaluation.leaderboard import assessment_rows
from ensembles.evaluation.paired_comparison import fusion_gains
from search.reporting.traces import write_traces


def write_reports(
    run: Path,
    assessment: Assessment,
    confirmed: dict[int, dict[str, Scored]],
    facts: dict[str, Any],
) -> None:
    """Writes every machine-readable result; docs/run-folder.md is their schema."""
    write_atomically(
        run / "summary.json", json.dumps(_summary(assessment, confirmed, facts), indent=1).encode()
    )
    _write_leaderboard(run / "leaderboard.csv", assessment)
    search_seed = int(facts["seed"])
    if isinstance(assessment.table, TraceTable):
        write_traces(run / "predictions.csv", assessment.table, assessment.fused.log_posteriors)
        return
    fused = [(search_seed, assessment.fused.log_posteriors)]
    fused += [(seed, rows["fused"].log_posteriors) for seed, rows in confirmed.items()]
    table = of_clips(assessment.table)
    write_predictions(run / "predictions.csv", table, fused)
    for modality, row in assessment.singles.items():
        path = run / f"predictions_{modality}.csv"
        write_predictions(path, table, [(search_seed, row.log_posteriors)])


def _summary(
    assessment: Assessment, confirmed: dict[int, dict[str, Scored]], facts: dict[str, Any]
) -> dict[str, Any]:
    table = assessment.table
    named = assessment.singles
    return {
        "format_version": RUN_FORMAT,
        **facts,
        "metric": assessment.metric,
        "classes": list(table.classes),
        "clips": len(table.spans) if is_over_time(table) else len(table.labels),
        "speakers": len(set(table.speakers)),
        "headline": {
            **{modality: row.to_json() for modality, row in named.items()},
            **{f"{modality}_alone": row.to_json() for modality, row in assessment.alone.items()},
            "fused": assessment.fused.to_json(),
        },
        "chosen_recipe": assessment.chosen,
        "fusions": [row.to_json() for row in assessment.recipes],
        "confirmed": {
            str(seed): {name: row.to_json() for name, row in rows.items()}
            for seed, rows in confirmed.items()
        },
        **_detail(assessment, named, facts),
    }


def is_over_time(table: Table) -> TypeGuard[TraceTable]:
    """Whether the rows are steps of recordings, with time between them."""
    return isinstance(table, TraceTable) and table.step_seconds > 0


def _detail(
    assessment: Assessment, named: dict[str, Scored], facts: dict[str, Any]
) -> dict[str, Any]:
    """Gains and details, of classes alone; traces have `traces` instead."""
    table = assessment.table
    if not isinstance(table, ClipTable):
        return {}
    return {
        "gains": {name: gain.to_json() for name, gain in fusion_gains(assessment).items()},
        "detail": {
            name: asdict(detail(table, row.log_posteriors, facts.get("people")))
            for name, row in {**named, "fused": assessment.fused}.items()
        },
    }


def _write_leaderboard(path: Path, assessment: Assessment) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        [
            "name",
            "honest_score",
            "interval_low",
            "interval_high",
            "honest_score_pooled",
            "corrected_score",
            "search_score",
            "experts",
        ]
    )
    for row in assessment_rows(assessment):
        writer.writerow(
            [
                row.name,
                row.honest_score,
                row.interval.low,
                row.interval.high,
                row.honest_pooled,
                row.corrected.score if row.corrected else "",
                "" if row.search_score is None else row.search_score,
                " ".join(row.experts),
            ]
        )
    write_atomically(path, text.getvalue().encode())
