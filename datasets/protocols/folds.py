"""The folds of a corpus: who is tested when, and what each network trains on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANDOM = "random"
"""A protocol that shows how much a split by clips flatters; it is no measure of anything else."""


_LEAK = (
    "LEAK, as asked (--protocol random): clips are split at random, the same speakers are trained on and "
    "scored, so every score is too good"
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
        partners: For each fold those whose clips its network does not train on either: who is in
            them talks with who is tested, or they are kept for validation. Empty where there are none.
        names: What each fold is, where that is more than a number: the corpora of `corpus-out`.
    """

    protocol: str
    metric: str
    fold_of_clip: NDArray[np.int64]
    fingerprint: str
    test_speakers: tuple[str, ...] = ()
    partners: tuple[tuple[int, ...], ...] = ()
    names: tuple[str, ...] = ()

    @property
    def leak(self) -> str | None:
        """Return the warning that every output must begin with; None for a split that keeps speakers apart."""
        return _LEAK if self.protocol == RANDOM else None

    @property
    def count(self) -> int:
        """K, the number of folds."""
        return int(self.fold_of_clip.max()) + 1

    def train_rows(self, fold: int) -> NDArray[np.int64]:
        """Rows of the index that train the network of a fold."""
        apart = (-1, fold, *(self.partners[fold] if self.partners else ()))
        return np.flatnonzero(~np.isin(self.fold_of_clip, apart))

    def test_rows(self, fold: int) -> NDArray[np.int64]:
        """Rows of the index that are held out in a fold."""
        return np.flatnonzero(self.fold_of_clip == fold)

    @property
    def unseen_rows(self) -> NDArray[np.int64]:
        """Rows of the test speakers, which no network trains on."""
        return np.flatnonzero(self.fold_of_clip < 0)
