"""A corpus as training sees it: front-end outputs by clip, read from the node's cache, and folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.protocols.folds import Folds
from datasets.sharding.clip_cache import ClipCache
from datasets.sharding.index import KINDS, ShardIndex
from datasets.sharding.ragged import RaggedFile
from datasets.targets import Traces, traces_of, values_of
from models import ClipShape, Expert
from models.augmentation import (
    add_noise,
    colour_jitter,
    pitch_perturb,
    reverberate,
    spatial_crop,
    spec_augment,
    speed_perturb,
    time_crop,
)
from models.base import Encoder, FrontEnd
from models.frontends.masks import frame_mask
from models.pretrained import FrozenBackbone
from search.trial_config import TrainSettings, TrialPlan

_CLIPS, _FROZEN_CLIPS = 32, 8
"""Whose front end is computed at once; of a frozen backbone, fewer."""

EMOTION, TRACES = "emotion", "traces"
"""Targets of their own; any other names numbers that the corpus has of every clip."""


def _names(target: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in target.split(",") if name.strip())


class TrainingData:
    """A corpus as training sees it: front-end outputs by clip, and the folds.

    Args:
        cache: The decoded clips: of the whole corpus, or of this worker's part of it.
        folds: The protocol's split of the whole corpus.
        whole: The whole corpus's index, where `cache` holds a part.
        weights: Finds the folder of pretrained weights on this machine, when a trial needs it.
        target: What is predicted: EMOTION, TRACES, or names of numbers that clips have.
        soft_labels: Train on raters' votes, where clips have some.

    Attributes:
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
        self._files: dict[str, RaggedFile] = {}
        self._dense: dict[str, Tensor] = {}
        self._means: dict[tuple[str, str, int | None], Tensor] = {}

    @cached_property
    def weights(self) -> Path | None:
        """The folder of pretrained weights."""
        return self._find_weights() if self._find_weights else None

    @cached_property
    def traces(self) -> Traces | None:
        """What is predicted, where it is numbers; None for classes."""
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
        """What the clips look like; a kind that some clips lack does not count."""
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

    def wanted(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, K) float32 probabilities that training wants of some clips."""
        if self.soft_labels:
            return torch.from_numpy(self.cache.soft_targets[rows])
        targets = torch.from_numpy(self.cache.targets[rows])
        return torch.nn.functional.one_hot(targets, self.shape.num_classes).float()

    def lengths(self, expert: Expert) -> NDArray[np.int64]:
        """(N,) length of each clip as the expert's first sequence input has it."""
        for kind in expert.kinds:
            file = self._derived(expert.encoder(kind))
            if file is not None and file.lengths.max() > 1:
                return np.asarray(file.lengths)
            if kind == "feature_sequence":
                return np.asarray([e.feature_steps for e in self.cache.index.clips], np.int64)
        return np.ones(len(self.cache.index.clips), np.int64)

    def fixed(
        self, expert: Expert, rows: NDArray[np.int64], *, changed: TrainSettings | None = None
    ) -> dict[str, Tensor]:
        """What `expert.preprocess` gives for some clips, read from the cache where it pays.

        Args:
            expert: Whose front ends.
            rows: Clips.
            changed: Of waveforms that are changed as these settings say; a frozen backbone
                hears every clip once, as it was recorded.
        """
        fixed: dict[str, Tensor] = {}
        for kind in expert.kinds:
            encoder = expert.encoder(kind)
            frozen = isinstance(encoder.frontend, FrozenBackbone)
            if changed and changed.changes_waveforms and kind == "audio" and not frozen:
                found = self._heard_otherwise(encoder.frontend, rows, changed)
            else:
                found = self._front_end_output(encoder, rows)
            fixed[kind], fixed[f"{kind}_lengths"] = found
        if expert.answers == "traces":
            assert self.traces is not None
            fixed["trace_lengths"] = torch.from_numpy(self.traces.steps[rows])
        return fixed

    def less_speaker_mean(
        self, expert: Expert, fixed: dict[str, Tensor], rows: NDArray[np.int64], clips: int | None
    ) -> dict[str, Tensor]:
        """Takes each speaker's own mean off what `fixed` returned, where it has one.

        Features and spectrograms have; waveforms, pictures and what a frozen backbone made stay.

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
            if not expert.encoder(kind).frontend.has_mean:
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
            values, lengths = file.gather(rows)
            return values.float(), lengths  # a frozen backbone's are kept in half precision
        return self._run(frontend, encoder.kind, self.cache.batch(rows, [encoder.kind]))

    @staticmethod
    def _run(frontend: FrontEnd, kind: str, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A front end on plain clips, where it lives: on a GPU it computes there."""
        device = _device_of(frontend)
        x = batch[kind].to(device)
        lengths = batch.get(f"{kind}_lengths")
        if lengths is None:
            lengths = torch.ones(len(x), dtype=torch.int64)
        with torch.no_grad():
            values, after = frontend(x, lengths.to(device))
        return values, after

    def _heard_otherwise(
        self, frontend: FrontEnd, rows: NDArray[np.int64], settings: TrainSettings
    ) -> tuple[Tensor, Tensor]:
        """A front end's view of changed waveforms."""
        batch = self.cache.batch(rows, ["audio"])
        device = _device_of(frontend)
        x, lengths = batch["audio"].to(device), batch["audio_lengths"].to(device)
        if settings.speed_perturbation:
            factor = 1.0 + settings.speed_perturbation * (2.0 * float(torch.rand(())) - 1.0)
            x, lengths = speed_perturb(x, lengths, factor)
        if settings.pitch_perturbation:
            semitones = settings.pitch_perturbation * (2.0 * float(torch.rand(())) - 1.0)
            x = pitch_perturb(x, lengths, semitones)
        if settings.reverberation:
            x = reverberate(x, lengths, self.shape.sample_rate_hz, settings.reverberation)
        if settings.noise:
            x = add_noise(x, lengths, settings.noise)
        return self._run(frontend, "audio", {"audio": x, "audio_lengths": lengths})

    def _derived(self, encoder: Encoder) -> RaggedFile | None:
        """The cached output of a front end that is worth it; vectors are then held in memory."""
        frontend, kind = encoder.frontend, encoder.kind
        if not frontend.worth_caching:
            return None
        if frontend.name in self._files:
            return self._files[frontend.name]

        def compute(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            values, lengths = self._run(frontend, kind, batch)
            values, lengths = values.cpu(), lengths.cpu()
            if values.ndim == 2:  # vectors: items of one row
                values = values[:, None]
            return values, lengths

        heavy = isinstance(frontend, FrozenBackbone)
        file = self.cache.derive(
            frontend.name,
            kind,
            compute,
            dtype=frontend.storage,
            batch_clips=_FROZEN_CLIPS if heavy else _CLIPS,
        )
        # A vector a clip; a backbone's single step stays a step.
        if not heavy and file.data.ndim == 2 and file.lengths.max() == 1:
            self._dense[frontend.name] = torch.from_numpy(np.array(file.data)).float()
        self._files[frontend.name] = file
        return file


def _device_of(frontend: FrontEnd) -> torch.device:
    """Where a front end lives; one without tensors computes wherever its input is."""
    return next(chain(frontend.parameters(), frontend.buffers()), torch.empty(0)).device


def augment(inputs: dict[str, Tensor], expert: Expert, plan: TrialPlan) -> None:
    """Changes spectrograms and frames as the plan says; what a frozen backbone made stays."""
    settings = plan.training
    for kind in expert.kinds:
        frontend = expert.encoder(kind).frontend
        x, lengths = inputs[kind], inputs[f"{kind}_lengths"]
        if rate := frontend.frames_per_second:
            # A part of a clip would have other steps than its trace.
            seconds = 0.0 if expert.answers == "traces" else plan.crop_seconds(kind)
            if seconds:
                x, lengths = time_crop(x, lengths, round(seconds * rate))
            if frontend.has_bands and (share := settings.spec_augment):
                x = spec_augment(x, lengths, time_share=share, band_share=share)
        elif kind == "video" and x.ndim == 5 and not isinstance(frontend, FrozenBackbone):
            if settings.spatial_crop:
                x = spatial_crop(x, settings.spatial_crop)
            if settings.colour_jitter:
                x = colour_jitter(x, settings.colour_jitter)
        inputs[kind], inputs[f"{kind}_lengths"] = x, lengths


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
