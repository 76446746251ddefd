"""Split a corpus under a named protocol, frozen and hashed."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datasets.clips import SPLITS, DataError
from datasets.protocols.assignment import (
    HOW_TO_JOIN,
    Assign,
    balanced,
    corpus_of_speakers,
    most_folds,
)
from datasets.protocols.folds import RANDOM, Folds
from datasets.protocols.leakage import guard_against_leaks, require_every_class
from datasets.protocols.published import DEFAULT_PROTOCOLS, EXCLUDED_FOLDS, PROTOCOLS
from datasets.sharding.index import ShardIndex, own_name

_RANDOM_FOLDS = 5


MANIFEST_SPLIT = "manifest-split"
"""The corpus's own split (an attribute `split`): who is in test is a test speaker, the others fill folds."""


CORPUS_OUT = "corpus-out"
"""Protocol of a joined corpus: each of its corpora is a fold."""


def make_folds(
    index: ShardIndex, protocol: str | None = None, test_speakers: Sequence[str] = ()
) -> Folds:
    """Splits a corpus under a named protocol.

    Args:
        index: The corpus.
        protocol: A name of `PROTOCOLS`, `speaker-kfold:K`, `manifest-split` (which adds its own
            test speakers), `random` (which leaks, see `Folds.leak`), or None for the corpus's own.
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
    if (protocol or default_protocol(index)) == MANIFEST_SPLIT:
        protocol, apart = MANIFEST_SPLIT, apart | _speakers_to_test(index)
    others = replace(index, clips=tuple(e for e in index.clips if e.speaker not in apart))
    name = protocol or default_protocol(others)
    names = tuple(sorted(set(corpus_of_speakers(others).values()))) if name == CORPUS_OUT else ()
    if name == RANDOM:
        fold_of_clip = _at_random(others)
        folds = np.asarray([fold_of_clip.get(entry.clip, -1) for entry in index.clips], np.int64)
    else:
        fold_of_speaker = _dealt(name, others)
        fold_of_speaker |= dict.fromkeys(apart, -1)
        folds = np.asarray([fold_of_speaker[entry.speaker] for entry in index.clips], np.int64)
        guard_against_leaks(index, folds)
    partners = EXCLUDED_FOLDS.get(name, ())
    require_every_class(index, folds, partners, names)
    pairs = sorted((entry.clip, int(fold)) for entry, fold in zip(index.clips, folds, strict=True))
    fingerprint = hashlib.sha256(json.dumps([name, pairs]).encode()).hexdigest()
    metric = "ccc" if index.dimensions else "accuracy"
    return Folds(name, metric, folds, fingerprint, tuple(sorted(apart)), partners, names)


def _dealt(name: str, index: ShardIndex) -> dict[str, int]:
    """Speaker → fold; what is left of a joined corpus, if it is one alone, is split as that one is."""
    own = {entry.speaker: own_name(index.corpus, entry.speaker) for entry in index.clips}
    corpora = {corpus for corpus, _ in own.values()}
    if len(corpora) != 1 or corpora == {index.corpus}:
        return dict(_assign(name)(index))
    clips = tuple(replace(entry, speaker=own[entry.speaker][1]) for entry in index.clips)
    folds = _assign(name)(replace(index, corpus=corpora.pop(), clips=clips))
    return {speaker: folds[alone] for speaker, (_, alone) in own.items()}


def _assign(name: str) -> Assign:
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if name == CORPUS_OUT:
        return _corpus_out
    if name == MANIFEST_SPLIT:
        return lambda others: balanced(most_folds(others))(others)
    if name.startswith("speaker-kfold:"):
        return balanced(_parse_count(name))
    known = ", ".join([*PROTOCOLS, "speaker-kfold:K", CORPUS_OUT, MANIFEST_SPLIT, RANDOM])
    raise DataError(f"Unknown protocol '{name}'. Known: {known}.")


def _at_random(index: ShardIndex) -> dict[str, int]:
    """Clip → fold: each class dealt out in the order of a hash of its clips' names."""
    folds: dict[str, int] = {}
    for label in index.labels or ("",):
        clips = [entry.clip for entry in index.clips if entry.label == label]
        shuffled = sorted(clips, key=lambda clip: hashlib.sha256(clip.encode()).hexdigest())
        folds |= {clip: number % _RANDOM_FOLDS for number, clip in enumerate(shuffled)}
    return folds


def default_protocol(index: ShardIndex) -> str:
    """The published protocol where the corpus has one, its own split, else speaker folds (at most five).

    Of a joined corpus speaker folds; where one of its corpora is left alone, that one's published protocol.
    """
    corpora = {own_name(index.corpus, entry.speaker)[0] for entry in index.clips}
    if len(corpora) == 1 and (own := DEFAULT_PROTOCOLS.get(corpora.pop())):
        return own
    joined = index.corpus not in {own_name(index.corpus, e.speaker)[0] for e in index.clips}
    if not joined and any(entry.attributes.get("split") == "test" for entry in index.clips):
        return MANIFEST_SPLIT
    return f"speaker-kfold:{most_folds(index)}"


def _speakers_to_test(index: ShardIndex) -> frozenset[str]:
    """Who is in the split `test`, and nowhere else; raises DataError that names who is."""
    sides: dict[str, set[str]] = defaultdict(set)
    for entry in index.clips:
        split = entry.attributes.get("split", "")
        if split not in SPLITS:
            raise DataError(
                f"Protocol {MANIFEST_SPLIT} needs a split of {', '.join(SPLITS)} for every clip; "
                f"'{entry.clip}' has {repr(split) if split else 'none'}. Take speaker-kfold:K."
            )
        sides[entry.speaker].add(split)
    both = sorted(speaker for speaker, found in sides.items() if "test" in found and len(found) > 1)
    if both:
        raise DataError(
            f"Leak: the split has clips of {len(both)} speakers in test and in train or dev: "
            f"{', '.join(both[:10])}. Mend it, or take --protocol speaker-kfold:K."
        )
    apart = frozenset(speaker for speaker, found in sides.items() if "test" in found)
    if not apart:
        raise DataError(
            f"Protocol {MANIFEST_SPLIT} needs clips of the split test. Take speaker-kfold:K."
        )
    if len(apart) == len(sides):
        raise DataError(f"Protocol {MANIFEST_SPLIT} needs clips of the split train; all are test.")
    return apart


def corpus_speakers(index: ShardIndex, corpus: str) -> tuple[str, ...]:
    """Who speaks in one corpus of a joined one.

    Raises:
        DataError: There is none of that name, or no other.
    """
    corpus_of = corpus_of_speakers(index)
    known = sorted({name for name in corpus_of.values() if name})
    if corpus not in known:
        rest = f"Known: {', '.join(known)}." if known else f"This one is not joined. {HOW_TO_JOIN}"
        raise DataError(f"Unknown corpus '{corpus}'. {rest}")
    if len(known) == 1:
        raise DataError(f"All clips are of the corpus '{corpus}': nothing is left to train on.")
    return tuple(sorted(speaker for speaker, name in corpus_of.items() if name == corpus))


def _corpus_out(index: ShardIndex) -> dict[str, int]:
    """Each corpus is a fold, in the order of their names."""
    corpus_of = corpus_of_speakers(index)
    names = sorted(set(corpus_of.values()))
    if len(names) < 2 or "" in names:
        found = ", ".join(repr(name) for name in names if name) or "none"
        raise DataError(
            f"Protocol {CORPUS_OUT} needs clips of two corpora or more, each with an attribute `corpus`; "
            f"here: {found}. {HOW_TO_JOIN}"
        )
    return {speaker: names.index(corpus) for speaker, corpus in corpus_of.items()}


def _parse_count(name: str) -> int:
    text = name.partition(":")[2]
    if not text.isdecimal() or int(text) < 2:
        raise DataError(f"speaker-kfold:K needs K of 2 or more, got '{name}'.")
    return int(text)
