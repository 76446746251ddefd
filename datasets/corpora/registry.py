"""The one list of corpora. Adding one: one file, `@register_corpus(...)`, one import."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from datasets.clips import Corpus
from datasets.sharding.index import ShardIndex

Loader = Callable[[Namespace], Corpus]
"""Parsed options (`root` and the corpus's own) → the corpus; raises DataError."""

Counts = Mapping[str, Mapping[str, int]]
"""`class`, `speaker` or an attribute of clips → each of its values → clips."""


@dataclass(frozen=True, kw_only=True)
class PublishedProtocol:
    """Speakers who are tested together, as published.

    Attributes:
        name: The protocol's name.
        kind: `listed`: every fold needs a speaker; `partition`: folds are the parts that have a
            recording here; `balanced`: no list, as many clips in every fold as can be.
        groups: Speakers of each fold; empty where balanced.
        excluded: For each fold the other folds that its networks do not train on either; empty
            where there are none.
    """

    name: str
    kind: Literal["listed", "partition", "balanced"] = "listed"
    groups: tuple[tuple[str, ...], ...] = ()
    excluded: tuple[tuple[int, ...], ...] = ()


def _no_counts(_: ShardIndex) -> Counts:
    return {}


@dataclass(frozen=True, kw_only=True)
class RegisteredCorpus:
    """A corpus that `datasets.prepare` knows.

    Attributes:
        name: Its name on the command line and in an index.
        description: One line for lists.
        load: Reads it.
        add_options: Adds its options to the parser of its command.
        reads_features: Whether `load` reads `--features` itself; otherwise they are joined by clip.
        licence: What the corpus is under; empty where that is not known.
        vocabulary: Every label that its authors give; empty where those are free.
        counts: Published counts of the clips that an index may hold.
        protocols: Published protocols.
        default_protocol: Name of the one that is taken if none is named; empty for speaker folds.
    """

    name: str
    description: str
    load: Loader
    add_options: Callable[[ArgumentParser], None]
    reads_features: bool
    licence: str
    vocabulary: tuple[str, ...]
    counts: Callable[[ShardIndex], Counts]
    protocols: tuple[PublishedProtocol, ...]
    default_protocol: str


CORPORA: dict[str, RegisteredCorpus] = {}
"""Name → corpus, in the order of registration."""


def register_corpus(
    name: str,
    description: str,
    *,
    options: Callable[[ArgumentParser], None] = lambda _: None,
    reads_features: bool = False,
    licence: str = "",
    vocabulary: tuple[str, ...] = (),
    counts: Callable[[ShardIndex], Counts] = _no_counts,
    protocols: tuple[PublishedProtocol, ...] = (),
    default_protocol: str = "",
) -> Callable[[Loader], Loader]:
    """Function decorator: makes a loader a corpus of `datasets.prepare`, see `RegisteredCorpus`."""

    def add(load: Loader) -> Loader:
        assert name not in CORPORA, f"corpus '{name}' is registered twice"
        CORPORA[name] = RegisteredCorpus(
            name=name,
            description=description,
            load=load,
            add_options=options,
            reads_features=reads_features,
            licence=licence,
            vocabulary=vocabulary,
            counts=counts,
            protocols=protocols,
            default_protocol=default_protocol,
        )
        return load

    return add
