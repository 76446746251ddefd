"""The leak guard: refuse a split that tests on what was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.protocols.folds import Folds
from datasets.sharding.index import ShardIndex


def guard_against_leaks(index: ShardIndex, fold_of_clip: NDArray[np.int64]) -> None:
    """Refuses a split that would test on what was trained on.

    Raises:
        DataError: Names the speaker, or the recordings, on two sides.
    """
    if len(fold_of_clip) != len(index.clips):
        raise DataError(f"The split has {len(fold_of_clip)} clips, the corpus {len(index.clips)}.")
    sides: dict[str, set[int]] = defaultdict(set)
    for entry, fold in zip(index.clips, fold_of_clip, strict=True):
        sides[entry.speaker].add(int(fold))
    for speaker, found in sorted(sides.items()):
        if len(found) > 1:
            raise DataError(
                f"Leak: speaker '{speaker}' is on several sides, folds {sorted(found)}."
            )
    of_recording: dict[str, set[int]] = defaultdict(set)
    for entry, fold in zip(index.clips, fold_of_clip, strict=True):
        if entry.recording:
            of_recording[entry.recording].add(int(fold))
    for recording, found in sorted(of_recording.items()):
        if len(found) > 1:
            raise DataError(
                f"Leak: windows of the recording '{recording}' are on several sides, folds "
                f"{sorted(found)}."
            )
    fold_by_clip = {e.clip: int(f) for e, f in zip(index.clips, fold_of_clip, strict=True)}
    for group in index.duplicates():
        if len({fold_by_clip[entry.clip] for entry in group}) > 1:
            clips = " and ".join(f"'{e.clip}' ({e.speaker})" for e in group)
            raise DataError(
                f"Leak: {clips} are the same recording, on several sides. "
                "Remove all but one, or give them the same speaker."
            )


def near_leaks(folds: Folds, index: ShardIndex, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Name the pairs of nearly identical recordings that are on two sides, a sentence each."""
    if folds.leak:
        return []
    of_clip = {
        entry.clip: (entry.speaker, int(fold))
        for entry, fold in zip(index.clips, folds.fold_of_clip, strict=True)
    }
    found = []
    for one, other in pairs:
        (mine, first), (its, second) = of_clip[one], of_clip[other]
        if first != second:
            found.append(
                f"Leak: '{one}' ({mine}) and '{other}' ({its}) are nearly the same recording, on several "
                f"sides (folds {first} and {second})"
            )
    return found


def require_every_class(
    index: ShardIndex,
    folds: NDArray[np.int64],
    partners: tuple[tuple[int, ...], ...],
    names: tuple[str, ...],
) -> None:
    """A class that a fold never tests, or never trains on, makes its score meaningless."""
    labels = np.asarray([entry.label for entry in index.clips])
    for fold in range(int(folds.max()) + 1):
        named = f"{fold} ({names[fold]})" if names else str(fold)
        for label in index.labels:
            if not (labels[folds == fold] == label).any():
                raise DataError(
                    f"Fold {named} has no clip of class '{label}'. Take fewer folds "
                    "(--protocol speaker-kfold:K) or other classes (--classes)."
                )
            apart = (-1, fold, *(partners[fold] if partners else ()))
            if not (labels[~np.isin(folds, apart)] == label).any():
                raise DataError(
                    f"Outside fold {named} no clip of class '{label}' is left to train on."
                )
