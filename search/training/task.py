"""Classification or regression in training: targets, loss, and out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.targets import Traces
from models import Expert
from search.data.training_data import TrainingData
from search.training.distributed import Workers
from search.training.losses import class_balanced_weights, concordance_loss, cross_entropy
from search.trial_config import TrainSettings

FoldPredictions = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Held-out rows of a fold, and what its network predicts of them."""


class TrainingTask(Protocol):
    """Classification or regression.

    Attributes:
        mixes: Whether examples may be mixed (mixup): probabilities can be, traces cannot.
    """

    mixes: bool

    def targets(self, rows: NDArray[np.int64], settings: TrainSettings) -> Tensor:
        """Return the targets of a batch of training clips."""

    def loss(
        self,
        answers: list[Tensor],
        targets: Tensor,
        settings: TrainSettings,
        class_weights: Tensor | None,
    ) -> Tensor:
        """Return the mean loss of a network's answers, one or several of each clip."""

    def class_weights(
        self, rows: NDArray[np.int64], settings: TrainSettings, workers: Workers
    ) -> Tensor | None:
        """Return (K,) weights counted on the training side; None where classes are not weighted."""

    def fit_answers(self, expert: Expert, rows: NDArray[np.int64]) -> None:
        """Tell the network where the targets of the training side lie."""

    def inputs(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return what a network needs of clips beside the front ends' output."""

    def empty_predictions(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return zeros of the shape of some clips' predictions."""

    def out_of_fold(
        self, predictions: Iterable[FoldPredictions], settings: TrainSettings, workers: Workers
    ) -> NDArray[np.float32]:
        """Join the folds' held-out predictions to rows of the bank; NaN where there is none."""


def task_of(data: TrainingData) -> TrainingTask:
    """Return the task that the corpus's target makes."""
    if data.traces is None:
        return Classification(data)
    return Regression(data.traces)


class Classification:
    """Classes by cross-entropy; predictions are (N, K) logits."""

    mixes = True

    def __init__(self, data: TrainingData) -> None:
        self.data, self.classes = data, data.shape.num_classes

    def targets(self, rows: NDArray[np.int64], settings: TrainSettings) -> Tensor:
        """Return (B, K) probabilities, smoothed."""
        smoothing = settings.label_smoothing
        return self.data.class_targets(rows) * (1 - smoothing) + smoothing / self.classes

    def loss(
        self,
        answers: list[Tensor],
        targets: Tensor,
        settings: TrainSettings,
        class_weights: Tensor | None,
    ) -> Tensor:
        """Return the mean cross-entropy of (B, K) logits."""
        gamma = settings.focal_gamma
        losses = [
            cross_entropy(logits, targets, focal_gamma=gamma, class_weights=class_weights)
            for logits in answers
        ]
        return torch.stack(losses).mean()

    def class_weights(
        self, rows: NDArray[np.int64], settings: TrainSettings, workers: Workers
    ) -> Tensor | None:
        """Return class-balanced weights (Cui et al., 2019); None without a `class_balance`."""
        if not settings.class_balance:
            return None
        counts = np.bincount(self.data.cache.targets[rows], minlength=self.classes)
        everyone = workers.sum(torch.from_numpy(counts)).numpy()
        return torch.from_numpy(class_balanced_weights(everyone, settings.class_balance))

    def fit_answers(self, expert: Expert, rows: NDArray[np.int64]) -> None:
        """Do nothing: logits lie anywhere."""

    def inputs(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def empty_predictions(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (n, K) zeros."""
        return np.zeros((len(rows), self.classes), np.float32)

    def out_of_fold(
        self, predictions: Iterable[FoldPredictions], settings: TrainSettings, workers: Workers
    ) -> NDArray[np.float32]:
        """Return (N, K) logits of the whole corpus."""
        count, position = len(self.data.index.clips), self.data.position
        logits = np.zeros((count, self.classes), np.float32)
        times = np.zeros(count, np.int64)
        for rows, found in predictions:
            logits[position[rows]] = found
            times[position[rows]] += 1
        everyone = workers.sum(torch.from_numpy(times)).numpy()
        assert everyone.max() == 1, "a clip was predicted twice"
        logits = workers.sum(torch.from_numpy(logits)).numpy()
        logits[everyone == 0] = np.nan
        return logits


class Regression:
    """Values of clips, or of every step of recordings, by one minus the concordance.

    Targets are (B, S, D + 1), of which the last column says what counts.
    """

    mixes = False

    def __init__(self, traces: Traces) -> None:
        self.traces = traces

    def _delay(self, settings: TrainSettings) -> int:
        """Steps by which raters are late."""
        seconds, step = settings.label_delay, self.traces.step_seconds
        return round(seconds / step) if self.traces.over_time else 0

    def targets(self, rows: NDArray[np.int64], settings: TrainSettings) -> Tensor:
        """Return (B, S, D + 1) values, and whether they count."""
        values, known = self.traces.targets(rows, self._delay(settings))
        both = np.concatenate([values, known[:, :, None]], axis=2).astype(np.float32)
        return torch.from_numpy(both)

    def loss(
        self,
        answers: list[Tensor],
        targets: Tensor,
        settings: TrainSettings,
        class_weights: Tensor | None,
    ) -> Tensor:
        """Return the mean of one minus the concordance of (B, S, D) or (B, D) predictions."""
        each = [answer.unflatten(0, (-1, 1)) if answer.ndim == 2 else answer for answer in answers]
        # Of a part of a batch, the longest clip may be shorter than the batch's.
        targets = targets[:, : each[0].shape[1]]
        values, known = targets[..., :-1], targets[..., -1] > 0
        return torch.stack([concordance_loss(answer, values, known) for answer in each]).mean()

    def class_weights(
        self, rows: NDArray[np.int64], settings: TrainSettings, workers: Workers
    ) -> Tensor | None:
        """Return None: there are no classes."""
        return None

    def fit_answers(self, expert: Expert, rows: NDArray[np.int64]) -> None:
        """Set the network's mean and spread to those of the training side."""
        values, known = self.traces.targets(rows)
        expert.fit_answers(torch.from_numpy(values[known]).to(expert.classifier.weight.device))

    def inputs(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return (B,) how many steps each clip has, where there is a time axis."""
        if not self.traces.over_time:
            return {}
        return {"trace_lengths": torch.from_numpy(self.traces.steps[rows])}

    def empty_predictions(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (n, S, D) zeros; (n, D) where each clip has one value."""
        dimensions = len(self.traces.dimensions)
        if not self.traces.over_time:
            return np.zeros((len(rows), dimensions), np.float32)
        return np.zeros((len(rows), int(self.traces.steps[rows].max()), dimensions), np.float32)

    def out_of_fold(
        self, predictions: Iterable[FoldPredictions], settings: TrainSettings, workers: Workers
    ) -> NDArray[np.float32]:
        """Return (S, D) along the recordings."""
        joined = np.full(self.traces.gold.shape, np.nan, np.float32)
        for rows, found in predictions:
            values = found[:, None] if found.ndim == 2 else found
            steps = self.traces.steps[rows]
            each = [clip[:count] for clip, count in zip(values, steps, strict=True)]
            own = self.traces.join(rows, each, self._delay(settings))
            there = np.isfinite(own).all(axis=1)
            assert np.isnan(joined[there]).all(), "a recording was predicted twice"
            joined[there] = own[there]
        return joined
