"""The rows of a bank of continuous annotations: one row a step, recording behind recording."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ensembles.metrics import Array, Labels, get_metric


@dataclass(frozen=True, kw_only=True)
class TraceTable:
    """The rows of a bank of traces.

    Attributes:
        classes: (D,) names of the dimensions.
        step_seconds: From one step to the next; 0 where each clip has one value.
        recordings: (R,) names; of values, one for each speaker's clips.
        recording_speakers: (R,) who speaks.
        recording_folds: (R,) the fold in which each is held out.
        recording_of: (S,) of each step.
        steps: (S,) which step of its recording it is.
        labels: (S, D) what raters said.
        names: (S,) clips, where each has one value; empty of traces.
    """

    file: ClassVar[str] = "recordings.npz"

    classes: tuple[str, ...]
    step_seconds: float
    recordings: tuple[str, ...]
    recording_speakers: tuple[str, ...]
    recording_folds: Labels
    recording_of: Labels
    steps: Labels
    labels: NDArray[Any]
    names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of an entry: (S, D)."""
        return len(self.recording_of), len(self.classes)

    @cached_property
    def clips(self) -> tuple[str, ...]:
        """(S,) names of the rows: recording and step, or the clip."""
        if self.names:
            return self.names
        pairs = zip(self.recording_of.tolist(), self.steps.tolist(), strict=True)
        return tuple(f"{self.recordings[recording]}@{step}" for recording, step in pairs)

    @cached_property
    def speakers(self) -> tuple[str, ...]:
        """(S,) names."""
        return tuple(self.recording_speakers[recording] for recording in self.recording_of)

    @cached_property
    def folds(self) -> Labels:
        """(S,) the fold in which each step is held out."""
        return self.recording_folds[self.recording_of]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First row of every recording, and the row behind its last."""
        edges = np.flatnonzero(np.diff(self.recording_of)) + 1
        bounds = [0, *edges.tolist(), len(self.recording_of)]
        return list(pairwise(bounds))

    def take(self, rows: Labels) -> TraceTable:
        """Some of the rows, in their order."""
        return TraceTable(
            classes=self.classes,
            step_seconds=self.step_seconds,
            recordings=self.recordings,
            recording_speakers=self.recording_speakers,
            recording_folds=self.recording_folds,
            recording_of=self.recording_of[rows],
            steps=self.steps[rows],
            labels=self.labels[rows],
            names=tuple(self.names[row] for row in rows) if self.names else (),
        )

    def as_scores(self, values: NDArray[Any]) -> Array:
        """Return predictions as fusion takes them: unchanged."""
        return np.asarray(values, np.float64)

    def fold_scores(self, metric: str, values: NDArray[np.float32]) -> dict[int, float]:
        """Fold → its score, of the steps that were predicted."""
        there = np.isfinite(values).all(axis=1) & np.isfinite(self.labels).all(axis=1)
        scores = self.as_scores(values[there])
        return get_metric(metric).fold_scores(self.labels[there], scores, self.folds[there])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it: entries of another table are refused."""
        digest = hashlib.sha256(json.dumps(self._said()).encode())
        for array in (self.recording_of, self.steps, self.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _said(self) -> dict[str, Any]:
        return {
            "classes": self.classes,
            "step_seconds": self.step_seconds,
            "recordings": self.recordings,
            "recording_speakers": self.recording_speakers,
            "recording_folds": self.recording_folds.tolist(),
            "names": self.names,
        }

    def to_bytes(self) -> bytes:
        """For the bank's `recordings.npz`."""
        buffer = io.BytesIO()
        said = np.frombuffer(json.dumps(self._said()).encode(), np.uint8)
        np.savez_compressed(
            buffer,
            said=said,
            recording_of=self.recording_of,
            steps=self.steps,
            labels=self.labels,
        )
        return buffer.getvalue()

    @staticmethod
    def read(path: Path) -> TraceTable:
        """The inverse of `to_bytes`; raises ValueError, KeyError or OSError on what is damaged."""
        with np.load(path, allow_pickle=False) as file:
            said = json.loads(file["said"].tobytes())
            return TraceTable(
                classes=tuple(said["classes"]),
                step_seconds=float(said["step_seconds"]),
                recordings=tuple(said["recordings"]),
                recording_speakers=tuple(said["recording_speakers"]),
                recording_folds=np.asarray(said["recording_folds"], np.int64),
                recording_of=file["recording_of"],
                steps=file["steps"],
                labels=file["labels"],
                names=tuple(said["names"]),
            )
