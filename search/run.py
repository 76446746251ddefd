"""One search, end to end: `python -m search.run [--data DIR] [--preset quick|standard|thorough] …`.

Parses the settings, sets the search up, and goes through its stages: search and fuse, fresh seeds, speaker
adaptation, lost networks, test speakers, results, nested search. Each is a function of the session.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from datasets.clips import DataError
from ensembles import EnsembleError
from search.config import ConfigError, SearchConfig, parse_arguments
from search.persistence.run_folder import RunFolder, new_run, resumed_run

if TYPE_CHECKING:
    from search.stages.setup import Setup


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 2: a user's mistake, in one line; 130: interrupted, resumable."""
    folder: RunFolder | None = None
    try:
        config, given = parse_arguments(arguments)
        if config.resume or config.extend:
            folder = resumed_run(config, given)
            config = folder.config
        # Torch, Ray and Optuna take seconds, which --help and a mistyped setting need not wait for.
        from models.registry import ModelError
    except (ConfigError, EnsembleError) as error:
        return _refuse(error)
    try:
        return _search(config, given, folder)
    except (ConfigError, DataError, ModelError, EnsembleError) as error:
        return _refuse(error)


def _search(config: SearchConfig, given: set[str], folder: RunFolder | None) -> int:
    from search.cluster.job_submission import is_dashboard, submit
    from search.doctor import quick_findings
    from search.papers import reproduce
    from search.stages.setup import print_scope, set_up

    console = Console(stderr=True)
    try:
        config = config if folder else reproduce.completed(config)
        if is_dashboard(config.address):
            return submit(config, given, console)
        for finding in quick_findings(config):
            text = f"{finding.level}: {finding.what} → {finding.remedy}"
            console.print(text, markup=False, highlight=False)
        setup = set_up(config, given, folder, console)
        if config.dry_run:
            print_scope(setup, console)
            return 0
        folder = folder or new_run(setup.config, setup.record.corpus)
        with folder.locked():
            folder.write_record(setup.record)
            print_scope(setup, console)
            return _run_stages(folder, setup, console)
    except OSError as error:
        if folder is None:
            raise
        why = f"{error.strerror or error}" + (f" ('{error.filename}')" if error.filename else "")
        return _refuse(folder.interrupted_by(why))
    except KeyboardInterrupt:
        print(f"\n{folder.continue_with if folder else 'Interrupted.'}", file=sys.stderr)
        return 130


def _run_stages(folder: RunFolder, setup: Setup, console: Console) -> int:
    from search.stages.enrolment import adapt_to_speakers
    from search.stages.fresh_seeds import confirm
    from search.stages.lost_networks import restore_weights
    from search.stages.nested_search import search_nested
    from search.stages.results import report_results
    from search.stages.search import search_and_fuse
    from search.stages.session import open_session
    from search.stages.test_speakers import score_test_speakers

    with open_session(folder, setup, console) as session:
        for stage in (search_and_fuse, confirm, adapt_to_speakers, restore_weights):
            stage(session)
    score_test_speakers(session)
    report_results(session)
    if session.interrupt.asked:
        console.print(folder.continue_with, highlight=False, soft_wrap=True)
        return 130
    return search_nested(session)


def _refuse(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    code = main()
    if code == 2:  # what libraries still want to write at exit would only complain again
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
