"""A run while it goes on: what its stages share, and training again what the search found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from ensembles.bank.posterior_bank import BankEntry, PosteriorBank
from ensembles.bank.training_variant import Variant
from search.config import ConfigError
from search.data.training_data import TrainingData
from search.execution import tuner
from search.execution.ray_session import RaySession
from search.monitoring.interrupt import Interrupt
from search.monitoring.log_capture import capture_logs
from search.persistence.run_folder import RunFolder
from search.persistence.run_record import RunRecord
from search.space.suggest import config_of
from search.stages.findings import Findings
from search.stages.setup import Setup, run_context
from search.stages.task import Task
from search.trial_spec import RunContext, TrialSpec
from search.tuning.objective import EnsembleObjective
from search.tuning.searcher import ModalitySearcher
from search.tuning.study import open_journal

_STOPPING = "Stopping: what runs is kept, what has finished is reported. Ctrl-C again to leave now."

_RUNNERS = {
    "train": "Ray Train workers, because there are GPUs or several workers a trial",
    "actor": "reused processes, because there is no GPU",
}


@dataclass(kw_only=True)
class Session:
    """A run while it goes on.

    Attributes:
        run: Its folder.
        data: Its corpus.
        task: Classification, or regression.
        record: What its first start found out.
        bank: What its trials leave.
        search: Its journal, dealt out.
        context: Of every trial.
        screen: Shows what goes on.
        interrupt: Whether it is to end.
        ray: Starts Ray when something has to be trained.
        started: Monotonic time.
        found: What the stages have found; filled by the search.
    """

    run: RunFolder
    data: TrainingData
    task: Task
    record: RunRecord
    bank: PosteriorBank
    search: ModalitySearcher
    context: RunContext
    screen: Console
    interrupt: Interrupt
    ray: RaySession
    started: float
    _found: Findings | None = None

    @property
    def found(self) -> Findings:
        """Return the findings of the stages."""
        assert self._found is not None, "the search comes first"
        return self._found

    @found.setter
    def found(self, found: Findings) -> None:
        self._found = found

    def entries(self) -> dict[str, BankEntry]:
        """Name → bank entry of every training that came to its end."""
        self.run.kept.pull(["bank"])
        return {entry.name: entry for entry in self.bank.read() if entry.percent == 100}

    def entries_of(self, finished: set[str]) -> dict[str, BankEntry]:
        """Name → bank entry of finished trials; what was lost or damaged is trained again."""
        found = {name: entry for name, entry in self.entries().items() if name in finished}
        if (missing := sorted(finished - found.keys())) and not self.interrupt.now:
            self.screen.print(
                f"training {', '.join(missing)} again: their bank entries are lost or damaged",
                highlight=False,
            )
            self.train([self.training(name, Variant(), keep_weights=True) for name in missing])
            found = {name: entry for name, entry in self.entries().items() if name in finished}
        return found

    def stop_if_broken(self) -> None:
        """End a run whose folder takes nothing more.

        Raises:
            ConfigError: Says why, and how to continue.
        """
        if self.interrupt.broken:
            raise ConfigError(self.run.interrupted_by(self.interrupt.broken))

    def training(self, trial: str, variant: Variant, **changes: Any) -> TrialSpec:
        """Return a training of a trial's configuration.

        Args:
            trial: Its name.
            variant: Which of its trainings.
            changes: To the specification: `context`, `keep_weights`, `enrolment`.
        """
        modality, frozen = self.search.trial(trial)
        spec = TrialSpec(
            trial=trial,
            modality=modality,
            plan=config_of(frozen.params, modality, self.search.parts[modality].scope),
            context=self.context,
            variant=variant,
            keep_weights=False,
        )
        return replace(spec, **changes)

    def train(self, specs: list[TrialSpec]) -> None:
        """Train configurations to their end; name those that fail, and why."""
        self.ray.start()
        assert self.ray.workers is not None

        def done(name: str, why: str | None) -> None:
            if why:
                self.screen.print(f"{name} failed: {why}", highlight=False)

        tuner.run_seeds(
            specs, self.run, workers=self.ray.workers, on_done=done, interrupt=self.interrupt
        )
        self.stop_if_broken()


@contextmanager
def open_session(run: RunFolder, setup: Setup, console: Console) -> Iterator[Session]:
    """Open a run's bank and journal; libraries' output goes to its log, Ctrl-C ends it in order."""
    started = time.monotonic()
    bank = PosteriorBank.create(run.path / "bank", setup.task.bank_table(setup.data))
    run.kept.send(f"bank/{bank.table_file}")
    context, interrupt = run_context(run, setup.data, setup.record), Interrupt()
    with ExitStack() as stack:
        screen = stack.enter_context(capture_logs(run.path / "search.log"))
        stack.enter_context(interrupt.watched(lambda: screen.print(_STOPPING, highlight=False)))
        search = _open_search(run, setup, bank)
        record = replace(setup.record, trials_in_all=search.trials)
        run.write_record(record)
        if run.config.runner == "auto":
            screen.print(f"runner: {context.runner} ({_RUNNERS[context.runner]})")
        ray = RaySession(run, context, setup.address, screen, interrupt)
        stack.enter_context(ray)
        yield Session(
            run=run,
            data=setup.data,
            task=setup.task,
            record=record,
            bank=bank,
            search=search,
            context=context,
            screen=screen,
            interrupt=interrupt,
            ray=ray,
            started=started,
        )
    for damaged in bank.damaged:
        console.print(f"warning: bank entry left out: {damaged}", highlight=False)


def _open_search(run: RunFolder, setup: Setup, bank: PosteriorBank) -> ModalitySearcher:
    config = run.config
    objective = None
    if config.objective != "solo":
        objective = EnsembleObjective(
            bank, config.metric, lambda name: run.kept.fetch(f"bank/{name}@100.npz")
        )
    return ModalitySearcher(
        setup.scope,
        open_journal(run.journal),
        seed=config.seed,
        trials=_trials_in_all(run, setup),
        further=config.plan.trials if run.extended else None,
        deadline=time.monotonic() + config.plan.minutes * 60,
        objective=objective,
        on_end=run.mirror.forget_checkpoint,
    )


def _trials_in_all(run: RunFolder, setup: Setup) -> int:
    """How many trials the run is to have; one that was extended keeps what it was extended to."""
    recorded = setup.record.trials_in_all
    if given := setup.scope.given_trials:
        return given
    return recorded if recorded and "trials" not in run.given else run.config.plan.trials
