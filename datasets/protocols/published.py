"""Published protocols: which speakers of which corpus are tested when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from datasets.protocols.assignment import Assign, balanced, listed, most_folds, partition
from datasets.sharding.index import own_name

# Test actors of each fold. Luna-Jiménez et al. 2021, and EmoBox (Ma et al. 2024).
_RAVDESS_LUNA5 = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)


_RAVDESS_EMOBOX6 = (
    (1, 11, 20, 21),
    (4, 10, 12, 14),
    (8, 9, 19, 23),
    (3, 5, 7, 24),
    (2, 15, 16, 18),
    (6, 13, 17, 22),
)


# Ours: every fifth actor. The published split that we know of has all actors on both sides.
_CREMA_D5 = tuple(tuple(range(1001 + first, 1092, 5)) for first in range(5))


# RECOLA's partitions: AVEC 2016 names them in its files; the other is of Tzirakis et al. 2017's code.
_RECOLA_AVEC = tuple(tuple(f"{part}_{n}" for n in range(1, 10)) for part in ("train", "dev"))


_RECOLA_TZIRAKIS = (
    (15, 16, 17, 18, 21, 23, 25, 37, 39, 41, 46, 50, 51, 55, 56, 60),
    (14, 19, 24, 26, 28, 30, 34, 40, 42, 43, 44, 45, 52, 64, 65),
    (13, 20, 22, 32, 38, 47, 48, 49, 53, 54, 57, 58, 59, 62, 63),
)


_SESSIONS = tuple(f"Ses{number:02d}" for number in range(1, 6))


def _ravdess(name: str, groups: Sequence[Sequence[int]]) -> Assign:
    return listed(name, [[f"Actor_{actor:02d}" for actor in group] for group in groups])


def excluded_folds(
    name: str, corpus: str, fold_of_speaker: dict[str, int]
) -> tuple[tuple[int, ...], ...]:
    """Of each fold the other folds that its networks do not train on: partners, or a session for validation."""
    if name == "iemocap-loso10":
        own = {own_name(corpus, who)[1]: fold for who, fold in fold_of_speaker.items()}
        return _partners(own)
    if name == "iemocap-loso5-validation":
        count = len(_SESSIONS)
        return tuple(((fold + 1) % count,) for fold in range(count))
    return ()


def _partners(fold_of_speaker: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    """IEMOCAP's one-speaker folds: for each, that of the other actor of the session."""
    sessions: dict[str, list[int]] = defaultdict(list)
    for speaker, fold in fold_of_speaker.items():
        if fold >= 0:
            sessions[speaker[:5]].append(fold)
    other = {
        fold: tuple(f for f in pair if f != fold) for pair in sessions.values() for fold in pair
    }
    return tuple(other[fold] for fold in range(len(other)))


PROTOCOLS: dict[str, Assign] = {
    "ravdess-luna5": _ravdess("ravdess-luna5", _RAVDESS_LUNA5),
    "ravdess-emobox6": _ravdess("ravdess-emobox6", _RAVDESS_EMOBOX6),
    "iemocap-loso5": listed("iemocap-loso5", [[f"{s}F", f"{s}M"] for s in _SESSIONS]),
    "iemocap-loso5-validation": listed(
        "iemocap-loso5-validation", [[f"{s}F", f"{s}M"] for s in _SESSIONS]
    ),
    "iemocap-loso10": listed("iemocap-loso10", [[f"{s}{x}"] for s in _SESSIONS for x in "FM"]),
    "recola-avec": partition("recola-avec", _RECOLA_AVEC),
    "recola-tzirakis": partition(
        "recola-tzirakis", [[f"P{number}" for number in group] for group in _RECOLA_TZIRAKIS]
    ),
    "recola-open-kfold": lambda index: balanced(most_folds(index))(index),
    "crema-d-speakers5": listed("crema-d-speakers5", [[str(a) for a in g] for g in _CREMA_D5]),
}
"""Name → who is tested when; frozen."""


DEFAULT_PROTOCOLS = {
    "ravdess": "ravdess-luna5",
    "iemocap": "iemocap-loso5",
    "crema_d": "crema-d-speakers5",
    "recola": "recola-open-kfold",
}
