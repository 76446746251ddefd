"""Runs an exported ensemble: files or tensors in, probabilities out.

See docs/export.md for its use from Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.features import FeatureTable, clip_means
from datasets.media.audio import as_waveform, read_audio
from datasets.media.containers import AUDIO_SUFFIXES, MediaError
from datasets.media.video import read_frames
from ensembles import EnsembleError
from ensembles.artifact.fitted_ensemble import Fused
from ensembles.artifact.fold_networks import average_folds, load_folded
from ensembles.artifact.manifest import Artifact
from ensembles.artifact.onnx_export import run_session
from ensembles.artifact.onnx_session import open_session
from ensembles.metrics import Array

Backend = Literal["onnx", "torch"]

_BATCH_CLIPS = 16
_BATCH_SECONDS = 120.0
"""Seconds of audio in one batch, padding counted: a long file does not multiply by its neighbours."""

_NO_PICTURES = "is a sound file"
_NO_MAPS = "new clips come without a saliency map"


@dataclass(frozen=True)
class Clip:
    """One clip as the networks take it.

    Attributes:
        name: Its file, or any other name.
        arrays: `audio` (L,) float32, `video` (V, H, W, 3) uint8 (or 4 channels, the last a
            saliency map), `features` (F,) float32, `feature_sequence` (S, F) float32: those it
            has.
        lacking: Why it lacks an input, for those that the ensemble reads.
    """

    name: str
    arrays: Mapping[str, NDArray[np.generic]]
    lacking: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> frozenset[str]:
        """Return the inputs that it has."""
        video = self.arrays.get("video")
        maps = ["saliency"] if video is not None and video.shape[-1] == 4 else []
        return frozenset([*self.arrays, *maps])


@dataclass(frozen=True)
class Answer:
    """Prediction of the ensemble for a clip; or why there is none.

    Attributes:
        name: The clip.
        probabilities: Class → probability; empty with an error, and from a regression ensemble.
        values: Dimension → number, such as valence; empty with an error, and of classes.
        experts: Those that took part.
        notes: Inputs that were missing, and why.
        error: Why there is no answer.
    """

    name: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    experts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])


class Predictor:
    """An exported ensemble, ready to run.

    Args:
        artifact: The exported folder, as read and checked.
        backend: `onnx`, or `torch`, which rebuilds the networks from safetensors and JSON.

    Attributes:
        faces: What finds the faces that the frames show; None where none is looked for.

    Raises:
        EnsembleError: If the export was made without that backend's files, or faces cannot be
            found here.
    """

    def __init__(self, artifact: Artifact, backend: Backend = "onnx") -> None:
        if backend not in artifact.formats:
            raise EnsembleError(
                f"'{artifact.folder}' was exported without {backend} (--format). "
                f"Predict with --backend {artifact.formats[0]}."
            )
        self.artifact, self.backend = artifact, backend
        self.faces = artifact.face_finder()
        self._network = cache(self._open)

    def files(
        self,
        paths: Iterable[Path],
        *,
        features: FeatureTable | None = None,
        fold: int | None = None,
    ) -> Iterator[Answer]:
        """Predicts files, in order, a few at a time; a bad one yields its error.

        Args:
            paths: Sound or video files.
            features: Features by file name without suffix.
            fold: Predict as this cross-validation fold's networks and fusion did.

        Raises:
            EnsembleError: No such fold, or the features are not those of the ensemble.
        """
        self.artifact.check_fold(fold)
        row = _feature_columns(features, self.artifact) if features else None
        waiting: list[Clip | Answer] = []
        for path in paths:
            try:
                item: Clip | Answer = self.load(path, features, row)
            except MediaError as error:
                item = Answer(str(path), error=str(error))
            if len(waiting) == _BATCH_CLIPS or self._too_long([*waiting, item]):
                yield from self._answers(waiting, fold)
                waiting = []
            waiting.append(item)
        yield from self._answers(waiting, fold)

    def _too_long(self, items: list[Clip | Answer]) -> bool:
        lengths = [
            len(item.arrays["audio"])
            for item in items
            if isinstance(item, Clip) and "audio" in item.arrays
        ]
        longest = max(lengths, default=0)
        return len(items) * longest > _BATCH_SECONDS * max(self.artifact.sample_rate_hz, 1)

    def load(
        self,
        path: Path,
        features: FeatureTable | None = None,
        columns: NDArray[np.int64] | None = None,
    ) -> Clip:
        """Decodes what the ensemble reads of a file, as the preparation of shards does.

        Raises:
            MediaError: If nothing in it can be used.
        """
        artifact = self.artifact
        if not path.is_file():  # also where its name alone would do, for features
            raise MediaError("no such file")
        arrays: dict[str, NDArray[np.generic]] = {}
        lacking: dict[str, str] = {}
        if artifact.sample_rate_hz:
            try:
                arrays["audio"] = as_waveform(read_audio(path, artifact.sample_rate_hz))
            except MediaError as error:
                lacking["audio"] = str(error)
        if artifact.frames and path.suffix.lower() in AUDIO_SUFFIXES:
            lacking["video"] = _NO_PICTURES
        elif artifact.frames:
            try:
                arrays["video"] = read_frames(
                    path,
                    artifact.frames,
                    artifact.frame_size,
                    rate_hz=artifact.frame_rate,
                    faces=self.faces,
                )
            except MediaError as error:
                lacking["video"] = str(error)
        if "video" in arrays and "saliency" in artifact.all_inputs:
            lacking["saliency"] = _NO_MAPS
        self._take_features(path.stem, features, columns, arrays, lacking)
        # A file that cannot be decoded at all is not excused by its row of features.
        media = [lacking.get(kind) for kind in ("audio", "video") if kind in (*arrays, *lacking)]
        if media and all(media):
            reasons = dict.fromkeys(why for why in media if why and why != _NO_PICTURES)
            raise MediaError("; ".join(reasons) or _NO_PICTURES)
        return Clip(str(path), arrays, lacking)

    def _take_features(
        self,
        clip: str,
        features: FeatureTable | None,
        columns: NDArray[np.int64] | None,
        arrays: dict[str, NDArray[np.generic]],
        lacking: dict[str, str],
    ) -> None:
        """Adds a clip's features, of every frame and their mean, or why it lacks them."""
        kinds = self.artifact.all_inputs & {"features", "feature_sequence"}
        found = features.find(clip) if features and kinds else None
        if found is None:
            why = f"has no row '{clip}' in the features" if features else "came without any"
            lacking.update(dict.fromkeys(sorted(kinds), why))
            return
        found = found if columns is None else found[..., columns]
        if "features" in kinds:
            arrays["features"] = clip_means(found)
        if "feature_sequence" in kinds and found.ndim == 2:
            arrays["feature_sequence"] = found
        elif "feature_sequence" in kinds:
            lacking["feature_sequence"] = "has one row of features, not one a frame"

    def clips(self, clips: Iterable[Clip], *, fold: int | None = None) -> list[Answer]:
        """Predicts decoded clips, in order."""
        return list(self._answers(list(clips), fold))

    def _answers(self, waiting: list[Clip | Answer], fold: int | None) -> Iterator[Answer]:
        """Clips with the same inputs share a batch."""
        answers: dict[int, Answer] = {}
        groups: dict[frozenset[str], list[int]] = {}
        for position, item in enumerate(waiting):
            if isinstance(item, Answer):
                answers[position] = item
            else:
                groups.setdefault(item.inputs, []).append(position)
        for available, positions in groups.items():
            clips = [item for p in positions if isinstance(item := waiting[p], Clip)]
            try:
                fused = self.artifact.ensemble_for(available, fold)
            except EnsembleError as error:
                for position, clip in zip(positions, clips, strict=True):
                    why = "; ".join(f"{kind}: {text}" for kind, text in clip.lacking.items())
                    answers[position] = Answer(
                        clip.name, error=f"{error}{f' ({why})' if why else ''}"
                    )
                continue
            numbers = self._numbers(collate(clips), fused, fold)
            for position, clip, row in zip(positions, clips, numbers, strict=True):
                named = dict(zip(self.artifact.labels, row.tolist(), strict=True))
                of_classes = self.artifact.answers == "classes"
                answers[position] = Answer(
                    clip.name,
                    named if of_classes else {},
                    fused.experts,
                    tuple(f"no {kind}: {why}" for kind, why in clip.lacking.items()),
                    values={} if of_classes else named,
                )
        yield from (answers[position] for position in range(len(waiting)))

    def _numbers(self, batch: Mapping[str, Tensor], fused: Fused, fold: int | None) -> Array:
        """(B, K) probabilities, or values as they are told."""
        said = self.log_posteriors(batch, fused, fold)
        if self.artifact.answers == "classes":
            return np.exp(said)
        processing = self.artifact.processing
        if processing is None or fused.experts != self.artifact.fused.experts:
            return said
        return processing.apply(said, [(0, len(said))])

    def log_posteriors(
        self, batch: Mapping[str, Tensor], fused: Fused | None = None, fold: int | None = None
    ) -> Array:
        """A batch of plain clips, as the networks take them → (B, K) fused log-posteriors, or values."""
        inputs = frozenset(batch)
        if "video" in batch and batch["video"].shape[-1] == 4:
            inputs |= {"saliency"}
        fused = fused or self.artifact.ensemble_for(inputs, fold)
        return fused.apply({name: self.said_by(name, batch, fold) for name in fused.experts})

    def said_by(self, name: str, batch: Mapping[str, Tensor], fold: int | None = None) -> Array:
        """One expert's (B, K) log-posteriors or values, or (B, S, K) traces."""
        given = dict(batch)
        if "video" in given and "saliency" not in self.artifact.members[name].inputs:
            given["video"] = given["video"][..., :3]
        by_fold = self._network(name)(given)
        average = average_folds(by_fold, self.artifact.answers)
        chosen = average if fold is None else by_fold[fold]
        return np.asarray(chosen.double().numpy())

    def _open(self, name: str) -> Callable[[dict[str, Tensor]], Tensor]:
        member = self.artifact.members[name]
        if self.backend == "onnx":
            return _open_graph(self.artifact.folder / member.onnx)
        expert = load_folded(self.artifact.folder / member.torch)
        if len(expert.networks) != member.folds:
            raise EnsembleError(
                f"'{self.artifact.folder / member.torch}' has {len(expert.networks)} fold "
                f"networks instead of {member.folds}. Export the run again."
            )

        def run(batch: dict[str, Tensor]) -> Tensor:
            with torch.inference_mode():
                by_fold: Tensor = expert(batch)
            return by_fold

        return run


def _open_graph(path: Path) -> Callable[[dict[str, Tensor]], Tensor]:
    try:
        session = open_session(path.read_bytes())
    except EnsembleError as error:
        raise EnsembleError(f"'{path}' {error}") from error

    def run(batch: dict[str, Tensor]) -> Tensor:
        try:
            return run_session(session, batch)
        except EnsembleError as error:
            raise EnsembleError(f"'{path}' {error}") from error

    return run


def collate(clips: list[Clip]) -> dict[str, Tensor]:
    """Stacks clips that have the same inputs, padded with zeros."""
    batch: dict[str, Tensor] = {}
    for kind in clips[0].arrays:
        items = [torch.from_numpy(np.ascontiguousarray(clip.arrays[kind])) for clip in clips]
        if kind == "features":
            batch[kind] = torch.stack(items)
        else:
            batch[kind] = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
            batch[f"{kind}_lengths"] = torch.tensor([len(item) for item in items])
    return batch


def _feature_columns(features: FeatureTable, artifact: Artifact) -> NDArray[np.int64]:
    """Where the ensemble's features stand in a table."""
    lacking = [name for name in artifact.feature_names if name not in features.names]
    if lacking:
        raise EnsembleError(
            f"The features lack the column '{lacking[0]}', which the ensemble reads."
        )
    return np.asarray([features.names.index(name) for name in artifact.feature_names], np.int64)
