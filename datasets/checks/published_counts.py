"""Compare a corpus's clip counts with those that its authors publish."""

from __future__ import annotations

from collections import Counter

from datasets.corpora.registry import CORPORA, Counts
from datasets.sharding.index import ClipEntry, ShardIndex


def compare_counts(index: ShardIndex) -> dict[str, dict[str, int]]:
    """Compare a known corpus's clips with what its authors publish.

    Returns:
        Class, speaker or session (as `class 'sad'`) → `found` and `published` clips; empty where
        all is there, or nothing is published.
    """
    differing: dict[str, dict[str, int]] = {}
    for kind, counts in _published(index).items():
        found = Counter(_value(entry, kind) for entry in index.clips)
        differing |= {
            f"{kind} '{value}'": {"found": found[value], "published": count}
            for value, count in counts.items()
            if found[value] != count
        }
    return dict(sorted(differing.items()))


def published_classes(index: ShardIndex) -> dict[str, int]:
    """Class → published clips, of the classes that were taken."""
    return dict(_published(index).get("class", {}))


def _published(index: ShardIndex) -> Counts:
    if index.sources or index.corpus not in CORPORA:  # others' clips, or other labels
        return {}
    return CORPORA[index.corpus].counts(index)


def _value(entry: ClipEntry, kind: str) -> str:
    return {**entry.attributes, "class": entry.label, "speaker": entry.speaker}.get(kind, "")
