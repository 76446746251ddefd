"""One search, end to end: `python -m search.run [--data DIR] [--preset quick|standard|thorough] …`.

Reads top to bottom: parse → load → offer → search → confirm → fuse → report.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console

from datasets.clips import DataError
from ensembles import EnsembleError
from ensembles.bank.posterior_bank import PosteriorBank
from ensembles.bank.prediction_tables import write_predictions
from ensembles.metrics import CCC
from models.registry import ModelError
from search.cluster.job_submission import is_dashboard, submit
from search.cluster.placement import check_cores, join_cluster
from search.config import ConfigError, parse_arguments
from search.data.bank_tables import bank_table
from search.data.corpus import load_corpus, refuse_for_numbers
from search.data.training_data import TrainingData
from search.doctor import quick_findings
from search.monitoring.interrupt import Interrupt
from search.monitoring.log_capture import chatter_to
from search.papers import reproduce
from search.persistence import weights
from search.persistence.run_folder import RunFolder, new_run, provenance, resumed_run
from search.report import draw_report
from search.reporting.html import PAGE
from search.reporting.results import write_reports
from search.reporting.terminal import print_report
from search.reporting.traces import trace_facts
from search.space.eligibility import check_weights
from search.space.scope import Offer
from search.stages import nested_search
from search.stages.test_speakers import UnseenScore, score_unseen

if TYPE_CHECKING:
    pass
from search.stages.search import Findings, choose_runner, search_and_score
from search.stages.setup import (
    check_same_data,
    drop_slow_architectures,
    extended_facts,
    for_numbers,
    new_facts,
    print_scope,
)


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
            nested_search.inner_splits(
                data.index, data.folds, nested_search.outer_count(config, data.folds)
            )
        address = join_cluster(config, console)
        facts = run.facts() if run else {}
        facts = facts or new_facts(config, data, console, address)
        if config.outer and not run:
            config, facts = drop_slow_architectures(config, data, facts)
        check_same_data(facts, data, run)
        if run:
            check_weights(Offer.from_json(facts["offer"]), data.weights)
        if address is None:
            check_cores(config, choose_runner(config, facts["device"] == "cuda"))
        if run and run.extended and config.architectures:
            facts = extended_facts(facts, config, data, console, address)
        if config.dry_run:
            print_scope(config, data, facts, console)
            return 0
        run = run or new_run(config, data.cache.index.corpus)
        with run.locked():
            run.record(facts)
            code = _search_and_report(run, data, facts, address, console)
            if code or not config.outer:
                return code
            return nested_search.score_outer(
                run, data.index, data.folds, run.facts(), Console(), nested_search.in_own_process
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


def _search_and_report(
    run: RunFolder,
    data: TrainingData,
    facts: dict[str, Any],
    address: str | None,
    console: Console,
) -> int:
    started = time.monotonic()
    print_scope(run.config, data, facts, console)
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
        found = search_and_score(run, data, facts, address, bank, screen, interrupt, save)
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
        "runner": choose_runner(run.config, facts["device"] == "cuda"),
        "workers_per_trial": run.config.workers_per_trial,
        "held_out": facts.get("held_out", list(run.config.test_speaker_names)),
        "seconds": {
            "search": round(facts["searched_before"], 1),
            "total": round(facts["seconds_before"], 1),
        },
    }


if __name__ == "__main__":
    code = main()
    if code == 2:  # what libraries still want to write at exit would only complain again
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
