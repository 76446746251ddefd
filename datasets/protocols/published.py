"""Published protocols: the speakers that each registered corpus lists become an assignment."""

from __future__ import annotations

from datasets.corpora.registry import CORPORA, PublishedProtocol
from datasets.protocols.assignment import Assign, balanced, listed, most_folds, partition


def _assignment(protocol: PublishedProtocol, default: str) -> Assign:
    if protocol.kind == "listed":
        return listed(protocol.name, protocol.groups)
    if protocol.kind == "partition":
        return partition(protocol.name, protocol.groups, default)
    return lambda index: balanced(most_folds(index))(index)


PROTOCOLS: dict[str, Assign] = {
    protocol.name: _assignment(protocol, corpus.default_protocol)
    for corpus in CORPORA.values()
    for protocol in corpus.protocols
}
"""Name → who is tested when; frozen."""

EXCLUDED_FOLDS: dict[str, tuple[tuple[int, ...], ...]] = {
    protocol.name: protocol.excluded for corpus in CORPORA.values() for protocol in corpus.protocols
}
"""Name → for each fold the other folds that its networks do not train on."""

DEFAULT_PROTOCOLS = {
    corpus.name: corpus.default_protocol for corpus in CORPORA.values() if corpus.default_protocol
}
"""Corpus → the protocol that is taken if none is named."""
