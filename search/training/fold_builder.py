"""Build the trainer of one fold: its network, with statistics of the training side alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models import Expert, build_expert
from models.build import arrange_memory
from models.frontends.masks import frame_mask
from models.pretrained import share_frozen
from models.registry import ModelError
from search.data.training_data import TrainingData
from search.training.distributed import Workers
from search.training.fold_network import FoldNetwork, Heads, reads_steps
from search.training.fold_trainer import FoldTrainer, reseed, steps_alone, steps_of
from search.training.micro_batches import MicroBatches
from search.training.optimizer import Optimizer
from search.training.task import task_of
from search.training.weight_averaging import AveragedWeights
from search.trial_config import TrialConfig


def build_fold(
    plan: TrialConfig,
    data: TrainingData,
    fold: int,
    *,
    seed: int,
    device: str = "cpu",
    precision: str = "float32",
    workers: Workers | None = None,
    by_speaker: bool = False,
    may_split: bool = True,
    like: FoldTrainer | None = None,
) -> FoldTrainer:
    """Build the trainer of one fold.

    Args:
        plan: What to train.
        data: The corpus.
        fold: Whose clips are held out.
        seed: Of weights, order and augmentation.
        device: cpu or cuda.
        precision: float32 or bfloat16.
        workers: The processes that train it together; a batch is divided among them.
        by_speaker: Subtract each speaker's own mean from the inputs (speaker adaptation).
        may_split: Whether the device's memory is this trial's own: where it does not suffice, batches
            are computed in parts. Otherwise that is an error.
        like: Another fold's trainer, whose frozen backbones serve this one too.

    Raises:
        ModelError: An architecture that the clips cannot feed, or a worker without training clips.
    """
    workers, settings = workers or Workers(), plan.training
    reseed(seed, fold, -1, workers)
    expert = build_expert(
        plan.architecture,
        plan.settings,
        data.shape,
        dropout=settings.dropout,
        weights=_weights_to_read(plan, data, like),
    )
    if like is not None:
        share_frozen(like.expert, expert)
    rows = _training_rows(data, fold, workers)
    on = torch.device(device)
    expert.to(on)
    _fit_statistics(expert, data, rows, workers, by_speaker)
    task = task_of(data)
    task.fit_answers(expert, rows)
    arrange_memory(expert)
    clips = int(workers.sum(torch.tensor(len(rows))))
    steps = steps_of(clips, settings)
    alone = steps_alone(expert, settings, steps)
    heads = Heads(expert, data.shape.num_classes) if alone else None
    optimizer = Optimizer(expert, settings, steps * settings.epochs, further=heads)
    some_unused = bool(heads or optimizer.stages or reads_steps(expert))
    network = workers.wrap(FoldNetwork(expert, heads), some_unused=some_unused)
    class_weights = task.class_weights(rows, settings, workers)
    return FoldTrainer(
        plan=plan,
        fold=fold,
        seed=seed,
        rows=rows,
        clips=clips,
        expert=expert,
        heads=heads,
        network=network,
        task=task,
        class_weights=None if class_weights is None else class_weights.to(on),
        front_ends=data.front_ends,
        optimizer=optimizer,
        averaged=AveragedWeights(settings.averaging, settings.epochs),
        # Fellow workers would wait for one that starts a batch again.
        micro_batches=MicroBatches(on, may_split=may_split and workers.count == 1),
        device=on,
        precision=precision,
        workers=workers,
        by_speaker=by_speaker,
    )


def _weights_to_read(
    plan: TrialConfig, data: TrainingData, like: FoldTrainer | None
) -> Path | None:
    """None where nothing is to be read: no pretrained part, or all of them are shared."""
    shared = like is not None and plan.modes == {"frozen"}
    return data.weights if plan.modes and not shared else None


def _training_rows(data: TrainingData, fold: int, workers: Workers) -> NDArray[np.int64]:
    rows = data.rows(fold, training=True)
    if not len(rows):
        raise ModelError(
            f"Worker {workers.rank} of {workers.count} has no training clip of fold "
            f"{fold} in its shards. Prepare smaller shards, or take fewer workers a trial."
        )
    return rows


def _fit_statistics(
    expert: Expert,
    data: TrainingData,
    rows: NDArray[np.int64],
    workers: Workers,
    by_speaker: bool,
) -> None:
    """Count the encoders' statistics, such as a scaler's, over the training side of all workers."""
    counting = [k for k in expert.kinds if expert.encoder(k).counts_statistics]
    for kind in counting:
        inputs = data.front_ends.inputs(expert, rows)
        if by_speaker:
            inputs = data.front_ends.without_speaker_means(expert, inputs, rows, None)
        own = inputs[kind].cpu()
        if own.ndim == 3:  # frames of all clips, without what lies behind their ends
            own = own[~frame_mask(inputs[f"{kind}_lengths"].cpu(), own.shape[1])][:, None]
        every = workers.concatenate(own)
        expert.encoder(kind).fit_statistics(every, torch.ones(len(every), dtype=torch.int64))
