"""The search itself: run the trials and score every fusion of what has finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ensembles import EnsembleError
from ensembles.bank.posterior_bank import Experts, PosteriorBank
from ensembles.evaluation.assessment import Assessment, Scored, assess
from ensembles.evaluation.trace_assessment import Processed, assess_traces
from ensembles.metrics import CCC
from search.config import SearchConfig
from search.data.training_data import TrainingData
from search.execution.trial_spec import data_context
from search.monitoring.interrupt import Interrupt
from search.papers import reproduce
from search.persistence.run_folder import RunFolder
from search.space.scope import Offer
from search.tuning.objective import EnsembleObjective

if TYPE_CHECKING:
    from search.stages.session import Session


@dataclass
class Findings:
    """What a search has found so far.

    Attributes:
        experts: Posteriors of every finished trial.
        assessment: Of all recipes over them.
        searched: Seconds of the search itself, in this process.
        trials: How many ended how.
        failures: Trial → reason.
        confirmed: Fresh seed → row → score.
        enrolled: Clips of a new speaker → score.
        reproduced: A paper's figures beside ours, as JSON; None where nothing is reproduced.
        processed: The headline's post-processing, where it is of traces.
    """

    experts: Experts
    assessment: Assessment
    searched: float
    trials: dict[str, int]
    failures: dict[str, str]
    confirmed: dict[int, dict[str, Scored]] = field(default_factory=dict)
    enrolled: dict[int, Scored] = field(default_factory=dict)
    reproduced: dict[str, Any] | None = None
    processed: Processed | None = None


def search_and_score(
    run: RunFolder,
    data: TrainingData,
    facts: dict[str, Any],
    address: str | None,
    bank: PosteriorBank,
    screen: Console,
    interrupt: Interrupt,
    save: Callable[[Findings], object],
) -> Findings:
    """Search, fuse, save, confirm. Imports Ray here, so that mistakes are reported at once."""
    from search.execution.ray_session import OnRay
    from search.stages.enrolment import score_enrolment
    from search.stages.fresh_seeds import confirm
    from search.stages.session import Session, restore_weights
    from search.tuning.searcher import DealtSearch
    from search.tuning.study import open_journal

    config, plan = run.config, run.config.plan
    context = _context(run, data, facts, choose_runner(config, facts["device"] == "cuda"))
    if config.runner == "auto":
        screen.print(f"runner: {context['runner']} ({_RUNNERS[context['runner']]})")
    search = DealtSearch(
        Offer.from_json(facts["offer"]),
        open_journal(run.journal),
        seed=config.seed,
        trials=_trials_in_all(run, facts),
        deadline=time.monotonic() + plan.minutes * 60,
        objective=_objective(run, bank),
    )
    if run.extended:
        search.trials = search.asked() + plan.trials
    facts["trials_in_all"] = search.trials
    run.record(facts)
    with OnRay(run, context, address, screen, interrupt) as on_ray:
        session = Session(run, data, bank, search, context, screen, interrupt, on_ray)
        found = _tune_and_fuse(session)
        if not (run.path / "summary.json").exists():
            # What follows may be interrupted; a resumed run keeps its fuller report.
            save(found)
        found.confirmed = confirm(session, found.assessment, plan.confirm_seeds, found.processed)
        if counts := config.enrolment_counts:
            found.enrolled = score_enrolment(session, found.assessment, counts)
        restore_weights(session, found.assessment)
    return found


def _objective(run: RunFolder, bank: PosteriorBank) -> EnsembleObjective | None:
    if run.config.objective == "solo":
        return None
    return EnsembleObjective(
        bank, run.config.metric, lambda name: run.kept.fetch(f"bank/{name}@100.npz")
    )


def _trials_in_all(run: RunFolder, facts: dict[str, Any]) -> int:
    """How many trials the run is to have; one that was extended keeps what it was extended to."""
    if given := Offer.from_json(facts["offer"]).given_trials:
        return given
    recorded = int(facts.get("trials_in_all", 0))
    return recorded if recorded and "trials" not in run.given else run.config.plan.trials


def _tune_and_fuse(session: Session) -> Findings:
    """Runs the trials that are left, and scores every fusion of what has finished."""
    from search.execution import tuner
    from search.monitoring.gauges import search_gauges, show_search
    from search.monitoring.loggers import loggers_for
    from search.monitoring.progress import ProgressTable

    run, search, screen = session.run, session.search, session.screen
    if search.left():
        session.on_ray.start()  # may wait for hosts, which is not the search's time
        search.deadline = time.monotonic() + run.config.plan.minutes * 60
    started = time.monotonic()
    metric, facts = run.config.metric, _for_header(session)
    table = ProgressTable(screen, search, run.path.name, metric=metric, facts=facts)
    search.on_change = table.changed
    if search.left():
        with search_gauges(run.path.name) as gauges, table.showing(show_search(gauges, search)):
            tuner.run_search(
                search,
                session.context,
                run,
                seconds=run.config.plan.minutes * 60,
                interrupt=session.interrupt,
                callbacks=[table, *loggers_for(run.config, run.path)],
            )
    session.stop_if_broken()
    finished = search.finished()
    if not finished and session.interrupt.asked:
        raise KeyboardInterrupt
    if not finished:
        raise EnsembleError(_nothing_finished(run, search.failures()))
    searched = time.monotonic() - started
    ended = session.entries_of(finished)
    experts = session.bank.experts(ended.values())
    assessment, processed = _assess(session, experts)
    found = Findings(experts, assessment, searched, search.counts(), search.failures())
    found.processed = processed
    if name := run.config.reproduce:
        rows = reproduce.reproduced(run.config, search.offer, experts, search.settings())
        found.reproduced = reproduce.to_json(name, rows)
    return found


def _for_header(session: Session) -> tuple[str, ...]:
    """For the table's header: how many run at once, and where to see more."""
    if "workers" not in session.context:  # nothing is left to train
        return ()
    dashboard = session.on_ray.dashboard
    return (f"{session.context['workers']} at a time", *([dashboard] if dashboard else []))


def _assess(session: Session, experts: Experts) -> tuple[Assessment, Processed | None]:
    rungs, metric = session.bank.rungs(experts.table), session.run.config.metric
    with session.screen.status("fusing") as status:

        def show(done: int, total: int) -> None:
            status.update(f"fusing, recipe {done} of {total}")

        if metric == CCC:
            return assess_traces(experts, rungs=rungs, on_progress=show)
        return assess(experts, metric, rungs=rungs, on_progress=show), None


def choose_runner(config: SearchConfig, gpu: bool) -> str:
    """Return `actor` or `train`; where the user leaves it open, Ray Train where there are GPUs."""
    if config.runner != "auto":
        return config.runner
    return "train" if gpu or config.workers_per_trial > 1 else "actor"


_RUNNERS = {
    "train": "Ray Train workers, because there are GPUs or several workers a trial",
    "actor": "reused processes, because there is no GPU",
}


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


def _context(
    run: RunFolder, data: TrainingData, facts: dict[str, Any], runner: str
) -> dict[str, Any]:
    """What a trial needs to know, wherever it runs."""
    config = run.config
    share = facts.get("gpu_share", {})
    if config.gpu_packing:
        share = dict.fromkeys(facts["predicted_seconds"], 1.0 / config.gpu_packing)
    return {
        **data_context(config, data, facts["device"]),
        "run": run.kept.url or str(run.path.resolve()),
        "metric": config.metric,
        "seed": config.seed,
        "precision": config.precision,
        "runner": runner,
        "workers_per_trial": config.workers_per_trial,
        "cpus_per_trial": 1,
        "gpu_share": share,
    }
