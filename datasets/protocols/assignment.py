"""Assign speakers to folds: listed groups, a published partition, or balanced by size."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

from datasets.clips import DataError
from datasets.sharding.index import ShardIndex

Assign = Callable[[ShardIndex], dict[str, int]]
"""Speaker → fold; raises DataError where the protocol is not of this corpus."""


def most_folds(index: ShardIndex) -> int:
    """Five, or as many as there are speakers."""
    return max(2, min(5, len({entry.speaker for entry in index.clips})))


HOW_TO_JOIN = "Join corpora with: python -m datasets.join OUT A B"


def corpus_of_speakers(index: ShardIndex) -> dict[str, str]:
    """Speaker → their clips' attribute `corpus`, empty where there is none; raises DataError on two."""
    corpus_of: dict[str, str] = {}
    for entry in index.clips:
        corpus = entry.attributes.get("corpus", "")
        if corpus_of.setdefault(entry.speaker, corpus) != corpus:
            raise DataError(
                f"Leak: speaker '{entry.speaker}' is in two corpora, '{corpus_of[entry.speaker]}' and '{corpus}'."
            )
    return corpus_of


def listed(name: str, groups: Sequence[Sequence[str]]) -> Assign:
    """Folds of named speakers; every fold needs one of its own."""
    frozen = {speaker: fold for fold, group in enumerate(groups) for speaker in group}
    first, last = min(frozen), max(frozen)

    def assign(index: ShardIndex) -> dict[str, int]:
        strangers = sorted({e.speaker for e in index.clips} - set(frozen))
        if strangers:
            raise DataError(
                f"Protocol {name} knows {first} to {last}, not '{strangers[0]}'. "
                "For another corpus take speaker-kfold:K."
            )
        present = {frozen[e.speaker] for e in index.clips}
        if present != set(range(len(groups))):
            raise DataError(
                f"Protocol {name} has {len(groups)} folds; the speakers here fill only "
                f"{sorted(present)}. Add the missing speakers, or take speaker-kfold:K."
            )
        return frozen

    return assign


def partition(name: str, groups: Sequence[Sequence[str]], otherwise: str) -> Assign:
    """Folds are a published partition's parts, as far as their recordings are here.

    Labels of some of RECOLA's recordings were never given away. `otherwise` is the protocol that
    errors recommend.
    """
    part_of = {speaker: number for number, group in enumerate(groups) for speaker in group}

    def assign(index: ShardIndex) -> dict[str, int]:
        here = {entry.speaker for entry in index.clips}
        strangers = sorted(here - set(part_of))
        if strangers:
            raise DataError(f"Protocol {name} does not know '{strangers[0]}'. Take {otherwise}.")
        parts = sorted({part_of[speaker] for speaker in here})
        if len(parts) < 2:
            raise DataError(
                f"Protocol {name} needs recordings of two of its parts or more; all {len(here)} here "
                f"are of one. Take {otherwise}."
            )
        return {speaker: parts.index(part_of[speaker]) for speaker in here}

    return assign


def balanced(count: int) -> Assign:
    """Largest speaker first into the smallest fold; ties by a hash of the name.

    Of a joined corpus one corpus after the other, each into the fold that has fewest clips of it, so that
    every fold has of every corpus, and with it of every class that only one of them has.
    """

    def assign(index: ShardIndex) -> dict[str, int]:
        sizes = Counter(entry.speaker for entry in index.clips)
        corpus_of = corpus_of_speakers(index)
        if len(sizes) < count:
            raise DataError(
                f"Protocol speaker-kfold:{count} needs {count} speakers or more, "
                f"the corpus has {len(sizes)}. Take fewer folds (--protocol speaker-kfold:K)."
            )
        order = sorted(
            sizes,
            key=lambda s: (corpus_of[s], -sizes[s], hashlib.sha256(s.encode()).hexdigest()),
        )
        filled, of_corpus = [0] * count, Counter[tuple[str, int]]()
        fold_of_speaker = {}
        for speaker in order:
            corpus = corpus_of[speaker]
            fold = min(range(count), key=lambda k: (of_corpus[corpus, k], filled[k], k))
            fold_of_speaker[speaker] = fold
            filled[fold] += sizes[speaker]
            of_corpus[corpus, fold] += sizes[speaker]
        return fold_of_speaker

    return assign
