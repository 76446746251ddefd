"""The real command in this process: what Ray would start elsewhere runs here, a trial after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search.execution import trial_process
from search.execution.reports import Report
from search.monitoring.interrupt import Interrupt
from search.persistence.run_folder import RunFolder
from search.run import main
from search.trial_spec import RunContext, TrialSpec
from search.tuning.searcher import ModalitySearcher

Change = Callable[[TrialSpec], TrialSpec]


def search_here(*arguments: object, change: Change = lambda spec: spec) -> int:
    """`python -m search.run ARGUMENTS` without Ray; returns its exit code.

    Everything else is the command's own: its folder, its journal, what trials leave, its report.

    Args:
        arguments: Of the command.
        change: Called with each training's spec before it starts; returns what is trained.
    """
    with pytest.MonkeyPatch.context() as patch, one_thread():
        ours = _Here(change)
        patch.setattr(
            "search.execution.ray_session.RaySession.start", lambda ray: setattr(ray, "workers", 1)
        )
        patch.setattr("search.execution.tuner.run_search", ours.run_search)
        patch.setattr("search.execution.tuner.run_seeds", ours.run_seeds)
        return main([*map(str, arguments), "--address", "local"])


def search_briefly(shards: Path, home: Path) -> Path:
    """Searches any corpus with one short trial of the cheapest network; returns the run's folder."""
    where = ["--name", "short", "--runs-dir", home / "runs", "--cache-dir", home / "cache"]
    how = ["--only", "functionals", "--trials", 1, "--epochs", 4, "--confirm-seeds", 0]
    assert search_here("--data", shards, *how, *where) == 0
    return home / "runs" / "short"


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one core while the block runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Here:
    """Stands for `search.execution.tuner`."""

    def __init__(self, change: Change) -> None:
        self.change = change

    def run_search(
        self,
        search: ModalitySearcher,
        context: RunContext,
        run: RunFolder,
        *,
        interrupt: Interrupt,
        **_: Any,
    ) -> None:
        number = 0
        while not interrupt.now and isinstance(config := search.suggest(str(number)), dict):
            report: Report = {}
            for report in self._reports(TrialSpec(**config, context=context), interrupt):
                failed = report.get("failed")
                if not failed and search.report_rung(
                    str(number), report["percent"], report["score"]
                ):
                    break
            search.on_trial_complete(str(number), dict(report))
            number += 1

    def run_seeds(
        self,
        specs: list[TrialSpec],
        run: RunFolder,
        *,
        on_done: Callable[[str, str | None], None],
        interrupt: Interrupt,
        **_: Any,
    ) -> None:
        for spec in specs:
            if interrupt.now:
                return
            reports = list(self._reports(spec, interrupt))
            if reports and (reports[-1].get("failed") or reports[-1]["percent"] == 100):
                run.mirror.forget_checkpoint(spec.name)
                on_done(spec.name, reports[-1].get("failed"))

    def _reports(self, spec: TrialSpec, interrupt: Interrupt) -> Iterable[Report]:
        """A training's reports, as far as it comes before an interruption."""
        for report in trial_process.train(self.change(spec)):
            yield report
            if interrupt.now:
                return


def broken(spec: TrialSpec) -> TrialSpec:
    """The same training of an architecture that there is not: it fails."""
    return replace(spec, plan=replace(spec.plan, architecture="no such network"))


def continued(run: Path, how: str = "--resume", **options: Any) -> list[object]:
    """Arguments that continue a run in its folder."""
    given = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]
    return [how, run.name, "--runs-dir", run.parent, *(part for pair in given for part in pair)]


def copy_of(run: Path, runs: Path) -> Path:
    """A copy of a run in another folder of runs."""
    return Path(shutil.copytree(run, runs / run.name))
