"""Training of one trial, in plain torch: a stepper a fold, all folds in lockstep. No Ray here.

A fold's held-out speakers are predicted at fixed shares of the schedule and choose
nothing: no epoch, no scaler, no statistic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import Expert, build_expert
from models.augmentation import mixup
from models.build import arrange_memory
from models.frontends.masks import frame_mask
from models.pretrained import share_frozen
from models.registry import ModelError
from search.data.training_data import TrainingData, augment
from search.training.device import free_memory, is_out_of_memory
from search.training.distributed import Workers
from search.training.losses import class_balanced_weights, concordance_loss, cross_entropy
from search.training.optimizer import Optimizer
from search.training.weight_averaging import AveragedWeights
from search.trial_config import TrainSettings, TrialPlan

_EVALUATION_CLIPS = 64


class NonFiniteLossError(RuntimeError):
    """Training diverged; the trial has failed, the search goes on."""


class FoldTrainer:
    """Trains the network of one fold, an epoch a call.

    Args:
        plan: What to train.
        data: The corpus.
        fold: Whose clips are held out.
        seed: Weights, order and augmentation are a function of seed, fold and epoch (and,
            with several workers, of the worker) alone, so that folds may be interleaved and resumed at will.
        device: cpu or cuda.
        precision: float32 or bfloat16 (autocast; weights and predictions stay float32).
        workers: The processes that train it together, each on its part of the clips; a
            batch is divided among them.
        by_speaker: Take each speaker's own mean off the inputs (speaker enrolment).
        alone: The device's memory is this trial's own: where it does not suffice, batches are
            computed in parts, whose gradients add up. Otherwise that is an error, and the trial
            can be given more of the device.
        like: Another fold's trainer, whose frozen backbones serve this one too.

    Attributes:
        parts: In how many a batch is computed; 1 unless the memory did not suffice.
        alone_now: Whether early fusion's parts train alone in this step.
    """

    def __init__(
        self,
        plan: TrialPlan,
        data: TrainingData,
        fold: int,
        *,
        seed: int,
        device: str = "cpu",
        precision: str = "float32",
        workers: Workers | None = None,
        by_speaker: bool = False,
        alone: bool = True,
        like: FoldTrainer | None = None,
    ) -> None:
        self.plan, self.data, self.fold, self.seed = plan, data, fold, seed
        self.alone = alone
        self.workers, self.by_speaker = workers or Workers(), by_speaker
        self.device, self.precision = torch.device(device), precision
        self.epoch = 0
        self._reseed(-1)
        settings = plan.training
        self.expert = build_expert(
            plan.architecture,
            plan.settings,
            data.shape,
            dropout=settings.dropout,
            weights=self._weights_to_read(like),
        )
        if like is not None:
            share_frozen(like.expert, self.expert)
        self.rows = data.rows(fold, training=True)
        if not len(self.rows):
            raise ModelError(
                f"Worker {self.workers.rank} of {self.workers.count} has no training clip of fold "
                f"{fold} in its shards. Prepare smaller shards, or take fewer workers a trial."
            )
        self.expert.to(self.device)
        self._fit_statistics()
        self._fit_answers()
        arrange_memory(self.expert)
        # As many on every worker, however its part of the shards turned out.
        self.clips = int(self.workers.sum(torch.tensor(len(self.rows))))
        self.steps = -(-self.clips // settings.batch_size)
        self.heads = Heads(self.expert, data.shape.num_classes) if self._alone_steps else None
        self.optimizer = Optimizer(
            self.expert, settings, self.steps * settings.epochs, further=self.heads
        )
        self.averaged = AveragedWeights(settings.averaging, settings.epochs)
        self.parts, self.alone_now = 1, False
        self._evaluation_clips = _EVALUATION_CLIPS
        self.network = self.workers.wrap(
            _Logits(self.expert, self.heads),
            some_unused=bool(self.heads or self.optimizer.stages or self._reads_steps),
        )
        self._class_weights = self._balance()
        self._lengths = data.lengths(self.expert)

    def _weights_to_read(self, like: FoldTrainer | None) -> Path | None:
        """None where nothing is to be read: no pretrained part, or all of them are shared."""
        shared = like is not None and self.plan.modes == {"frozen"}
        return self.data.weights if self.plan.modes and not shared else None

    @property
    def predictor(self) -> Expert:
        """The network that predicts, and is kept: the averaged one, where there is an average."""
        return self.averaged.expert or self.expert

    @property
    def _reads_steps(self) -> bool:
        """Fusion over time, and traces, leave an encoder's own pooling out."""
        return self.expert.answers == "traces" or (
            self.expert.fusion is not None and self.expert.fusion.over_time
        )

    @property
    def _alone_steps(self) -> int:
        """How many steps early fusion's parts train alone."""
        settings = self.plan.training
        if len(self.expert.kinds) == 1:
            return 0
        return int(settings.alone_share * settings.epochs) * self.steps

    def step_epoch(self) -> float:
        """One pass over the training side; returns the mean loss.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite.
        """
        generator = self._reseed(self.epoch)
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

    @property
    def delay(self) -> int:
        """Steps by which raters are late."""
        traces, seconds = self.data.traces, self.plan.training.label_delay
        return round(seconds / traces.step_seconds) if traces and traces.over_time else 0

    def predict(self, rows: NDArray[np.int64], enrolled: int | None = None) -> NDArray[np.float32]:
        """(n, K) logits or values of some clips, in float32; of traces (n, S, K), zero behind their ends.

        Args:
            rows: The clips.
            enrolled: By how many clips their speakers are normalised, where they are.
        """
        self.predictor.eval()
        self.workers.share_buffers(self.predictor)
        order = np.argsort(self._lengths[rows], kind="stable")
        classes = self.data.shape.num_classes
        shape: tuple[int, ...] = (len(rows), classes)
        if self.expert.answers == "traces":
            assert self.data.traces is not None
            shape = (len(rows), int(self.data.traces.steps[rows].max()), classes)
        logits = np.zeros(shape, np.float32)
        start = 0
        while start < len(rows):
            part = order[start : start + self._evaluation_clips]
            found = self._classify(rows[part], enrolled)
            if found is None:
                self._evaluation_clips = len(part) // 2
                continue
            if found.ndim == 3:
                logits[part, : found.shape[1]] = found
            else:
                logits[part] = found
            start += len(part)
        return logits

    def _classify(
        self, rows: NDArray[np.int64], enrolled: int | None
    ) -> NDArray[np.float32] | None:
        """What the network says; None if the memory did not suffice for so many clips."""
        try:
            with torch.inference_mode():
                logits = self.predictor.answer(self._fixed(rows, enrolled))
                return np.asarray(logits.float().cpu().numpy())
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
            "parts": self.parts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`."""
        self.parts = int(state["parts"])
        self.expert.load_learned_state(state["expert"])
        if self.heads:
            self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged.load_state_dict(state["averaged"], self.expert)
        self.epoch = int(state["epoch"])

    def _reseed(self, epoch: int) -> np.random.Generator:
        # Weights are the same on every worker; order and augmentation are each one's own.
        own = (self.workers.rank,) if epoch >= 0 and self.workers.rank else ()
        sequence = np.random.SeedSequence((self.seed, self.fold, epoch + 1, *own))
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        return np.random.default_rng(sequence)

    def _fit_statistics(self) -> None:
        for kind in self.expert.kinds:
            encoder = self.expert.encoder(kind)
            if encoder.counts_statistics:
                fixed = self._fixed(self.rows)
                own = fixed[kind].cpu()
                if own.ndim == 3:  # frames of all clips, without what lies behind their ends
                    own = own[~frame_mask(fixed[f"{kind}_lengths"].cpu(), own.shape[1])][:, None]
                every = self.workers.concatenate(own)
                encoder.fit_statistics(every, torch.ones(len(every), dtype=torch.int64))

    def _fit_answers(self) -> None:
        """Where the numbers lie that are wanted, by the training side."""
        if self.data.traces is not None:
            values, known = self.data.traces.targets(self.rows)
            self.expert.fit_answers(torch.from_numpy(values[known]).to(self.device))

    def _balance(self) -> Tensor | None:
        """(K,) weights of the classes, counted on the training side."""
        beta, classes = self.plan.training.class_balance, self.data.shape.num_classes
        if not beta or self.data.traces is not None:
            return None
        counts = np.bincount(self.data.cache.targets[self.rows], minlength=classes)
        everyone = self.workers.sum(torch.from_numpy(counts)).numpy()
        return torch.from_numpy(class_balanced_weights(everyone, beta)).to(self.device)

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

    def _fixed(
        self,
        rows: NDArray[np.int64],
        enrolled: int | None = None,
        *,
        changed: TrainSettings | None = None,
    ) -> dict[str, Tensor]:
        fixed = self.data.fixed(self.expert, rows, changed=changed)
        if self.by_speaker:
            fixed = self.data.less_speaker_mean(self.expert, fixed, rows, enrolled)
        return {name: x.to(self.device) for name, x in fixed.items()}

    def _step(self, rows: NDArray[np.int64], step: int) -> Tensor:
        self.alone_now = step < self._alone_steps
        self.optimizer.set_rate(step)
        loss = self._gradient(rows)
        while loss is None:
            loss = self._gradient(rows)
        self._update()
        return loss

    def _examples(self, rows: NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor]:
        """A batch of augmented inputs, and what is wanted of them.

        Of classes (B, K) probabilities; of numbers (B, S, K + 1), where the last says what counts.
        """
        settings, classes = self.plan.training, self.data.shape.num_classes
        # A speaker's mean is of clips as they were recorded.
        inputs = self._fixed(rows, changed=None if self.by_speaker else settings)
        augment(inputs, self.expert, self.plan)
        if self.data.traces is not None:
            values, known = self.data.traces.targets(rows, self.delay)
            both = np.concatenate([values, known[:, :, None]], axis=2).astype(np.float32)
            return inputs, torch.from_numpy(both).to(self.device)
        wanted = self.data.wanted(rows).to(self.device)
        wanted = wanted * (1 - settings.label_smoothing) + settings.label_smoothing / classes
        if settings.mixup:
            inputs, wanted = mixup(inputs, wanted, settings.mixup)
        return inputs, wanted

    def _loss(self, inputs: dict[str, Tensor], wanted: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            answers = self.network(inputs, self.alone_now)
        if self.data.traces is not None:
            told = [said.unflatten(0, (-1, 1)) if said.ndim == 2 else said for said in answers]
            # Of a part of a batch, the longest clip may be shorter than the batch's.
            wanted = wanted[:, : told[0].shape[1]]
            values, known = wanted[..., :-1], wanted[..., -1] > 0
            return torch.stack([concordance_loss(said, values, known) for said in told]).mean()
        losses = [
            cross_entropy(
                logits,
                wanted,
                focal_gamma=self.plan.training.focal_gamma,
                class_weights=self._class_weights,
            )
            for logits in answers
        ]
        return torch.stack(losses).mean()

    def _gradient(self, rows: NDArray[np.int64]) -> Tensor | None:
        """Of a batch, in as many parts as it takes; None if the memory did not suffice for them."""
        try:
            inputs, wanted = self._examples(rows)
            self.optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64)
            for part in torch.arange(len(rows)).chunk(self.parts):
                here = slice(int(part[0]), int(part[-1]) + 1)
                loss = self._loss({k: x[here] for k, x in inputs.items()}, wanted[here])
                loss = loss * (len(part) / len(rows))
                self._backward(loss)
                total += loss.detach().double().cpu()
            return total
        except Exception as error:
            if not is_out_of_memory(error) or not self._may_halve(len(rows)):
                raise
        self.parts *= 2
        free_memory(self.device)
        return None

    def _may_halve(self, clips: int) -> bool:
        """Normalisation needs two clips; fellow workers would wait for one that starts again."""
        return self.alone and self.workers.count == 1 and clips // (2 * self.parts) >= 2

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.update()
        self.averaged.after_step(self.expert)


class Heads(nn.ModuleDict):
    """A classifier for each part of early fusion, while the parts train alone."""

    def __init__(self, expert: Expert, num_classes: int) -> None:
        over_time = expert.answers == "traces"
        kinds = {
            kind: encoder.steps_dim if over_time else encoder.embedding_dim
            for kind in expert.kinds
            for encoder in [expert.encoder(kind)]
        }
        super().__init__({kind: nn.Linear(dim, num_classes) for kind, dim in kinds.items()})
        self.to(expert.classifier.weight.device)


class _Logits(nn.Module):
    """An expert behind its front ends, as the one call that averaging of gradients watches."""

    def __init__(self, expert: Expert, heads: Heads | None) -> None:
        super().__init__()
        self.expert, self.heads = expert, heads

    def forward(self, fixed: dict[str, Tensor], alone: bool) -> list[Tensor]:
        """What `preprocess` returned → (B, K) logits: the expert's, or of each part alone."""
        if not alone or self.heads is None:
            return [self.expert.answer(fixed)]
        part = self.expert.stream if self.expert.answers == "traces" else self.expert.vector
        answers = [
            head(self.expert.dropout(part(fixed, kind))) for kind, head in self.heads.items()
        ]
        if self.expert.answers == "classes":
            return answers
        return [answer * self.expert.spread + self.expert.centre for answer in answers]
