"""The clips that a bank's rows are of: names, speakers, folds and labels."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ensembles.metrics import Array, Labels, get_metric, log_softmax


@dataclass(frozen=True, kw_only=True)
class ClipTable:
    """Clips that posteriors are of: one row a clip.

    Attributes:
        clips: (N,) names.
        speakers: (N,) names.
        folds: (N,) the fold in which each clip is held out.
        labels: (N,) class indices.
        classes: (K,) class names.
    """

    file: ClassVar[str] = "clips.csv"

    clips: tuple[str, ...]
    speakers: tuple[str, ...]
    folds: Labels
    labels: Labels
    classes: tuple[str, ...]

    def take(self, rows: Labels) -> ClipTable:
        """Some of the rows."""
        return ClipTable(
            clips=tuple(self.clips[row] for row in rows),
            speakers=tuple(self.speakers[row] for row in rows),
            folds=self.folds[rows],
            labels=self.labels[rows],
            classes=self.classes,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of an entry: (N, K)."""
        return len(self.clips), len(self.classes)

    def as_scores(self, values: NDArray[Any]) -> Array:
        """Logits as fusion takes them: log-posteriors."""
        return log_softmax(np.asarray(values, np.float64))

    def fold_scores(self, metric: str, values: NDArray[np.float32]) -> dict[int, float]:
        """Fold → its score, of the clips that have a prediction."""
        there = np.isfinite(values).all(axis=1)
        scores = self.as_scores(values[there])
        return get_metric(metric).fold_scores(self.labels[there], scores, self.folds[there])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it: entries of another table are refused."""
        rows = [self.clips, self.speakers, self.folds.tolist(), self.labels.tolist(), self.classes]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the content of the bank's `clips.csv`."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(
            ["clip", "speaker", "fold", "label", "classes: " + json.dumps(self.classes)]
        )
        for clip, speaker, fold, label in zip(
            self.clips, self.speakers, self.folds.tolist(), self.labels.tolist(), strict=True
        ):
            writer.writerow([clip, speaker, fold, self.classes[label], ""])
        return text.getvalue().encode()

    @staticmethod
    def read(path: Path) -> ClipTable:
        """Read what `to_bytes` made; raises ValueError, KeyError or IndexError on what is damaged."""
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        classes = tuple(json.loads(header[4].removeprefix("classes: ")))
        return ClipTable(
            clips=tuple(row[0] for row in rows),
            speakers=tuple(row[1] for row in rows),
            folds=np.asarray([int(row[2]) for row in rows], np.int64),
            labels=np.asarray([classes.index(row[3]) for row in rows], np.int64),
            classes=classes,
        )
