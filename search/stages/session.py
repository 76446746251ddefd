"""A run while it trains: what its stages share, and training again what the search found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ensembles.bank.posterior_bank import BankEntry, PosteriorBank
from ensembles.evaluation.assessment import Assessment
from search.config import ConfigError
from search.data.training_data import TrainingData
from search.execution import tuner
from search.execution.ray_session import OnRay
from search.execution.trial_spec import Spec
from search.monitoring.interrupt import Interrupt
from search.persistence import weights
from search.persistence.run_folder import RunFolder
from search.space.suggest import plan_of
from search.tuning.searcher import DealtSearch


@dataclass
class Session:
    """A run while it trains.

    Attributes:
        run: Its folder.
        data: Its corpus.
        bank: What its trials leave.
        search: Its journal, dealt out.
        context: What every trial is told.
        screen: Shows what goes on.
        interrupt: Whether it is to end.
        on_ray: Starts Ray when something has to be trained.
    """

    run: RunFolder
    data: TrainingData
    bank: PosteriorBank
    search: DealtSearch
    context: dict[str, Any]
    screen: Console
    interrupt: Interrupt
    on_ray: OnRay

    def entries(self) -> dict[str, BankEntry]:
        """Name → bank entry of every training that came to its end."""
        self.run.kept.pull(["bank"])
        return {entry.trial: entry for entry in self.bank.read() if entry.percent == 100}

    def entries_of(self, finished: set[str]) -> dict[str, BankEntry]:
        """Name → bank entry of finished trials; what was lost or damaged is trained again."""
        found = {name: entry for name, entry in self.entries().items() if name in finished}
        if (missing := sorted(finished - found.keys())) and not self.interrupt.now:
            self.screen.print(
                f"training {', '.join(missing)} again: their bank entries are lost or damaged",
                highlight=False,
            )
            self.train([self.retraining(name, name, keep_weights=True) for name in missing])
            found = {name: entry for name, entry in self.entries().items() if name in finished}
        return found

    def stop_if_broken(self) -> None:
        """Ends a run whose folder takes nothing more.

        Raises:
            ConfigError: Says why, and how to continue.
        """
        if self.interrupt.broken:
            raise ConfigError(self.run.interrupted_by(self.interrupt.broken))

    def retraining(self, name: str, title: str, **changes: Any) -> Spec:
        """A trial's configuration, to be trained again under another name.

        Args:
            name: Of the trial.
            title: The other name.
            changes: To the spec (`keep_weights`, `enrolment`) or its `context`.
        """
        modality = name.rpartition("-")[0]
        offer = self.search.parts[modality].offer
        plan = plan_of(self.search.all_trials()[name].params, modality, offer)
        return {
            "trial": title,
            "modality": modality,
            "plan": plan.to_json(),
            "keep_weights": False,
            **changes,
            "context": {**self.context, **changes.get("context", {})},
        }

    def train(self, specs: list[Spec]) -> None:
        """Trains configurations to their end; names those that fail, and why."""
        self.on_ray.start()

        def done(name: str, why: str | None) -> None:
            if why:
                self.screen.print(f"{name} failed: {why}", highlight=False)

        tuner.run_seeds(
            specs,
            self.run,
            workers=int(self.context["workers"]),
            on_done=done,
            interrupt=self.interrupt,
        )
        self.stop_if_broken()


def restore_weights(session: Session, assessment: Assessment) -> None:
    """Trains needed experts again whose networks an earlier end of the run did not keep.

    With the same seed: what comes back is what was scored.
    """
    weights.fetch(session.run, assessment)
    titles = {name: f"{name}+again" for name in weights.lost(session.run, assessment)}
    if not titles or session.interrupt.asked:
        return
    session.screen.print(f"training {len(titles)} experts again, whose networks were not kept")
    session.train(
        [session.retraining(name, title, keep_weights=True) for name, title in titles.items()]
    )
    for name, title in titles.items():
        weights.put_back(session.run, name, title)
