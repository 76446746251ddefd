"""One search, end to end: `python -m search.run [--data DIR] [--preset quick|standard|thorough] …`.

Reads top to bottom: parse → load → offer → search → confirm → fuse → report.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from datasets.clips import DataError
from ensembles import EnsembleError
from ensembles.bank.posterior_bank import Experts, PosteriorBank
from ensembles.evaluation.assessment import Assessment, Scored, assess
from ensembles.evaluation.trace_assessment import Processed, assess_traces
from ensembles.metrics import CCC
from models.registry import ModelError
from search import outer, reproduce, weights
from search.chatter import chatter_to
from search.config import ConfigError, SearchConfig, for_numbers, parse_arguments
from search.corpus import bank_table, load_corpus, people, refuse_for_numbers
from search.cost import drop_expensive, key_of, slow_changes
from search.doctor import quick_findings
from search.folder import RunFolder, new_run, provenance, resumed_run
from search.inputs import TrainingData
from search.interrupt import Interrupt
from search.machine import (
    check_cores,
    check_weights,
    choose_device,
    data_context,
    find_cost,
    join_cluster,
    offer_as_asked,
)
from search.objective import EnsembleObjective
from search.offer import Offer, missing_weights
from search.pages import PAGE
from search.report import draw_report, print_report, write_predictions, write_reports
from search.submit import is_dashboard, submit
from search.trace_report import trace_facts
from search.unseen import UnseenScore, score_unseen

if TYPE_CHECKING:
    from search.session import Session


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 2: a user's mistake, in one line; 130: interrupted, resumable."""
    console = Console(stderr=True)
    run: RunFolder | None = None
    try:
        config, given = parse_arguments(arguments)
        run = resumed_run(config, given) if config.resume or config.extend else None
        config = run.config if run else reproduce.completed(config)
        if is_dashboard(config.address):
            return submit(config, given, console)
        for finding in quick_findings(config):
            text = f"{finding.level}: {finding.what} → {finding.remedy}"
            console.print(text, markup=False, highlight=False)
        if config.reproduce:
            print(reproduce.flaw_of(config.reproduce), flush=True)
        data = load_corpus(config, console)
        if data.traces is not None:
            config = for_numbers(config, given)
            refuse_for_numbers(data.folds)
        elif config.metric == CCC:
            raise ConfigError("metric ccc is of traces and numbers, not of classes (--target).")
        if data.folds.leak:
            print(f"{data.folds.leak}.", flush=True)
        if config.reproduce:
            reproduce.check_corpus(config.reproduce, data.index, console)
        if config.outer:  # what is impossible is said before anything trains
            outer.inner_splits(data.index, data.folds, outer.outer_count(config, data.folds))
        address = join_cluster(config, console)
        facts = run.facts() if run else {}
        facts = facts or _find_out(config, data, console, address)
        if config.outer and not run:
            config, facts = _cheap_enough(config, data, facts)
        _check_same_data(facts, data, run)
        if run:
            check_weights(Offer.from_json(facts["offer"]), data.weights)
        if address is None:
            check_cores(config, _runner(config, facts["device"] == "cuda"))
        if run and run.extended and config.architectures:
            facts = _with_more(facts, config, data, console, address)
        if config.dry_run:
            _print_offer(config, data, facts, console)
            return 0
        run = run or new_run(config, data.cache.index.corpus)
        with run.locked():
            run.record(facts)
            code = _search_and_report(run, data, facts, address, console)
            if code or not config.outer:
                return code
            return outer.score_outer(
                run, data.index, data.folds, run.facts(), Console(), outer.in_own_process
            )
    except (ConfigError, DataError, ModelError, EnsembleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if run is None:
            raise
        why = f"{error.strerror or error}" + (f" ('{error.filename}')" if error.filename else "")
        print(f"error: {run.interrupted_by(why)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{_continue_with(run) if run else 'Interrupted.'}", file=sys.stderr)
        return 130


def _find_out(
    config: SearchConfig, data: TrainingData, console: Console, address: str | None
) -> dict[str, Any]:
    """What the search may try here; recorded once, so that a resumed run offers the same."""
    device = choose_device(config, address, console)
    asked = reproduce.offer_of if config.reproduce else offer_as_asked
    offer = asked(config, data)
    cost = find_cost(offer, data, device, config, address, console)
    seconds = cost.seconds
    if not (config.architectures or config.reproduce):
        offer = drop_expensive(offer, seconds, config.longest_seconds)
    offer = _without_slow_changes(offer, data, device, seconds, config)
    index = data.cache.index
    return {
        "corpus": index.corpus,
        "data_checksum": index.checksum,
        "protocol": data.folds.protocol,
        "folds_fingerprint": data.folds.fingerprint,
        "held_out": list(data.folds.test_speakers),
        "test_corpus": config.test_corpus,
        "fold_names": list(data.folds.names),
        "leak": data.folds.leak,
        "seed": config.seed,
        "preset": config.preset,
        "device": device,
        "inputs": {
            "sample_rate_hz": data.shape.sample_rate_hz,
            "frames": data.shape.frames,
            "frame_size": list(data.shape.frame_size),
            "frame_rate": index.frame_rate,
            "crop": index.crop.to_json(),
            "feature_names": list(index.feature_names),
            **({"trace_steps": data.shape.trace_steps} if data.shape.trace_steps else {}),
        },
        "people": people(index),
        "offer": offer.to_json(),
        "predicted_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "gpu_share": cost.gpu_share,
        "seconds_before": 0.0,
    }


def _without_slow_changes(
    offer: Offer,
    data: TrainingData,
    device: str,
    seconds: Mapping[str, float],
    config: SearchConfig,
) -> Offer:
    if offer.given or (device == "cuda" and config.address):  # this process may have no GPU
        return offer
    slow = slow_changes(offer, data, device, seconds, config.longest_seconds)
    return replace(offer, too_slow={**offer.too_slow, **slow})


def _cheap_enough(
    config: SearchConfig, data: TrainingData, facts: dict[str, Any]
) -> tuple[SearchConfig, dict[str, Any]]:
    """The search, narrowed to one that can be repeated without each fold."""
    searches = 1 + outer.outer_count(config, data.folds)
    seconds = facts["predicted_seconds"]
    config, offer = outer.narrowed(config, Offer.from_json(facts["offer"]), seconds, searches)
    return config, {**facts, "offer": offer.to_json()}


def _with_more(
    facts: dict[str, Any],
    config: SearchConfig,
    data: TrainingData,
    console: Console,
    address: str | None,
) -> dict[str, Any]:
    """The facts of a finished run, with architectures that it had not."""
    had = Offer.from_json(facts["offer"])
    before = {*had.fusions, *(name for names in had.single.values() for name in names)}
    offer = had.joined(offer_as_asked(config, data, *sorted(before)))
    cost = find_cost(offer, data, facts["device"], config, address, console)
    slow = _without_slow_changes(offer, data, facts["device"], cost.seconds, config).too_slow
    # What was searched before stays as it was: a study's parameters cannot change.
    offer = replace(offer, too_slow={**slow, **dict.fromkeys(sorted(before), ()), **had.too_slow})
    rounded = {name: round(value, 1) for name, value in cost.seconds.items()}
    known = {"predicted_seconds": rounded, "gpu_share": cost.gpu_share}
    return {**facts, "offer": offer.to_json(), **known}


def _check_same_data(facts: dict[str, Any], data: TrainingData, run: RunFolder | None) -> None:
    if (
        facts["data_checksum"] != data.cache.index.checksum
        or facts["folds_fingerprint"] != data.folds.fingerprint
    ):
        assert run is not None
        raise ConfigError(
            f"The data of the run '{run.path.name}' changed since it was started. Start a new run."
        )


def _print_offer(
    config: SearchConfig, data: TrainingData, facts: dict[str, Any], console: Console
) -> None:
    offer = Offer.from_json(facts["offer"])
    plan = config.plan
    console.print(
        f"{facts['corpus']}: {len(data.cache.index.clips)} clips, {facts['protocol']}, {data.folds.count} folds; "
        f"{offer.given_trials or plan.trials} trials, at most {plan.minutes:g} min, "
        f"{plan.confirm_seeds} fresh seeds",
        highlight=False,
    )
    seconds = facts["predicted_seconds"]
    for side, names in offer.single.items():
        for name in names:
            modes = offer.transfers[name].modes if name in offer.transfers else (None,)
            for key in dict.fromkeys(key_of(name, mode) for mode in modes):
                told = f"  {side:5}  {key}: about {seconds[key]:.0f} s a trial"
                console.print(told, highlight=False)
    if offer.fusions:
        each = sorted(seconds["+".join(pair)] for pair in offer.pairs)
        told = f"about {each[0]:.0f} s" + (f" to {each[-1]:.0f} s" if len(each) > 1 else "")
        parts = " × ".join(f"({', '.join(names)})" for names in offer.parts.values())
        console.print(
            f"  early  {', '.join(offer.fusions)} of {parts}: {told} a trial", highlight=False
        )
    for name, keys in offer.too_slow.items():
        if keys:
            what = ", ".join(keys).replace("_", " ")
            console.print(
                f"  {name} is trained without {what}: a trial would take too long", highlight=False
            )
    if lacking := missing_weights(offer, data.weights):
        console.print(f"  {lacking}", highlight=False)
    for why in dict.fromkeys(offer.why_not.values()):
        left_out = ", ".join(name for name, reason in offer.why_not.items() if reason == why)
        console.print(f"  left out ({why}): {left_out}", highlight=False)


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


def _search_and_report(
    run: RunFolder,
    data: TrainingData,
    facts: dict[str, Any],
    address: str | None,
    console: Console,
) -> int:
    started = time.monotonic()
    _print_offer(run.config, data, facts, console)
    bank = PosteriorBank.create(run.path / "bank", bank_table(data))
    run.kept.send(f"bank/{bank.table_file}")

    def save(found: Findings, unseen: UnseenScore | None = None) -> dict[str, Any]:
        spent = {
            "searched_before": facts.get("searched_before", 0.0) + found.searched,
            "seconds_before": facts["seconds_before"] + time.monotonic() - started,
        }
        report = _report(run, {**facts, **spent}, found, unseen)
        write_reports(run.path, found.assessment, found.confirmed, report)
        run.record({**facts, **spent})
        looked = run.path / "predictions_test.csv"
        looked.unlink(missing_ok=True)  # of an earlier ensemble
        if unseen:
            by_seed = [(run.config.seed, unseen.log_posteriors)]
            write_predictions(looked, unseen.table, by_seed)
        return report

    interrupt = Interrupt()
    with (
        chatter_to(run.path / "search.log") as screen,
        interrupt.watched(lambda: screen.print(_STOPPING, highlight=False)),
    ):
        found = _search(run, data, facts, address, bank, screen, interrupt, save)
    for damaged in bank.damaged:
        console.print(f"warning: bank entry left out: {damaged}", highlight=False)
    unseen = None
    if not interrupt.asked:  # test speakers are looked at once, at the end
        try:
            unseen = score_unseen(run, data, found.experts, found.assessment)
        except EnsembleError as error:  # weights that an earlier end of this run did not keep
            console.print(f"warning: test speakers were not scored: {error}", highlight=False)
        weights.prune(run, found.assessment)
    report = save(found, unseen)
    if run.config.page:
        draw_report(run.path, console)
    else:
        (run.path / PAGE).unlink(missing_ok=True)  # an earlier one is of earlier results
    print_report(Console(), run.path, found.assessment, found.confirmed, report)
    if found.reproduced:
        reproduce.print_reproduced(Console(), found.reproduced, facts["protocol"])
    if interrupt.asked:
        console.print(_continue_with(run), highlight=False, soft_wrap=True)
        return 130
    return 0


_STOPPING = "Stopping: what runs is kept, what has finished is reported. Ctrl-C again to leave now."


def _continue_with(run: RunFolder) -> str:
    return f"Interrupted. Continue with: {run.resume_command}"


def _report(
    run: RunFolder, facts: dict[str, Any], found: Findings, unseen: UnseenScore | None
) -> dict[str, Any]:
    """What `summary.json` says beside the scores."""
    return {
        **facts,
        **provenance(),
        "run": run.path.name,
        "experts": list(found.experts.names),
        "trials": found.trials,
        "failures": found.failures,
        "enrolment": {str(clips): row.to_json() for clips, row in found.enrolled.items()},
        "test_speakers": unseen.to_json() if unseen else None,
        "reproduced": found.reproduced,
        "target": run.config.target,
        **({"traces": trace_facts(found.assessment, found.processed)} if found.processed else {}),
        "weights": weights.summary(run),
        "runner": _runner(run.config, facts["device"] == "cuda"),
        "workers_per_trial": run.config.workers_per_trial,
        "held_out": facts.get("held_out", list(run.config.test_speaker_names)),
        "seconds": {
            "search": round(facts["searched_before"], 1),
            "total": round(facts["seconds_before"], 1),
        },
    }


def _search(
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
    from search.confirm import confirm
    from search.enrolment import score_enrolment
    from search.on_ray import OnRay
    from search.sampler import DealtSearch, open_journal
    from search.session import Session, restore_weights

    config, plan = run.config, run.config.plan
    context = _context(run, data, facts, _runner(config, facts["device"] == "cuda"))
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
    from search import tuning
    from search.loggers import loggers_for
    from search.metrics import search_gauges, show_search
    from search.progress import ProgressTable

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
            tuning.run_search(
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


def _runner(config: SearchConfig, gpu: bool) -> str:
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


if __name__ == "__main__":
    code = main()
    if code == 2:  # what libraries still want to write at exit would only complain again
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
