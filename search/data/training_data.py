"""A corpus as training sees it: its clips, their targets, and the folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.protocols.folds import Folds
from datasets.sharding.clip_cache import ClipCache
from datasets.sharding.index import KINDS, ShardIndex
from datasets.targets import Traces, traces_of, values_of
from models import ClipShape
from search.data.front_end_cache import FrontEndCache

EMOTION, TRACES = "emotion", "traces"
"""Targets of their own; any other names numbers that the corpus has of every clip."""


def _names(target: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in target.split(",") if name.strip())


class TrainingData:
    """A corpus as training sees it.

    Args:
        cache: The decoded clips: of the whole corpus, or of this worker's part of it.
        folds: The protocol's split of the whole corpus.
        whole: The whole corpus's index, where `cache` holds a part.
        weights: Finds the folder of pretrained weights on this machine, when a trial needs it.
        target: What is predicted: EMOTION, TRACES, or names of numbers that clips have.
        soft_labels: Train on raters' votes, where clips have some.

    Attributes:
        front_ends: What front ends make of the clips.
        position: (n,) row in the whole corpus of each of the cache's clips.
    """

    def __init__(
        self,
        cache: ClipCache,
        folds: Folds,
        whole: ShardIndex | None = None,
        *,
        weights: Callable[[], Path] | None = None,
        target: str = EMOTION,
        soft_labels: bool = False,
    ) -> None:
        self.target = target
        self.cache, self.folds, self._find_weights = cache, folds, weights
        self.soft_labels = soft_labels
        self.index = whole or cache.index
        row_of = {entry.clip: row for row, entry in enumerate(self.index.clips)}
        self.position = np.asarray([row_of[entry.clip] for entry in cache.index.clips], np.int64)
        self.front_ends = FrontEndCache(cache)

    @cached_property
    def weights(self) -> Path | None:
        """The folder of pretrained weights."""
        return self._find_weights() if self._find_weights else None

    @cached_property
    def traces(self) -> Traces | None:
        """Return the traces to predict; None for classes."""
        if self.target == EMOTION:
            return None
        assert self.index is self.cache.index, "traces are not of a part of a corpus"
        return (
            traces_of(self.cache)
            if self.target == TRACES
            else values_of(self.index, _names(self.target))
        )

    @cached_property
    def shape(self) -> ClipShape:
        """Return the shape of the clips; a kind that some clips lack does not count."""
        shape = clip_shape(self.index)
        if self.traces is None:
            return shape
        return replace(
            shape,
            num_classes=len(self.traces.dimensions),
            answers="traces" if self.traces.over_time else "values",
            trace_steps=int(self.traces.steps.max()) if self.traces.over_time else 0,
        )

    def rows(self, fold: int, *, training: bool) -> NDArray[np.int64]:
        """The cache's rows of one side of a fold, without corrupt clips."""
        side = self.folds.train_rows(fold) if training else self.folds.test_rows(fold)
        return np.flatnonzero(np.isin(self.position, side) & ~self.cache.missing)

    def class_targets(self, rows: NDArray[np.int64]) -> Tensor:
        """Return (B, K) float32 target probabilities of some clips."""
        if self.soft_labels:
            return torch.from_numpy(self.cache.soft_targets[rows])
        targets = torch.from_numpy(self.cache.targets[rows])
        return torch.nn.functional.one_hot(targets, self.shape.num_classes).float()


def clip_shape(index: ShardIndex) -> ClipShape:
    """The shape of a corpus's clips."""
    everywhere = {kind: index.has(kind) == len(index.clips) for kind in KINDS}
    steps = float(np.mean([entry.feature_steps for entry in index.clips]))
    return ClipShape(
        num_classes=len(index.labels),
        sample_rate_hz=index.sample_rate_hz if everywhere["audio"] else 0,
        seconds=float(np.mean([e.samples for e in index.clips])) / index.sample_rate_hz or 3.0,
        frames=round(np.mean([e.frames for e in index.clips])) if everywhere["video"] else 0,
        frame_size=index.frame_size,
        num_features=len(index.feature_names) if everywhere["features"] else 0,
        feature_steps=round(steps) if everywhere["feature_sequence"] else 0,
        saliency_maps=index.saliency_maps and everywhere["video"],
    )
