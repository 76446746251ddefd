"""Write and print what a run has found."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from rich.console import Console

from ensembles.bank.prediction_tables import write_predictions
from search.papers import reproduce
from search.persistence import weights
from search.persistence.run_folder import RunFolder, provenance
from search.persistence.run_record import RunRecord
from search.report import draw_report
from search.reporting.html import PAGE
from search.reporting.results import write_reports
from search.reporting.terminal import print_report
from search.reporting.traces import trace_facts
from search.stages.findings import Findings
from search.stages.session import Session
from search.stages.setup import choose_runner


def save_results(session: Session) -> dict[str, Any]:
    """Write `summary.json`, the leaderboard and all predictions; return the summary's own part."""
    run, found = session.run, session.found
    record = _with_seconds(session)
    report = summary_of(run, record, found)
    write_reports(run.path, found.assessment, found.confirmed, report)
    run.write_record(record)
    unseen = run.path / "predictions_test.csv"
    unseen.unlink(missing_ok=True)  # of an earlier ensemble
    if found.unseen:
        by_seed = [(run.config.seed, found.unseen.log_posteriors)]
        write_predictions(unseen, found.unseen.table, by_seed)
    return report


def report_results(session: Session) -> None:
    """Write everything that was found, draw the page, and print."""
    run, found = session.run, session.found
    if not session.interrupt.asked:
        weights.prune(run, found.assessment)
    report = save_results(session)
    if run.config.page:
        draw_report(run.path, Console(stderr=True))
    else:
        (run.path / PAGE).unlink(missing_ok=True)  # an earlier one is of earlier results
    print_report(Console(), run.path, found.assessment, found.confirmed, report)
    if found.reproduced:
        reproduce.print_reproduced(Console(), found.reproduced, session.record.protocol)


def _with_seconds(session: Session) -> RunRecord:
    before = session.record
    return replace(
        before,
        searched_before=before.searched_before + session.found.searched,
        seconds_before=before.seconds_before + time.monotonic() - session.started,
    )


def summary_of(run: RunFolder, record: RunRecord, found: Findings) -> dict[str, Any]:
    """Return what `summary.json` says beside the scores."""
    traces = trace_facts(found.assessment, found.processed) if found.processed else None
    return {
        **record.to_json(),
        **provenance(),
        "run": run.path.name,
        "experts": list(found.experts.names),
        "trials": found.trials,
        "failures": found.failures,
        "enrolment": {str(clips): row.to_json() for clips, row in found.enrolled.items()},
        "test_speakers": found.unseen.to_json() if found.unseen else None,
        "reproduced": found.reproduced,
        "target": run.config.target,
        **({"traces": traces} if traces else {}),
        "weights": weights.summary(run),
        "runner": choose_runner(run.config, record.device == "cuda"),
        "workers_per_trial": run.config.workers_per_trial,
        "seconds": {
            "search": round(record.searched_before, 1),
            "total": round(record.seconds_before, 1),
        },
    }
