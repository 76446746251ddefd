"""All folds of one trial, trained in lockstep from rung to rung."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.data.training_data import TrainingData
from search.training.device import choose_precision
from search.training.distributed import Workers
from search.training.fold_builder import build_fold
from search.training.fold_trainer import FoldTrainer, NonFiniteLossError
from search.training.task import FoldPredictions, task_of
from search.trial_config import TrialConfig

RUNGS = (25, 50, 75, 100)
"""Percentages of a trial's own schedule at which it is scored."""


@dataclass(frozen=True)
class RungResult:
    """Result of a trial at a rung.

    Attributes:
        percent: Of its schedule.
        epoch: Epochs done.
        logits: (N, K) out-of-fold logits, NaN for clips without a prediction; of numbers, (S, K)
            along the recordings.
        train_loss: Mean over the folds' last epoch.
    """

    percent: int
    epoch: int
    logits: NDArray[np.float32]
    train_loss: float


@dataclass(frozen=True)
class FoldEpoch:
    """One epoch of one fold.

    Attributes:
        fold: Whose clips are held out.
        epoch: Epochs done, this one too.
        loss: Mean over the training clips.
        clips: That were trained on, on all workers.
        seconds: It took.
    """

    fold: int
    epoch: int
    loss: float
    clips: int
    seconds: float


class LockstepTrial:
    """All folds of one trial, advanced epoch by epoch, so that every score is over all folds.

    Attributes:
        losses: Of every epoch so far, its folds' mean training losses.
    """

    def __init__(
        self,
        plan: TrialConfig,
        data: TrainingData,
        *,
        seed: int,
        device: str = "cpu",
        precision: str = "auto",
        workers: Workers | None = None,
        by_speaker: bool = False,
        may_split: bool = True,
    ) -> None:
        self.plan, self.data, self.task = plan, data, task_of(data)
        self.workers = workers or Workers()
        self.epoch = 0
        self.losses: list[list[float]] = []
        chosen = choose_precision(plan, device, precision)
        self.precision = chosen
        self.trainers: list[FoldTrainer] = []
        for fold in range(data.folds.count):
            self.trainers.append(
                build_fold(
                    plan,
                    data,
                    fold,
                    seed=seed,
                    device=device,
                    precision=chosen,
                    workers=self.workers,
                    by_speaker=by_speaker,
                    may_split=may_split,
                    like=self.trainers[0] if fold else None,
                )
            )

    def run(
        self,
        on_epoch: Callable[[], None] = lambda: None,
        on_fold: Callable[[FoldEpoch], None] = lambda done: None,
    ) -> Iterator[RungResult]:
        """Trains to the end, yielding at every rung; closing the iterator stops the trial.

        Args:
            on_epoch: Called after every epoch but the last, when its rung was dealt with.
            on_fold: Called after every epoch of every fold.
        """
        epochs = self.plan.training.epochs
        due: dict[int, int] = {}
        for percent in RUNGS:
            due[max(1, math.ceil(epochs * percent / 100))] = percent
        while self.epoch < epochs:
            losses = []
            for trainer in self.trainers:
                started = time.perf_counter()
                losses.append(trainer.step_epoch())
                took = time.perf_counter() - started
                on_fold(FoldEpoch(trainer.fold, trainer.epoch, losses[-1], trainer.clips, took))
            self.epoch += 1
            self.losses.append(losses)
            if self.epoch in due:
                logits, loss = self.out_of_fold(), float(np.mean(losses))
                yield RungResult(due[self.epoch], self.epoch, logits, loss)
            if self.epoch < epochs:
                on_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Everything that continues the trial elsewhere."""
        folds = [trainer.state_dict() for trainer in self.trainers]
        return {"epoch": self.epoch, "losses": self.losses, "folds": folds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`."""
        for trainer, of_fold in zip(self.trainers, state["folds"], strict=True):
            trainer.load_state_dict(of_fold)
        self.epoch = int(state["epoch"])
        self.losses = [list(epoch) for epoch in state["losses"]]

    def out_of_fold(self, enrolled: int | None = None) -> NDArray[np.float32]:
        """Return (N, K) logits: each clip by the network that did not train on its speaker.

        Of numbers, (S, K) along the recordings.
        """
        return self.task.out_of_fold(self._predictions(enrolled), self.plan.training, self.workers)

    def _predictions(self, enrolled: int | None) -> Iterator[FoldPredictions]:
        for trainer in self.trainers:
            rows = self.data.rows(trainer.fold, training=False)
            found = trainer.predict(rows, enrolled)
            if not np.isfinite(found).all():  # NaN stands for a clip without a prediction
                raise NonFiniteLossError(
                    f"The predictions of fold {trainer.fold} are not finite after epoch "
                    f"{trainer.epoch} (learning_rate {self.plan.training.learning_rate:g})."
                )
            yield rows, found
