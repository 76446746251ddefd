"""Labels of several raters: `happy:3;sad:1`, or one name a rater, `happy|happy|sad`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

TIES = ("error", "drop", "soft")
"""Values of `--ties`: the treatment of a clip whose raters do not agree on one label."""

_COUNTED = re.compile(r"(.+):\s*([-+\w.]+)\s*")


def parse_votes(text: str) -> dict[str, float]:
    """The votes that a label is; empty for one label alone.

    Returns:
        Label → share of the votes; they sum to 1.

    Raises:
        ValueError: Says what is wrong with them.
    """
    if "|" in text:
        return shares({}, text.split("|"))
    if ";" not in text and not re.fullmatch(r".+:\s*[-+]?[\d.]+\s*", text):
        return {}
    counts: dict[str, float] = {}
    for part in text.split(";"):
        found = _COUNTED.fullmatch(part)
        if found is None:
            raise ValueError(f"'{part.strip()}' is no vote such as happy:3")
        label, number = found[1].strip(), _count(found[2])
        if number is None:
            raise ValueError(f"'{found[2]}' is no number of votes")
        counts[label] = counts.get(label, 0.0) + number
    return shares(counts)


def shares(counts: Mapping[str, float], raters: Sequence[str] = ()) -> dict[str, float]:
    """Label → share, of numbers of votes, or of one label a rater; labels without a vote are left out."""
    summed = dict(counts)
    for label in map(str.strip, raters):
        summed[label] = summed.get(label, 0.0) + 1.0
    if "" in summed:
        raise ValueError("a vote names no label")
    total = sum(summed.values())
    if total <= 0:
        raise ValueError("there is no vote")
    return {label: votes / total for label, votes in summed.items() if votes > 0}


def winners(votes: Mapping[str, float]) -> list[str]:
    """The labels with most votes, in the order in which they were named; two or more are a tie."""
    most = max(votes.values())
    return [label for label, share in votes.items() if share > most - 1e-9]


def soft_targets(
    labels: Sequence[str], hard: Sequence[str], votes: Sequence[Mapping[str, float]]
) -> NDArray[np.float32]:
    """(N, K) probabilities of the classes: the votes for them, or the label where there are none.

    Args:
        labels: (K,) the classes; votes for others do not count.
        hard: (N,) each clip's label.
        votes: (N,) its votes, perhaps empty.
    """
    place = {label: number for number, label in enumerate(labels)}
    targets = np.zeros((len(hard), len(labels)), np.float32)
    for row, (label, of_clip) in enumerate(zip(hard, votes, strict=True)):
        counted = {name: share for name, share in of_clip.items() if name in place}
        total = sum(counted.values())
        for name, share in (counted if total else {label: 1.0}).items():
            targets[row, place[name]] = share / (total or 1.0)
    return targets


def _count(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
