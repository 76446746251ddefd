"""Training of one fold's network, in plain torch, an epoch a call. No Ray here.

A fold's held-out speakers are predicted at fixed shares of the schedule and choose
nothing: no epoch, no scaler, no statistic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import Expert
from models.augmentation import mixup
from search.data.front_end_cache import FrontEndCache
from search.training.augmentation import augment
from search.training.device import free_memory, is_out_of_memory
from search.training.distributed import Workers
from search.training.fold_network import Heads, autocast
from search.training.micro_batches import MicroBatches
from search.training.optimizer import Optimizer
from search.training.task import TrainingTask
from search.training.weight_averaging import AveragedWeights
from search.trial_config import TrainSettings, TrialConfig

_EVALUATION_CLIPS = 64


class NonFiniteLossError(RuntimeError):
    """Training diverged; the trial has failed, the search goes on."""


class FoldTrainer:
    """Trains the network of one fold; `build_fold` puts one together.

    Args:
        plan: What is trained.
        fold: Whose clips are held out.
        seed: Order and augmentation are a function of seed, fold and epoch (and, with several
            workers, of the worker) alone, so that folds may be interleaved and resumed at will.
        rows: (n,) training clips of this worker.
        clips: Training clips of all workers.
        expert: The network.
        heads: Of early fusion's parts; None where they never train alone.
        network: Both as one call, whose gradients are averaged over the workers.
        task: Targets, loss and shape of predictions.
        class_weights: (K,) on the device; None where classes are not weighted.
        front_ends: What front ends make of the clips.
        optimizer: Of the network.
        averaged: Average of its weights.
        micro_batches: Adds up the gradients of a batch.
        device: Where it trains.
        precision: float32 or bfloat16 (autocast; weights and predictions stay float32).
        workers: The processes that train it together, each on its part of the clips.
        by_speaker: Whether each speaker's own mean is subtracted from the inputs.
    """

    def __init__(
        self,
        *,
        plan: TrialConfig,
        fold: int,
        seed: int,
        rows: NDArray[np.int64],
        clips: int,
        expert: Expert,
        heads: Heads | None,
        network: nn.Module,
        task: TrainingTask,
        class_weights: Tensor | None,
        front_ends: FrontEndCache,
        optimizer: Optimizer,
        averaged: AveragedWeights,
        micro_batches: MicroBatches,
        device: torch.device,
        precision: str,
        workers: Workers,
        by_speaker: bool,
    ) -> None:
        self.plan, self.fold, self.seed = plan, fold, seed
        self.rows, self.clips = rows, clips
        self.expert, self.heads, self.network = expert, heads, network
        self.task, self.class_weights, self.front_ends = task, class_weights, front_ends
        self.optimizer, self.averaged, self.micro_batches = optimizer, averaged, micro_batches
        self.device, self.precision = device, precision
        self.workers, self.by_speaker = workers, by_speaker
        self.epoch = 0
        self._evaluation_clips = _EVALUATION_CLIPS
        self._lengths = front_ends.lengths(expert)

    @property
    def steps(self) -> int:
        """Steps of an epoch; as many on every worker, however its part of the shards turned out."""
        return steps_of(self.clips, self.plan.training)

    @property
    def predictor(self) -> Expert:
        """The network that predicts, and is kept: the averaged one, where there is an average."""
        return self.averaged.expert or self.expert

    def step_epoch(self) -> float:
        """Train one epoch; return the mean loss.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite.
        """
        generator = reseed(self.seed, self.fold, self.epoch, self.workers)
        self.expert.train()
        totals = torch.zeros(2, dtype=torch.float64)
        for step, rows in enumerate(self._batches(generator)):
            loss = self._step(rows, self.epoch * self.steps + step)
            totals += torch.stack([loss * len(rows), torch.tensor(float(len(rows)))])
        loss_sum, clips = self.workers.sum(totals).tolist()
        mean = float(loss_sum / clips)
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"The loss of fold {self.fold} is {mean} in epoch {self.epoch + 1} "
                f"(learning_rate {self.plan.training.learning_rate:g})."
            )
        self.epoch += 1
        self.optimizer.end_epoch(mean)
        self.averaged.after_epoch(self.expert, self.epoch)
        return mean

    def predict(self, rows: NDArray[np.int64], enrolled: int | None = None) -> NDArray[np.float32]:
        """Return (n, K) logits or values of some clips in float32; of traces (n, S, K), zero behind their ends.

        Args:
            rows: The clips.
            enrolled: By how many clips their speakers are normalised, where they are.
        """
        self.predictor.eval()
        self.workers.share_buffers(self.predictor)
        order = np.argsort(self._lengths[rows], kind="stable")
        predictions = self.task.empty_predictions(rows)
        start = 0
        while start < len(rows):
            part = order[start : start + self._evaluation_clips]
            found = self._classify(rows[part], enrolled)
            if found is None:
                self._evaluation_clips = len(part) // 2
                continue
            if found.ndim == 3:
                predictions[part, : found.shape[1]] = found
            else:
                predictions[part] = found
            start += len(part)
        return predictions

    def _classify(
        self, rows: NDArray[np.int64], enrolled: int | None
    ) -> NDArray[np.float32] | None:
        """The network's answers; None if the memory did not suffice for so many clips."""
        try:
            with torch.inference_mode():
                answers = self.predictor.answer(self._inputs(rows, enrolled))
                return np.asarray(answers.float().cpu().numpy())
        except Exception as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
        free_memory(self.device)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything that continues the training elsewhere."""
        return {
            "expert": self.expert.learned_state(),
            "heads": self.heads.state_dict() if self.heads else None,
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.state_dict(),
            "epoch": self.epoch,
            "parts": self.micro_batches.parts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.micro_batches.parts = int(state["parts"])
        self.expert.load_learned_state(state["expert"])
        if self.heads:
            self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged.load_state_dict(state["averaged"], self.expert)
        self.epoch = int(state["epoch"])

    def _batches(self, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Shuffled, whatever the lengths.

        Batches of clips of like length would save padding, but their statistics are not those
        that batch normalisation meets later.
        """
        size = -(-self.plan.training.batch_size // self.workers.count)
        order = self._order(generator, size)
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _order(self, generator: np.random.Generator, size: int) -> NDArray[np.int64]:
        """The clips of an epoch. Alone, every clip once; a part is cut or repeated to fit."""
        order = generator.permutation(self.rows)
        if self.workers.count == 1:
            return order
        while len(order) <= (self.steps - 1) * size:
            order = np.concatenate([order, generator.permutation(self.rows)])
        return order[: self.steps * size]

    def _inputs(
        self,
        rows: NDArray[np.int64],
        enrolled: int | None = None,
        *,
        changed: TrainSettings | None = None,
    ) -> dict[str, Tensor]:
        inputs = self.front_ends.inputs(self.expert, rows, changed=changed)
        if self.by_speaker:
            inputs = self.front_ends.without_speaker_means(self.expert, inputs, rows, enrolled)
        inputs |= self.task.inputs(rows)
        return {name: x.to(self.device) for name, x in inputs.items()}

    def _step(self, rows: NDArray[np.int64], step: int) -> Tensor:
        parts_alone = step < steps_alone(self.expert, self.plan.training, self.steps)
        self.optimizer.set_rate(step)
        loss = self._gradient(rows, parts_alone)
        self.optimizer.update()
        self.averaged.after_step(self.expert)
        return loss

    def _gradient(self, rows: NDArray[np.int64], parts_alone: bool = False) -> Tensor:
        return self.micro_batches.backward(
            len(rows),
            lambda: self._examples(rows),
            lambda inputs, targets: self._loss(inputs, targets, parts_alone),
        )

    def _examples(self, rows: NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor]:
        """Zero gradients, a batch of augmented inputs, and its targets."""
        settings = self.plan.training
        # A speaker's mean is of clips as they were recorded.
        inputs = self._inputs(rows, changed=None if self.by_speaker else settings)
        augment(inputs, self.expert, self.plan)
        targets = self.task.targets(rows, settings).to(self.device)
        if settings.mixup and self.task.mixes:
            inputs, targets = mixup(inputs, targets, settings.mixup)
        self.optimizer.zero_grad()
        return inputs, targets

    def _loss(self, inputs: dict[str, Tensor], targets: Tensor, parts_alone: bool) -> Tensor:
        with autocast(self.device, self.precision):
            answers = self.network(inputs, parts_alone)
        return self.task.loss(answers, targets, self.plan.training, self.class_weights)


def steps_of(clips: int, settings: TrainSettings) -> int:
    """Return the steps of an epoch over so many clips."""
    return -(-clips // settings.batch_size)


def steps_alone(expert: Expert, settings: TrainSettings, steps: int) -> int:
    """Return for how many steps early fusion's parts train alone; 0 of a single encoder."""
    if len(expert.kinds) == 1:
        return 0
    return int(settings.alone_share * settings.epochs) * steps


def reseed(seed: int, fold: int, epoch: int, workers: Workers) -> np.random.Generator:
    """Seed torch, and return numpy's generator; epoch -1 is for the weights.

    Weights are the same on every worker; order and augmentation are each one's own.
    """
    own = (workers.rank,) if epoch >= 0 and workers.rank else ()
    sequence = np.random.SeedSequence((seed, fold, epoch + 1, *own))
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    return np.random.default_rng(sequence)
