"""The search itself: run the trials, and score every fusion of what has finished."""

from __future__ import annotations

import time

from ensembles import EnsembleError
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import Assessment
from ensembles.evaluation.trace_assessment import Processed
from search.execution import tuner
from search.monitoring.gauges import search_gauges, show_search
from search.monitoring.loggers import loggers_for
from search.monitoring.progress import ProgressTable
from search.papers import reproduce
from search.persistence.run_folder import RunFolder
from search.stages.findings import Findings
from search.stages.results import save_results
from search.stages.session import Session


def search_and_fuse(session: Session) -> None:
    """Run the trials that are left, and score every fusion of what has finished."""
    run, search = session.run, session.search
    started = time.monotonic()
    if search.left():
        started = _run_trials(session)
    session.stop_if_broken()
    finished = search.finished()
    if not finished and session.interrupt.asked:
        raise KeyboardInterrupt
    if not finished:
        raise EnsembleError(_nothing_finished(run, search.failures()))
    searched = time.monotonic() - started
    experts = session.bank.experts(session.entries_of(finished).values())
    assessment, processed = _assess(session, experts)
    session.found = Findings(
        experts=experts,
        assessment=assessment,
        searched=searched,
        trials=search.counts(),
        failures=search.failures(),
        processed=processed,
    )
    if name := run.config.reproduce:
        rows = reproduce.reproduced(run.config, search.scope, experts, search.settings())
        session.found.reproduced = reproduce.to_json(name, rows)
    if not (run.path / "summary.json").exists():
        # What follows may be interrupted; a resumed run keeps its fuller report.
        save_results(session)


def _run_trials(session: Session) -> float:
    """Return the monotonic time at which Ray was there: waiting for hosts is not the search's."""
    run, search, ray = session.run, session.search, session.ray
    seconds = run.config.plan.minutes * 60
    ray.start()
    assert ray.workers is not None
    search.deadline = time.monotonic() + seconds
    started = time.monotonic()
    facts = (f"{ray.workers} at a time", *([ray.dashboard] if ray.dashboard else []))
    table = ProgressTable(
        session.screen, search, run.path.name, metric=run.config.metric, facts=facts
    )
    with search_gauges(run.path.name) as gauges, table.showing(show_search(gauges, search)):
        tuner.run_search(
            search,
            session.context,
            run,
            workers=ray.workers,
            seconds=seconds,
            interrupt=session.interrupt,
            callbacks=[table, *loggers_for(run.config, run.path)],
        )
    return started


def _assess(session: Session, experts: Experts) -> tuple[Assessment, Processed | None]:
    rungs, metric = session.bank.rungs(experts.table), session.run.config.metric
    with session.screen.status("fusing") as status:

        def show(done: int, total: int) -> None:
            status.update(f"fusing, recipe {done} of {total}")

        return session.task.assess(experts, metric, rungs=rungs, on_progress=show)


def _nothing_finished(run: RunFolder, failures: dict[str, str]) -> str:
    """Why there is nothing to fuse, and what to do."""
    if failures:
        name, reason = next(iter(failures.items()))
        why = f"{len(failures)} failed, the first, {name}, with: {reason}"
    else:
        why = "the time was over before"
    return (
        f"No trial finished: {why}. Everything so far is kept; continue with "
        f"{run.resume_command} --time-budget 30m"
    )
