"""Tables of held-out posteriors as CSV, anybody's too: read, checked and joined."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensembles import EnsembleError
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.metrics import Array, log_softmax

_FIXED = ("clip", "speaker", "fold", "label")


_EXTRA = ("part", "seed")


@dataclass(frozen=True)
class PosteriorFile:
    """One expert's posteriors as read: by (fold, clip), its training side apart."""

    name: str
    classes: tuple[str, ...]
    about: dict[str, tuple[str, str]]  # clip -> speaker, label
    fold_of: dict[str, str]  # clip -> fold that holds it out
    held_out: dict[str, Array]  # clip -> (K,) log-posteriors
    training: dict[tuple[str, str], Array]  # (fold, clip) -> (K,)


def read_posteriors(path: Path, kind: str = "probabilities") -> PosteriorFile:
    """Reads one expert's posteriors.

    Args:
        path: CSV; the columns that are not fixed are the classes.
        kind: probabilities or logits.

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
    if len(seeds) > 1:
        raise EnsembleError(
            f"'{path}' holds posteriors of several seeds ({', '.join(seeds[:5])}); keep one a file."
        )
    result = PosteriorFile(path.stem, classes, {}, {}, {}, {})
    bad = [
        f"row {n}: {why}"
        for n, row in enumerate(rows, start=2)
        if (why := _take(row, result, kind))
    ]
    if bad:
        raise EnsembleError(f"'{path}' has {len(bad)} bad rows:\n  " + "\n  ".join(bad[:20]))
    if not result.held_out:
        raise EnsembleError(f"'{path}' has no row of held-out clips.")
    return result


def _take(row: dict[str, str], into: PosteriorFile, kind: str) -> str | None:
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
        values = np.log(np.maximum(values, 1e-12))
    known = into.about.setdefault(clip, (row["speaker"], row["label"]))
    if known != (row["speaker"], row["label"]):
        return f"clip '{clip}' has another speaker or label than in an earlier row"
    if part == "train":
        into.training[fold, clip] = log_softmax(values)
    elif clip in into.held_out:
        return f"clip '{clip}' is held out twice (one seed a file)"
    else:
        into.held_out[clip], into.fold_of[clip] = log_softmax(values), fold
    return None


def join(files: list[PosteriorFile]) -> Experts:
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
            if file.about[clip] != first.about[clip] or file.fold_of[clip] != first.fold_of[clip]:
                raise EnsembleError(
                    f"'{first.name}' and '{file.name}' differ in speaker, label or fold of clip '{clip}'."
                )
    clips = tuple(sorted(first.held_out))
    fold_names = sorted({first.fold_of[c] for c in clips})
    side: dict[str, str] = {}
    for clip in clips:
        speaker = first.about[clip][0]
        if side.setdefault(speaker, first.fold_of[clip]) != first.fold_of[clip]:
            raise EnsembleError(
                f"Leak: speaker '{speaker}' is held out in several folds: these are not speaker-disjoint folds."
            )
    if len(fold_names) < 2:
        raise EnsembleError(
            "The posteriors have one fold; cross-fitting a fusion needs two or more."
        )
    table = ClipTable(
        clips=clips,
        speakers=tuple(first.about[c][0] for c in clips),
        folds=np.asarray([fold_names.index(first.fold_of[c]) for c in clips], np.int64),
        labels=np.asarray([first.classes.index(first.about[c][1]) for c in clips], np.int64),
        classes=first.classes,
    )
    stacked = np.stack(
        [np.stack([in_order(f, f.held_out[c], first.classes) for c in clips]) for f in files]
    )
    return Experts(table, names, names, stacked)


def in_order(file: PosteriorFile, values: Array, classes: tuple[str, ...]) -> Array:
    """Return a file's values (…, K) with the columns in the order of `classes`."""
    return values[[file.classes.index(name) for name in classes]]
