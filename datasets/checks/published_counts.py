"""Compare a corpus's clip counts with those that its authors publish."""

from __future__ import annotations

import re
from collections import Counter

from datasets.sharding.index import ShardIndex

# Livingstone & Russo 2018, Busso et al. 2008, Cao et al. 2014 (intended).
_PER_CLASS = {
    "ravdess": {"neutral": 96}
    | dict.fromkeys(("calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"), 192),
    "ravdess, sung": {"neutral": 92} | dict.fromkeys(("calm", "happy", "sad", "angry", "fearful"), 184),
    "iemocap": {
        "angry": 1103, "disgust": 2, "excited": 1041, "fearful": 40, "frustrated": 1849, "happy": 595,
        "neutral": 1708, "other": 3, "sad": 1084, "surprised": 107,
    },
    "crema_d": {"neutral": 1087}
    | dict.fromkeys(("angry", "disgust", "fearful", "happy", "sad"), 1271),
}  # fmt: skip
_FOUR = {"angry", "happy", "neutral", "sad"}
# Of the four classes with excited turns as happy ones, as everyone counts them.
_IEMOCAP_SESSIONS = {"Ses01": 1085, "Ses02": 1023, "Ses03": 1151, "Ses04": 1031, "Ses05": 1241}
_PER_ACTOR = {"ravdess": 60, "ravdess, sung": 44}
_SUNG = re.compile(r"0[123]-02-.*")


def compare_counts(index: ShardIndex) -> dict[str, dict[str, int]]:
    """What of a known corpus differs from what its authors publish.

    Returns:
        Class, speaker or session (as `class 'sad'`) → `found` and `published` clips; empty where
        all is there, or nothing is published.
    """
    if index.sources:  # others' clips, or other labels
        return {}
    name = _name(index)
    expected = [(f"class '{label}'", count) for label, count in published_classes(index).items()]
    found = Counter(f"class '{entry.label}'" for entry in index.clips)
    if count := _PER_ACTOR.get(name, 0):
        expected += [
            (f"speaker '{speaker}'", count) for speaker in {e.speaker for e in index.clips}
        ]
        found.update(f"speaker '{entry.speaker}'" for entry in index.clips)
    if name == "iemocap" and set(index.labels) == _FOUR:
        expected += [(f"session '{session}'", n) for session, n in _IEMOCAP_SESSIONS.items()]
        found.update(f"session '{entry.speaker[:5]}'" for entry in index.clips)
    return {
        what: {"found": found[what], "published": count}
        for what, count in sorted(expected)
        if found[what] != count
    }


def published_classes(index: ShardIndex) -> dict[str, int]:
    """Class → published clips; of IEMOCAP in the classes that were taken, excited ones perhaps as happy."""
    if index.sources:
        return {}
    known = dict(_PER_CLASS.get(_name(index), {}))
    if index.corpus != "iemocap":
        return known
    if "excited" not in index.labels:
        known["happy"] += known["excited"]
    return {label: count for label, count in known.items() if label in index.labels}


def _name(index: ShardIndex) -> str:
    sung = index.corpus == "ravdess" and all(_SUNG.fullmatch(e.clip) for e in index.clips)
    return "ravdess, sung" if sung else index.corpus
