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
from datasets.index import ShardIndex, own_name

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

RANDOM = "random"
"""A protocol that shows how much a split by clips flatters; it is no measure of anything else."""
_RANDOM_FOLDS = 5
MANIFEST_SPLIT = "manifest-split"
"""The corpus's own split (an attribute `split`): who is in test is a test speaker, the others fill folds."""
SPLITS = ("train", "dev", "test")
CORPUS_OUT = "corpus-out"
"""Of a joined corpus: each of its corpora is a fold."""
_LEAK = (
    "LEAK, as asked (--protocol random): clips are split at random, the same speakers are trained on and "
    "scored, so every score is too good"
)

Assign = Callable[[ShardIndex], dict[str, int]]
"""Speaker → fold; raises DataError where the protocol is not of this corpus."""


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
        """What every output must say first; None for a split that keeps speakers apart."""
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
    partners: tuple[tuple[int, ...], ...] = ()
    names = tuple(sorted(set(_corpora(others).values()))) if name == CORPUS_OUT else ()
    if name == RANDOM:
        fold_of_clip = _at_random(others)
        folds = np.asarray([fold_of_clip.get(entry.clip, -1) for entry in index.clips], np.int64)
    else:
        fold_of_speaker = _dealt(name, others)
        partners = _not_trained_on(name, others.corpus, fold_of_speaker)
        fold_of_speaker |= dict.fromkeys(apart, -1)
        folds = np.asarray([fold_of_speaker[entry.speaker] for entry in index.clips], np.int64)
        guard_against_leaks(index, folds)
    _require_every_class(index, folds, partners, names)
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
        return lambda others: _balanced(_most_folds(others))(others)
    if name.startswith("speaker-kfold:"):
        return _balanced(_parse_count(name))
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
    if len(corpora) == 1 and (own := _OF_CORPUS.get(corpora.pop())):
        return own
    joined = index.corpus not in {own_name(index.corpus, e.speaker)[0] for e in index.clips}
    if not joined and any(entry.attributes.get("split") == "test" for entry in index.clips):
        return MANIFEST_SPLIT
    return f"speaker-kfold:{_most_folds(index)}"


def _most_folds(index: ShardIndex) -> int:
    """Five, or as many as there are speakers."""
    return max(2, min(5, len({entry.speaker for entry in index.clips})))


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
    """Of pairs of clips whose sound is nearly the same those that are on two sides, a sentence each."""
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


def corpus_speakers(index: ShardIndex, corpus: str) -> tuple[str, ...]:
    """Who speaks in one corpus of a joined one.

    Raises:
        DataError: There is none of that name, or no other.
    """
    corpus_of = _corpora(index)
    known = sorted({name for name in corpus_of.values() if name})
    if corpus not in known:
        rest = f"Known: {', '.join(known)}." if known else f"This one is not joined. {_JOIN}"
        raise DataError(f"Unknown corpus '{corpus}'. {rest}")
    if len(known) == 1:
        raise DataError(f"All clips are of the corpus '{corpus}': nothing is left to train on.")
    return tuple(sorted(speaker for speaker, name in corpus_of.items() if name == corpus))


_JOIN = "Join corpora with: python -m datasets.join OUT A B"


def _corpora(index: ShardIndex) -> dict[str, str]:
    """Speaker → their clips' attribute `corpus`, empty where there is none; raises DataError on two."""
    corpus_of: dict[str, str] = {}
    for entry in index.clips:
        corpus = entry.attributes.get("corpus", "")
        if corpus_of.setdefault(entry.speaker, corpus) != corpus:
            raise DataError(
                f"Leak: speaker '{entry.speaker}' is in two corpora, '{corpus_of[entry.speaker]}' and '{corpus}'."
            )
    return corpus_of


def _corpus_out(index: ShardIndex) -> dict[str, int]:
    """Each corpus is a fold, in the order of their names."""
    corpus_of = _corpora(index)
    names = sorted(set(corpus_of.values()))
    if len(names) < 2 or "" in names:
        found = ", ".join(repr(name) for name in names if name) or "none"
        raise DataError(
            f"Protocol {CORPUS_OUT} needs clips of two corpora or more, each with an attribute `corpus`; "
            f"here: {found}. {_JOIN}"
        )
    return {speaker: names.index(corpus) for speaker, corpus in corpus_of.items()}


def _parse_count(name: str) -> int:
    text = name.partition(":")[2]
    if not text.isdecimal() or int(text) < 2:
        raise DataError(f"speaker-kfold:K needs K of 2 or more, got '{name}'.")
    return int(text)


def _listed(name: str, groups: Sequence[Sequence[str]]) -> Assign:
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


def _partition(name: str, groups: Sequence[Sequence[str]]) -> Assign:
    """Folds are a published partition's parts, as far as their recordings are here.

    Of RECOLA, labels of some were never given away.
    """
    part_of = {speaker: number for number, group in enumerate(groups) for speaker in group}

    def assign(index: ShardIndex) -> dict[str, int]:
        here = {entry.speaker for entry in index.clips}
        strangers = sorted(here - set(part_of))
        if strangers:
            raise DataError(
                f"Protocol {name} does not know '{strangers[0]}'. Take recola-open-kfold."
            )
        parts = sorted({part_of[speaker] for speaker in here})
        if len(parts) < 2:
            raise DataError(
                f"Protocol {name} needs recordings of two of its parts or more; all {len(here)} here "
                "are of one. Take recola-open-kfold."
            )
        return {speaker: parts.index(part_of[speaker]) for speaker in here}

    return assign


def _ravdess(name: str, groups: Sequence[Sequence[int]]) -> Assign:
    return _listed(name, [[f"Actor_{actor:02d}" for actor in group] for group in groups])


def _not_trained_on(
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
    "iemocap-loso5": _listed("iemocap-loso5", [[f"{s}F", f"{s}M"] for s in _SESSIONS]),
    "iemocap-loso5-validation": _listed(
        "iemocap-loso5-validation", [[f"{s}F", f"{s}M"] for s in _SESSIONS]
    ),
    "iemocap-loso10": _listed("iemocap-loso10", [[f"{s}{x}"] for s in _SESSIONS for x in "FM"]),
    "recola-avec": _partition("recola-avec", _RECOLA_AVEC),
    "recola-tzirakis": _partition(
        "recola-tzirakis", [[f"P{number}" for number in group] for group in _RECOLA_TZIRAKIS]
    ),
    "recola-open-kfold": lambda index: _balanced(_most_folds(index))(index),
    "crema-d-speakers5": _listed("crema-d-speakers5", [[str(a) for a in g] for g in _CREMA_D5]),
}
"""Name → who is tested when; frozen."""

_OF_CORPUS = {
    "ravdess": "ravdess-luna5",
    "iemocap": "iemocap-loso5",
    "crema_d": "crema-d-speakers5",
    "recola": "recola-open-kfold",
}


def _balanced(count: int) -> Assign:
    """Largest speaker first into the smallest fold; ties by a hash of the name.

    Of a joined corpus one corpus after the other, each into the fold that has fewest clips of it, so that
    every fold has of every corpus, and with it of every class that only one of them has.
    """

    def assign(index: ShardIndex) -> dict[str, int]:
        sizes = Counter(entry.speaker for entry in index.clips)
        corpus_of = _corpora(index)
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


def _require_every_class(
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
