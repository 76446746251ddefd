"""Protocols: which speakers are tested when, frozen and hashed; and the leak guard."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.index import ShardIndex

# Luna-Jiménez et al. 2021: test actors of the five folds.
_RAVDESS_LUNA5 = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)


@dataclass(frozen=True)
class Folds:
    """A corpus split by speaker under a protocol.

    Attributes:
        protocol: The protocol's name.
        metric: The protocol's primary score.
        fold_of_clip: (N,) the fold in which each clip of the index is tested, -1 for clips
            of test speakers, who are in no fold.
        fingerprint: SHA-256 over protocol and every clip's fold: two runs with the same
            fingerprint were scored on the same split.
        test_speakers: Held out of every fold, to be looked at once, at the end.
    """

    protocol: str
    metric: str
    fold_of_clip: NDArray[np.int64]
    fingerprint: str
    test_speakers: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """K, the number of folds."""
        return int(self.fold_of_clip.max()) + 1

    def train_rows(self, fold: int) -> NDArray[np.int64]:
        """Rows of the index that train the network of a fold."""
        return np.flatnonzero((self.fold_of_clip != fold) & (self.fold_of_clip >= 0))

    def test_rows(self, fold: int) -> NDArray[np.int64]:
        """Rows of the index that are held out in a fold."""
        return np.flatnonzero(self.fold_of_clip == fold)

    @property
    def unseen_rows(self) -> NDArray[np.int64]:
        """Rows of the test speakers, which no network trains on."""
        return np.flatnonzero(self.fold_of_clip < 0)


def make_folds(
    index: ShardIndex, protocol: str | None = None, test_speakers: Sequence[str] = ()
) -> Folds:
    """Splits a corpus under a named protocol.

    Args:
        index: The corpus.
        protocol: `ravdess-luna5`, `speaker-kfold:K`, or None for the corpus's own.
        test_speakers: Put in no fold; the protocol splits the others.

    Raises:
        DataError: Unknown protocol or speaker, fewer speakers than folds, a speaker or the same
            recording on two sides, or a class that a fold lacks.
    """
    apart = frozenset(test_speakers)
    strangers = sorted(apart - {entry.speaker for entry in index.clips})
    if strangers:
        known = ", ".join(sorted({entry.speaker for entry in index.clips}))
        raise DataError(f"Unknown test speaker '{strangers[0]}'. Known: {known}.")
    others = replace(index, clips=tuple(e for e in index.clips if e.speaker not in apart))
    name = protocol or default_protocol(others)
    if name == "ravdess-luna5":
        assign = _by_actor(_RAVDESS_LUNA5)
    elif name.startswith("speaker-kfold:"):
        assign = _balanced(_parse_count(name))
    else:
        raise DataError(f"Unknown protocol '{name}'. Known: ravdess-luna5, speaker-kfold:K.")
    fold_of_speaker = assign(others) | dict.fromkeys(apart, -1)
    folds = np.asarray([fold_of_speaker[entry.speaker] for entry in index.clips], np.int64)
    guard_against_leaks(index, folds)
    _require_every_class(index, folds)
    pairs = sorted((entry.clip, int(fold)) for entry, fold in zip(index.clips, folds, strict=True))
    fingerprint = hashlib.sha256(json.dumps([name, pairs]).encode()).hexdigest()
    metric = "accuracy"
    return Folds(name, metric, folds, fingerprint, tuple(sorted(apart)))


def default_protocol(index: ShardIndex) -> str:
    """The published protocol where the corpus has one, else speaker folds (at most five)."""
    if index.corpus == "ravdess":
        return "ravdess-luna5"
    return f"speaker-kfold:{max(2, min(5, len({e.speaker for e in index.clips})))}"


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
    fold_by_clip = {e.clip: int(f) for e, f in zip(index.clips, fold_of_clip, strict=True)}
    for group in index.duplicates():
        if len({fold_by_clip[entry.clip] for entry in group}) > 1:
            clips = " and ".join(f"'{e.clip}' ({e.speaker})" for e in group)
            raise DataError(
                f"Leak: {clips} are the same recording, on several sides. "
                "Remove all but one, or give them the same speaker."
            )


def _parse_count(name: str) -> int:
    text = name.partition(":")[2]
    if not text.isdecimal() or int(text) < 2:
        raise DataError(f"speaker-kfold:K needs K of 2 or more, got '{name}'.")
    return int(text)


def _by_actor(groups: tuple[tuple[int, ...], ...]) -> Callable[[ShardIndex], dict[str, int]]:
    frozen = {f"Actor_{actor:02d}": fold for fold, group in enumerate(groups) for actor in group}

    def assign(index: ShardIndex) -> dict[str, int]:
        strangers = sorted({e.speaker for e in index.clips} - set(frozen))
        if strangers:
            raise DataError(
                f"Protocol ravdess-luna5 knows Actor_01 to Actor_24, not '{strangers[0]}'. "
                "For another corpus take speaker-kfold:K."
            )
        present = {frozen[e.speaker] for e in index.clips}
        if present != set(range(len(groups))):
            raise DataError(
                f"Protocol ravdess-luna5 has {len(groups)} folds; the actors here fill only "
                f"{sorted(present)}. Add the missing actors, or take speaker-kfold:K."
            )
        return frozen

    return assign


def _balanced(count: int) -> Callable[[ShardIndex], dict[str, int]]:
    """Largest speaker first into the smallest fold; ties by a hash of the name."""

    def assign(index: ShardIndex) -> dict[str, int]:
        sizes = Counter(entry.speaker for entry in index.clips)
        if len(sizes) < count:
            raise DataError(
                f"Protocol speaker-kfold:{count} needs {count} speakers or more, "
                f"the corpus has {len(sizes)}. Take fewer folds (--protocol speaker-kfold:K)."
            )
        order = sorted(sizes, key=lambda s: (-sizes[s], hashlib.sha256(s.encode()).hexdigest()))
        filled = [0] * count
        fold_of_speaker = {}
        for speaker in order:
            fold = min(range(count), key=lambda k: (filled[k], k))
            fold_of_speaker[speaker] = fold
            filled[fold] += sizes[speaker]
        return fold_of_speaker

    return assign


def _require_every_class(index: ShardIndex, folds: NDArray[np.int64]) -> None:
    """A class that a fold never tests, or never trains on, makes its score meaningless."""
    labels = np.asarray([entry.label for entry in index.clips])
    for fold in range(int(folds.max()) + 1):
        for label in index.labels:
            if not (labels[folds == fold] == label).any():
                raise DataError(
                    f"Fold {fold} has no clip of class '{label}'. Take fewer folds "
                    "(--protocol speaker-kfold:K) or other classes (--classes)."
                )
            if not (labels[(folds != fold) & (folds >= 0)] == label).any():
                raise DataError(
                    f"Outside fold {fold} no clip of class '{label}' is left to train on."
                )
