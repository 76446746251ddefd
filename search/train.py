"""Training of one trial, in plain torch: a stepper a fold, all folds in lockstep. No Ray here.

A fold's held-out speakers are predicted at fixed shares of the schedule and choose
nothing: no epoch, no scaler, no statistic.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets.cache import ClipCache, RaggedFile
from datasets.index import ShardIndex
from datasets.splits import Folds
from models import ClipShape, Expert, build_expert, get_architecture
from models.augmentation import mixup, spec_augment, speed_perturb, time_crop
from models.expert import Encoder, arrange_memory
from models.frontends import frame_mask
from models.registry import ModelError
from search.workers import Workers

RUNGS = (25, 50, 75, 100)
"""Percentages of a trial's own schedule at which it is scored."""

_EVALUATION_CLIPS = 64


class NonFiniteLossError(RuntimeError):
    """Training diverged; the trial has failed, the search goes on."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How an expert is trained.

    Attributes:
        epochs: The whole schedule; every fold ends here, with its last weights.
        batch_size: Clips.
        learning_rate: Peak of AdamW's; a tenth of the schedule warms up, a cosine goes to 0.
        weight_decay: AdamW's.
        dropout: In front of the last layer.
        label_smoothing: Share of probability spread over all classes.
        mixup: α of Beta(α, α); 0 for none.
        spec_augment: Longest time mask as a share of the clip, and of the bands; 0 for none.
        speed_perturbation: Largest deviation from normal speed, such as 0.1; 0 for none.
        crop_seconds: Training sees a random part of at most this length; 0 for all.
    """

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    dropout: float = 0.2
    label_smoothing: float = 0.0
    mixup: float = 0.0
    spec_augment: float = 0.0
    speed_perturbation: float = 0.0
    crop_seconds: float = 0.0

    def __post_init__(self) -> None:
        """A setting is checked once, here."""
        for name in ("epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ModelError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("dropout", "label_smoothing", "spec_augment", "speed_perturbation"):
            if not 0 <= getattr(self, name) < 1:
                raise ModelError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


@dataclass(frozen=True)
class TrialPlan:
    """One configuration: architecture, its settings, and how it is trained."""

    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    training: TrainSettings = field(default_factory=TrainSettings)

    @staticmethod
    def of(
        architecture: str, settings: Mapping[str, Any], training: Mapping[str, Any]
    ) -> TrialPlan:
        """Fills what is missing with the architecture's known-good settings."""
        entry = get_architecture(architecture)
        known = [f.name for f in fields(TrainSettings)]
        unknown = [key for key in training if key not in known]
        if unknown:
            raise ModelError(f"Unknown training setting '{unknown[0]}'. Known: {', '.join(known)}.")
        return TrialPlan(
            architecture,
            {**entry.default, **settings},
            TrainSettings(**{**entry.training, **training}),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> TrialPlan:
        """Rebuilds a plan that was sent to a worker or stored in a run."""
        return TrialPlan(
            document["architecture"],
            dict(document["settings"]),
            TrainSettings(**document["training"]),
        )


class TrainingData:
    """A corpus as training sees it: front-end outputs by clip, and the folds.

    Args:
        cache: The decoded clips: of the whole corpus, or of this worker's part of it.
        folds: The protocol's split of the whole corpus.
        whole: The whole corpus's index, where `cache` holds a part.

    Attributes:
        position: (n,) row in the whole corpus of each of the cache's clips.
    """

    def __init__(self, cache: ClipCache, folds: Folds, whole: ShardIndex | None = None) -> None:
        self.cache, self.folds = cache, folds
        self.index = whole or cache.index
        row_of = {entry.clip: row for row, entry in enumerate(self.index.clips)}
        self.position = np.asarray([row_of[entry.clip] for entry in cache.index.clips], np.int64)
        self._files: dict[str, RaggedFile] = {}
        self._dense: dict[str, Tensor] = {}
        self._means: dict[tuple[str, str, int | None], Tensor] = {}

    @cached_property
    def shape(self) -> ClipShape:
        """What the clips look like; a kind that some clips lack does not count."""
        return clip_shape(self.index)

    def rows(self, fold: int, *, training: bool) -> NDArray[np.int64]:
        """The cache's rows of one side of a fold, without corrupt clips."""
        side = self.folds.train_rows(fold) if training else self.folds.test_rows(fold)
        return np.flatnonzero(np.isin(self.position, side) & ~self.cache.missing)

    def lengths(self, expert: Expert) -> NDArray[np.int64]:
        """(N,) length of each clip as the expert's first sequence input has it."""
        for kind in expert.kinds:
            file = self._derived(expert.encoder(kind))
            if file is not None and file.lengths.max() > 1:
                return np.asarray(file.lengths)
        return np.ones(len(self.cache.index.clips), np.int64)

    def fixed(self, expert: Expert, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """What `expert.preprocess` gives for some clips, read from the cache where it pays."""
        fixed: dict[str, Tensor] = {}
        for kind in expert.kinds:
            encoder = expert.encoder(kind)
            fixed[kind], fixed[f"{kind}_lengths"] = self._front_end_output(encoder, rows)
        return fixed

    def less_speaker_mean(
        self, expert: Expert, fixed: dict[str, Tensor], rows: NDArray[np.int64], clips: int | None
    ) -> dict[str, Tensor]:
        """Takes each speaker's own mean off what `fixed` returned (features, spectrograms).

        Args:
            expert: Whose front ends made it.
            fixed: Of the rows.
            rows: Clips.
            clips: How many of a speaker's clips the mean is taken of, by `enrolment_order`;
                None for all.
        """
        centred = dict(fixed)
        for kind in expert.kinds:
            x = fixed[kind]
            if x.ndim > 3:  # pictures
                continue
            speakers = [self.cache.index.clips[row].speaker for row in rows]
            means = torch.stack([self._speaker_mean(expert, kind, s, clips) for s in speakers])
            if x.ndim == 3:
                behind = frame_mask(fixed[f"{kind}_lengths"], x.shape[1])
                centred[kind] = (x - means[:, None]).masked_fill(behind[:, :, None], 0.0)
            else:
                centred[kind] = x - means
        return centred

    @cached_property
    def _enrolment_order(self) -> dict[str, NDArray[np.int64]]:
        return enrolment_order(self.cache.index, self.cache.missing)

    def _speaker_mean(self, expert: Expert, kind: str, speaker: str, clips: int | None) -> Tensor:
        encoder = expert.encoder(kind)
        key = (encoder.frontend.name, speaker, clips)
        if key not in self._means:
            rows = self._enrolment_order[speaker][:clips]
            x, lengths = self._front_end_output(encoder, rows)
            if x.ndim == 3:
                x = x[~frame_mask(lengths, x.shape[1])]
            self._means[key] = x.mean(dim=0)
        return self._means[key]

    def _front_end_output(self, encoder: Encoder, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        frontend = encoder.frontend
        file = self._derived(encoder)
        if frontend.name in self._dense:
            return self._dense[frontend.name][torch.from_numpy(rows)], torch.ones(
                len(rows), dtype=torch.int64
            )
        if file is not None:
            return file.gather(rows)
        with torch.no_grad():
            batch = self.cache.batch(rows, [encoder.kind])
            ones = torch.ones(len(rows), dtype=torch.int64)
            lengths = batch.get(f"{encoder.kind}_lengths", ones)
            values, lengths = frontend(batch[encoder.kind], lengths)
        return values, lengths

    def _derived(self, encoder: Encoder) -> RaggedFile | None:
        """The cached output of a front end that is worth it; vectors are then held in memory."""
        frontend, kind = encoder.frontend, encoder.kind
        if not frontend.worth_caching:
            return None
        if frontend.name in self._files:
            return self._files[frontend.name]

        # A copy: the expert's own front end may live on a GPU.
        on_cpu = copy.deepcopy(frontend).cpu()

        def compute(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                values, lengths = on_cpu(batch[kind], batch[f"{kind}_lengths"])
            if values.ndim == 2:  # vectors: items of one row
                values = values[:, None]
            return values, lengths

        file = self.cache.derive(frontend.name, kind, compute)
        if file.data.ndim == 2 and file.lengths.max() == 1:
            self._dense[frontend.name] = torch.from_numpy(np.array(file.data))
        self._files[frontend.name] = file
        return file


def enrolment_order(index: ShardIndex, missing: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """Speaker → rows of all their intact clips, in an order drawn once: the first N enrol them.

    Each speaker's is a draw of its own: names often encode labels, and one order for all would
    enrol every speaker by the same emotions.
    """
    rows: dict[str, list[int]] = {}
    for row in sorted(range(len(index.clips)), key=lambda r: index.clips[r].clip):
        if not missing[row]:
            rows.setdefault(index.clips[row].speaker, []).append(row)
    return {
        speaker: np.random.default_rng(list(speaker.encode())).permutation(
            np.asarray(mine, np.int64)
        )
        for speaker, mine in rows.items()
    }


def clip_shape(index: ShardIndex) -> ClipShape:
    """The shape of a corpus's clips."""
    everywhere = {
        kind: index.has(kind) == len(index.clips) for kind in ("audio", "video", "features")
    }
    return ClipShape(
        num_classes=len(index.labels),
        sample_rate_hz=index.sample_rate_hz if everywhere["audio"] else 0,
        seconds=float(np.mean([e.samples for e in index.clips])) / index.sample_rate_hz or 3.0,
        frames=max(e.frames for e in index.clips) if everywhere["video"] else 0,
        frame_size=index.frame_size,
        num_features=len(index.feature_names) if everywhere["features"] else 0,
    )


def choose_precision(
    architecture: str, settings: Mapping[str, Any], device: str, asked: str = "auto"
) -> str:
    """bfloat16 where the processor computes it and convolutions dominate, else float32."""
    if asked != "auto":
        return asked
    if device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    parts = [
        architecture,
        *(
            p["architecture"]
            for p in settings.values()
            if isinstance(p, Mapping) and "architecture" in p
        ),
    ]
    convolutional = any(get_architecture(name).convolutional for name in parts)
    return (
        "bfloat16"
        if convolutional and torch.backends.mkldnn.is_available() and _cpu_has_bfloat16()
        else "float32"
    )


def _cpu_has_bfloat16() -> bool:
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("bf16")
    )


def crop_seconds(plan: TrialPlan, kind: str) -> float:
    """How much of a clip training sees: the plan's, or what early fusion's part is known good with."""
    part = plan.settings.get(kind)
    if plan.training.crop_seconds or not isinstance(part, Mapping):
        return plan.training.crop_seconds
    return float(get_architecture(part["architecture"]).training.get("crop_seconds", 0.0))


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

    Attributes:
        parts: In how many a batch is computed; 1 unless the memory did not suffice.
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
    ) -> None:
        self.plan, self.data, self.fold, self.seed = plan, data, fold, seed
        self.alone = alone
        self.workers, self.by_speaker = workers or Workers(), by_speaker
        self.device, self.precision = torch.device(device), precision
        self.epoch = 0
        self._reseed(-1)
        settings = plan.training
        self.expert = build_expert(
            plan.architecture, plan.settings, data.shape, dropout=settings.dropout
        )
        self.rows = data.rows(fold, training=True)
        if not len(self.rows):
            raise ModelError(
                f"Worker {self.workers.rank} of {self.workers.count} has no training clip of fold "
                f"{fold} in its shards. Prepare smaller shards, or take fewer workers a trial."
            )
        self.expert.to(self.device)
        self._fit_statistics()
        arrange_memory(self.expert)
        self._parameters = list(self.expert.parameters())
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.expert, settings.weight_decay),
            lr=settings.learning_rate,
            fused=True,
        )
        self.parts = 1
        self._evaluation_clips = _EVALUATION_CLIPS
        self.network = self.workers.wrap(_Logits(self.expert))
        # As many on every worker, however its part of the shards turned out.
        self.clips = int(self.workers.sum(torch.tensor(len(self.rows))))
        self.steps = -(-self.clips // settings.batch_size)
        self._lengths = data.lengths(self.expert)

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
        return mean

    def predict(self, rows: NDArray[np.int64], enrolled: int | None = None) -> NDArray[np.float32]:
        """(n, K) logits of some clips, in float32.

        Args:
            rows: The clips.
            enrolled: By how many clips their speakers are normalised, where they are.
        """
        self.expert.eval()
        self.workers.share_buffers(self.expert)
        order = np.argsort(self._lengths[rows], kind="stable")
        logits = np.empty((len(rows), self.data.shape.num_classes), np.float32)
        start = 0
        while start < len(rows):
            part = order[start : start + self._evaluation_clips]
            found = self._classify(rows[part], enrolled)
            if found is None:
                self._evaluation_clips = len(part) // 2
                continue
            logits[part] = found
            start += len(part)
        return logits

    def _classify(
        self, rows: NDArray[np.int64], enrolled: int | None
    ) -> NDArray[np.float32] | None:
        """(n, K) logits; None if the memory did not suffice for so many clips."""
        try:
            with torch.inference_mode():
                logits = self.expert.classify(self._fixed(rows, enrolled))
                return np.asarray(logits.float().cpu().numpy())
        except Exception as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
        _free_memory(self.device)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything that continues the training elsewhere."""
        return {
            "expert": self.expert.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "parts": self.parts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`."""
        self.parts = int(state.get("parts", 1))
        self.expert.load_state_dict(state["expert"])
        self.optimizer.load_state_dict(state["optimizer"])
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
                own = self._fixed(self.rows)[kind].cpu()
                encoder.fit_statistics(self.workers.concatenate(own))

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

    def _fixed(self, rows: NDArray[np.int64], enrolled: int | None = None) -> dict[str, Tensor]:
        fixed = self.data.fixed(self.expert, rows)
        if self.by_speaker:
            fixed = self.data.less_speaker_mean(self.expert, fixed, rows, enrolled)
        return {name: x.to(self.device) for name, x in fixed.items()}

    def _training_inputs(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        settings = self.plan.training
        # A speaker's mean is of clips at their own speed.
        if settings.speed_perturbation and "audio" in self.expert.kinds and not self.by_speaker:
            batch = self.data.cache.batch(rows, self.expert.kinds)
            factor = 1.0 + settings.speed_perturbation * (2.0 * float(torch.rand(())) - 1.0)
            batch["audio"], batch["audio_lengths"] = speed_perturb(
                batch["audio"], batch["audio_lengths"], factor
            )
            inputs = self.expert.preprocess({name: x.to(self.device) for name, x in batch.items()})
        else:
            inputs = self._fixed(rows)
        for kind in self.expert.kinds:
            rate = self.expert.encoder(kind).frontend.frames_per_second
            if not rate:
                continue
            x, lengths = inputs[kind], inputs[f"{kind}_lengths"]
            if seconds := crop_seconds(self.plan, kind):
                x, lengths = time_crop(x, lengths, round(seconds * rate))
            if settings.spec_augment:
                share = settings.spec_augment
                x = spec_augment(x, lengths, time_share=share, band_share=share)
            inputs[kind], inputs[f"{kind}_lengths"] = x, lengths
        return inputs

    def _step(self, rows: NDArray[np.int64], step: int) -> Tensor:
        settings = self.plan.training
        rate = settings.learning_rate * learning_rate_share(step, self.steps * settings.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradient(rows)
        while loss is None:
            loss = self._gradient(rows)
        self._update()
        return loss

    def _examples(self, rows: NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor]:
        """A batch of augmented inputs, and the (B, K) probabilities wanted of them."""
        settings, classes = self.plan.training, self.data.shape.num_classes
        inputs = self._training_inputs(rows)
        targets = torch.from_numpy(self.data.cache.targets[rows]).to(self.device)
        wanted = nn.functional.one_hot(targets, classes).float()
        wanted = wanted * (1 - settings.label_smoothing) + settings.label_smoothing / classes
        if settings.mixup:
            inputs, wanted = mixup(inputs, wanted, settings.mixup)
        return inputs, wanted

    def _loss(self, inputs: dict[str, Tensor], wanted: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.network(inputs)
        return nn.functional.cross_entropy(logits.float(), wanted)

    def _gradient(self, rows: NDArray[np.int64]) -> Tensor | None:
        """Of a batch, in as many parts as it takes; None if the memory did not suffice for them."""
        try:
            inputs, wanted = self._examples(rows)
            self.optimizer.zero_grad(set_to_none=True)
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
        _free_memory(self.device)
        return None

    def _may_halve(self, clips: int) -> bool:
        """Normalisation needs two clips; fellow workers would wait for one that starts again."""
        return self.alone and self.workers.count == 1 and clips // (2 * self.parts) >= 2

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self._parameters, 5.0)
        self.optimizer.step()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is the device's memory, or this machine's, that did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


class _Logits(nn.Module):
    """An expert behind its front ends, as the one call that averaging of gradients watches."""

    def __init__(self, expert: Expert) -> None:
        super().__init__()
        self.expert = expert

    def forward(self, fixed: dict[str, Tensor]) -> Tensor:
        """What `preprocess` returned → (B, K) logits."""
        return self.expert.classify(fixed)


def learning_rate_share(step: int, total: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine to zero."""
    warmup = max(1, total // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _parameter_groups(expert: Expert, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and normalisation are not decayed."""
    matrices = [p for p in expert.parameters() if p.ndim > 1]
    vectors = [p for p in expert.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class RungResult:
    """What a trial has reached at a rung.

    Attributes:
        percent: Of its schedule.
        epoch: Epochs done.
        logits: (N, K) out-of-fold logits, NaN for clips without a prediction.
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
        plan: TrialPlan,
        data: TrainingData,
        *,
        seed: int,
        device: str = "cpu",
        precision: str = "auto",
        workers: Workers | None = None,
        by_speaker: bool = False,
        alone: bool = True,
    ) -> None:
        self.plan, self.data = plan, data
        self.workers = workers or Workers()
        self.epoch = 0
        self.losses: list[list[float]] = []
        chosen = choose_precision(plan.architecture, plan.settings, device, precision)
        self.precision = chosen
        self.trainers = [
            FoldTrainer(
                plan,
                data,
                fold,
                seed=seed,
                device=device,
                precision=chosen,
                workers=self.workers,
                by_speaker=by_speaker,
                alone=alone,
            )
            for fold in range(data.folds.count)
        ]

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
        """(N, K) logits: each clip by the network that did not train on its speaker."""
        count = len(self.data.index.clips)
        logits = np.zeros((count, self.data.shape.num_classes), np.float32)
        times = np.zeros(count, np.int64)
        for trainer in self.trainers:
            rows = self.data.rows(trainer.fold, training=False)
            logits[self.data.position[rows]] = trainer.predict(rows, enrolled)
            times[self.data.position[rows]] += 1
        everyone = self.workers.sum(torch.from_numpy(times)).numpy()
        assert everyone.max() == 1, "a clip was predicted twice"
        logits = self.workers.sum(torch.from_numpy(logits)).numpy()
        logits[everyone == 0] = np.nan
        return logits
