"""Tables of held-out posteriors as CSV, a run's or anybody's: written, read, checked and joined."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.storage.atomic import write_atomically
from ensembles import EnsembleError
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.metrics import Array, log_softmax

FLOOR = 5e-7
"""Least probability that is read: half a unit of the last of the six digits that are written.

A written zero may have been anything below it, so that no clip's log-loss exceeds 14.5 nats.
"""

_FIXED = ("clip", "speaker", "fold", "label")
_EXTRA = ("part", "seed")


@dataclass(frozen=True)
class PredictionTable:
    """One expert's posteriors as read, those of training clips apart.

    Attributes:
        name: The file's, which is the expert's.
        classes: (K,) names, in the order of the columns.
        speakers: Clip → speaker.
        labels: Clip → class.
        folds: Clip → name of the fold that holds it out.
        held_out: Clip → (K,) log-posteriors.
        training: (fold, clip) → (K,) log-posteriors by the networks that were trained on it.
    """

    name: str
    classes: tuple[str, ...]
    speakers: dict[str, str]
    labels: dict[str, str]
    folds: dict[str, str]
    held_out: dict[str, Array]
    training: dict[tuple[str, str], Array]

    def clip_table(self, clips: Iterable[str], folds: Sequence[str]) -> ClipTable:
        """Rows of held-out clips; folds are numbered in the given order of their names."""
        clips, number = tuple(clips), {name: k for k, name in enumerate(folds)}
        return ClipTable(
            clips=clips,
            speakers=tuple(self.speakers[clip] for clip in clips),
            folds=np.asarray([number[self.folds[clip]] for clip in clips], np.int64),
            labels=np.asarray([self.classes.index(self.labels[clip]) for clip in clips], np.int64),
            classes=self.classes,
        )

    def log_posteriors(self, clips: Iterable[str], classes: Sequence[str]) -> Array:
        """(N, K) of held-out clips, with the columns in the order of `classes`."""
        return self._columns([self.held_out[clip] for clip in clips], classes)

    def of_training(self, fold: str, clips: Iterable[str], classes: Sequence[str]) -> Array:
        """(N, K) of clips that a fold's networks were trained on."""
        return self._columns([self.training[fold, clip] for clip in clips], classes)

    def _columns(self, rows: Sequence[Array], classes: Sequence[str]) -> Array:
        return np.stack(rows)[:, [self.classes.index(name) for name in classes]]


def write_predictions(path: Path, table: ClipTable, by_seed: Iterable[tuple[int, Array]]) -> None:
    """Write held-out posteriors, of one training seed after the other, with six digits.

    Args:
        path: CSV file.
        table: The clips.
        by_seed: Training seed and (N, K) log-posteriors.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["clip", "speaker", "fold", "seed", "label", *table.classes])
    for seed, log_posteriors in by_seed:
        for row, values in enumerate(np.exp(log_posteriors)):
            label = table.classes[table.labels[row]]
            about = [table.clips[row], table.speakers[row], table.folds[row], seed, label]
            writer.writerow([*about, *(f"{value:.6f}" for value in values)])
    write_atomically(path, text.getvalue().encode())


def read_predictions(
    path: Path, kind: str = "probabilities", *, seed: int | None = None
) -> PredictionTable:
    """Read one expert's posteriors.

    Args:
        path: CSV; the columns that are not fixed are the classes.
        kind: probabilities or logits.
        seed: Training seed whose rows are read; None: there is one seed.

    Raises:
        EnsembleError: Names the file, and the rows that are wrong.
    """
    if not path.is_file():
        raise EnsembleError(f"No such file: '{path}'.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        missing = [c for c in _FIXED if c not in columns]
        classes = tuple(c for c in columns if c not in (*_FIXED, *_EXTRA))
        if missing or len(classes) < 2:
            raise EnsembleError(
                f"'{path}' needs the columns clip,speaker,fold,label and one a class; it has: {', '.join(columns)}."
            )
        rows = list(reader)
    seeds = sorted({row["seed"] or "none" for row in rows}) if "seed" in columns else []
    if seed is None and len(seeds) > 1:
        raise EnsembleError(
            f"'{path}' holds posteriors of several seeds ({', '.join(seeds[:5])}); keep one a file."
        )
    result = PredictionTable(path.stem, classes, {}, {}, {}, {}, {})
    bad = [
        f"row {n}: {why}"
        for n, row in enumerate(rows, start=2)
        if seed is None or row.get("seed") == str(seed)
        if (why := _take(row, result, kind))
    ]
    if bad:
        raise EnsembleError(f"'{path}' has {len(bad)} bad rows:\n  " + "\n  ".join(bad[:20]))
    if not result.held_out:
        raise EnsembleError(f"'{path}' has no row of held-out clips.")
    return result


def _take(row: dict[str, str], into: PredictionTable, kind: str) -> str | None:
    """Adds a row; returns what is wrong with it, or None."""
    if None in row or None in row.values():
        return "the number of fields differs from the header's"
    clip, fold, part = row["clip"], row["fold"], row.get("part", "test")
    if row["label"] not in into.classes:
        return f"label '{row['label']}' is not a class column"
    if part not in ("train", "test"):
        return f"part is '{part}', not train or test"
    try:
        values = np.asarray([float(row[name]) for name in into.classes])
    except ValueError:
        return f"clip '{clip}' has values that are not numbers"
    if not np.isfinite(values).all():
        return f"clip '{clip}' has values that are not finite"
    if kind == "probabilities":
        if (values < 0).any() or abs(values.sum() - 1.0) > 0.02:
            return (
                f"clip '{clip}': probabilities must be 0 or more and sum to 1, "
                f"got {values.sum():.3f} (or: --kind logits)"
            )
        values = np.log(np.maximum(values, FLOOR))
    speaker = into.speakers.setdefault(clip, row["speaker"])
    label = into.labels.setdefault(clip, row["label"])
    if (speaker, label) != (row["speaker"], row["label"]):
        return f"clip '{clip}' has another speaker or label than in an earlier row"
    if part == "train":
        into.training[fold, clip] = log_softmax(values)
    elif clip in into.held_out:
        return f"clip '{clip}' is held out twice (one seed a file)"
    else:
        into.held_out[clip], into.folds[clip] = log_softmax(values), fold
    return None


def join(files: Sequence[PredictionTable]) -> Experts:
    """Joins experts by clip, whatever the row order.

    Raises:
        EnsembleError: Classes, clips, speakers, labels or folds differ between files, or a
            speaker is held out in several folds.
    """
    first = files[0]
    names = tuple(f.name for f in files)
    if len(set(names)) < len(names):
        raise EnsembleError("Two files have the same name; rename one: the name is the expert's.")
    for file in files[1:]:
        if set(file.classes) != set(first.classes):
            raise EnsembleError(
                f"'{file.name}' has the classes {sorted(file.classes)}, '{first.name}' {sorted(first.classes)}."
            )
        differing = sorted(set(file.held_out) ^ set(first.held_out))
        if differing:
            raise EnsembleError(
                f"{len(differing)} clips are not in both '{first.name}' and '{file.name}': {', '.join(differing[:5])}."
            )
        for clip in first.held_out:
            if _about(file, clip) != _about(first, clip):
                raise EnsembleError(
                    f"'{first.name}' and '{file.name}' differ in speaker, label or fold of clip '{clip}'."
                )
    clips = tuple(sorted(first.held_out))
    folds = sorted({first.folds[clip] for clip in clips})
    side: dict[str, str] = {}
    for clip in clips:
        speaker, fold = first.speakers[clip], first.folds[clip]
        if side.setdefault(speaker, fold) != fold:
            raise EnsembleError(
                f"Leak: speaker '{speaker}' is held out in several folds: these are not speaker-disjoint folds."
            )
    if len(folds) < 2:
        raise EnsembleError(
            "The posteriors have one fold; cross-fitting a fusion needs two or more."
        )
    stacked = np.stack([file.log_posteriors(clips, first.classes) for file in files])
    return Experts(first.clip_table(clips, folds), names, names, stacked)


def _about(file: PredictionTable, clip: str) -> tuple[str, str, str]:
    return file.speakers[clip], file.labels[clip], file.folds[clip]
