"""Front-end outputs by clip: computed once, and read from the node's cache where it pays."""

from __future__ import annotations

from functools import cached_property
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.sharding.clip_cache import ClipCache
from datasets.sharding.index import ShardIndex
from datasets.sharding.ragged import RaggedFile
from models import Expert
from models.augmentation import add_noise, pitch_perturb, reverberate, speed_perturb
from models.base import Encoder, FrontEnd
from models.frontends.masks import frame_mask
from models.pretrained import FrozenBackbone
from search.trial_config import TrainSettings

_CLIPS, _FROZEN_CLIPS = 32, 8
"""Clips whose front end is computed at once; fewer of a frozen backbone."""


class FrontEndCache:
    """Front-end outputs by clip.

    Args:
        clips: The decoded clips: of the whole corpus, or of this worker's part of it.
    """

    def __init__(self, clips: ClipCache) -> None:
        self.clips = clips
        self._files: dict[str, RaggedFile] = {}
        self._dense: dict[str, Tensor] = {}
        self._means: dict[tuple[str, str, int | None], Tensor] = {}

    def inputs(
        self, expert: Expert, rows: NDArray[np.int64], *, changed: TrainSettings | None = None
    ) -> dict[str, Tensor]:
        """Return what `expert.preprocess` gives for some clips.

        Args:
            expert: Whose front ends.
            rows: Clips.
            changed: Change waveforms as these settings say; a frozen backbone gets every clip
                as it was recorded.
        """
        inputs: dict[str, Tensor] = {}
        for kind in expert.kinds:
            encoder = expert.encoder(kind)
            frozen = isinstance(encoder.frontend, FrozenBackbone)
            if changed and changed.changes_waveforms and kind == "audio" and not frozen:
                found = self._of_changed_waveforms(encoder.frontend, rows, changed)
            else:
                found = self._output(encoder, rows)
            inputs[kind], inputs[f"{kind}_lengths"] = found
        return inputs

    def lengths(self, expert: Expert) -> NDArray[np.int64]:
        """Return (N,) the length of each clip as the expert's first sequence input has it."""
        for kind in expert.kinds:
            file = self._derived(expert.encoder(kind))
            if file is not None and file.lengths.max() > 1:
                return np.asarray(file.lengths)
            if kind == "feature_sequence":
                return np.asarray([e.feature_steps for e in self.clips.index.clips], np.int64)
        return np.ones(len(self.clips.index.clips), np.int64)

    def without_speaker_means(
        self, expert: Expert, inputs: dict[str, Tensor], rows: NDArray[np.int64], clips: int | None
    ) -> dict[str, Tensor]:
        """Subtract each speaker's own mean from inputs that have one.

        Features and spectrograms have; waveforms, frames and a frozen backbone's output stay.

        Args:
            expert: Whose front ends made the inputs.
            inputs: Of the rows.
            rows: Clips.
            clips: How many of a speaker's clips the mean is taken of, by `enrolment_order`;
                None for all.
        """
        centred = dict(inputs)
        for kind in expert.kinds:
            x = inputs[kind]
            if not expert.encoder(kind).frontend.has_mean:
                continue
            speakers = [self.clips.index.clips[row].speaker for row in rows]
            means = torch.stack([self._speaker_mean(expert, kind, s, clips) for s in speakers])
            if x.ndim == 3:
                behind = frame_mask(inputs[f"{kind}_lengths"], x.shape[1])
                centred[kind] = (x - means[:, None]).masked_fill(behind[:, :, None], 0.0)
            else:
                centred[kind] = x - means
        return centred

    @cached_property
    def _enrolment_order(self) -> dict[str, NDArray[np.int64]]:
        return enrolment_order(self.clips.index, self.clips.missing)

    def _speaker_mean(self, expert: Expert, kind: str, speaker: str, clips: int | None) -> Tensor:
        encoder = expert.encoder(kind)
        key = (encoder.frontend.name, speaker, clips)
        if key not in self._means:
            rows = self._enrolment_order[speaker][:clips]
            x, lengths = self._output(encoder, rows)
            if x.ndim == 3:
                x = x[~frame_mask(lengths, x.shape[1])]
            self._means[key] = x.mean(dim=0)
        return self._means[key]

    def _output(self, encoder: Encoder, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        frontend = encoder.frontend
        file = self._derived(encoder)
        if frontend.name in self._dense:
            ones = torch.ones(len(rows), dtype=torch.int64)
            return self._dense[frontend.name][torch.from_numpy(rows)], ones
        if file is not None:
            values, lengths = file.gather(rows)
            return values.float(), lengths  # a frozen backbone's are kept in half precision
        return _run(frontend, encoder.kind, self.clips.batch(rows, [encoder.kind]))

    def _of_changed_waveforms(
        self, frontend: FrontEnd, rows: NDArray[np.int64], settings: TrainSettings
    ) -> tuple[Tensor, Tensor]:
        batch = self.clips.batch(rows, ["audio"])
        device = _device_of(frontend)
        x, lengths = batch["audio"].to(device), batch["audio_lengths"].to(device)
        if settings.speed_perturbation:
            factor = 1.0 + settings.speed_perturbation * (2.0 * float(torch.rand(())) - 1.0)
            x, lengths = speed_perturb(x, lengths, factor)
        if settings.pitch_perturbation:
            semitones = settings.pitch_perturbation * (2.0 * float(torch.rand(())) - 1.0)
            x = pitch_perturb(x, lengths, semitones)
        if settings.reverberation:
            rate = self.clips.index.sample_rate_hz
            x = reverberate(x, lengths, rate, settings.reverberation)
        if settings.noise:
            x = add_noise(x, lengths, settings.noise)
        return _run(frontend, "audio", {"audio": x, "audio_lengths": lengths})

    def _derived(self, encoder: Encoder) -> RaggedFile | None:
        """The cached output of a front end that is worth it; vectors are then held in memory."""
        frontend, kind = encoder.frontend, encoder.kind
        if not frontend.worth_caching:
            return None
        if frontend.name in self._files:
            return self._files[frontend.name]

        def compute(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            values, lengths = _run(frontend, kind, batch)
            values, lengths = values.cpu(), lengths.cpu()
            if values.ndim == 2:  # vectors: items of one row
                values = values[:, None]
            return values, lengths

        heavy = isinstance(frontend, FrozenBackbone)
        file = self.clips.derive(
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


def _device_of(frontend: FrontEnd) -> torch.device:
    """Where a front end lives; one without tensors computes wherever its input is."""
    return next(chain(frontend.parameters(), frontend.buffers()), torch.empty(0)).device


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
