"""A score in detail: by class, by speaker, by kind of clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ensembles.bank.clip_table import ClipTable
from ensembles.metrics import Array, calibration_error, confusion_matrix, metrics_of_classes


@dataclass(frozen=True)
class Detail:
    """Score of one set of held-out predictions, from every side.

    Attributes:
        confusion: Counts; rows are the true classes.
        recall: Of each class.
        speakers: Accuracy of each.
        metrics: Every metric and the calibration error, on all clips together.
        groups: Accuracy of each value of what is known of speakers, such as their gender, where they differ in it.
    """

    confusion: list[list[int]]
    recall: dict[str, float]
    speakers: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)


def detail(
    table: ClipTable,
    log_posteriors: Array,
    people: Mapping[str, Mapping[str, str]] | None = None,
) -> Detail:
    """Scores of held-out predictions by class, speaker and kind of speaker.

    Args:
        table: The clips.
        log_posteriors: (N, K).
        people: What is known of speakers: attribute → speaker → value.
    """
    labels, predictions = table.labels, log_posteriors.argmax(axis=1).astype(np.int64)
    matrix = confusion_matrix(labels, predictions, len(table.classes))
    recall = np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1)
    right = predictions == labels
    kinds = {
        attribute: [values.get(speaker, "unknown") for speaker in table.speakers]
        for attribute, values in (people or {}).items()
    }
    return Detail(
        matrix.tolist(),
        {name: float(value) for name, value in zip(table.classes, recall, strict=True)},
        _means(right, table.speakers),
        {
            **{n: m.score(labels, log_posteriors) for n, m in metrics_of_classes().items()},
            "calibration_error": calibration_error(labels, log_posteriors),
        },
        {attribute: _means(right, of) for attribute, of in kinds.items() if len(set(of)) > 1},
    )


def _means(right: Array, kinds: Sequence[str]) -> dict[str, float]:
    """Share of what is right, by kind."""
    names = np.asarray(kinds)
    return {str(name): float(right[names == name].mean()) for name in np.unique(names)}
