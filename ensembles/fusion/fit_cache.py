"""Fusions that are fitted once: a stack and a calibration hold fusions that other recipes fit, too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from ensembles.fusion.base import Fusion
from ensembles.fusion.rules import Rule
from ensembles.metrics import Array, Labels

_known: ContextVar[dict[bytes, Rule] | None] = ContextVar("known", default=None)


@contextmanager
def remembering(known: dict[bytes, Rule]) -> Iterator[None]:
    """Until its end, `fitted` looks up in `known` what was fitted before, and adds to it."""
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def fitted(fusion: Fusion, log_posteriors: Array, labels: Labels, groups: Labels) -> Rule:
    """The rule of a fusion, fitted on (M, N, K), (N,) and (N,), or remembered from the same rows."""
    known, key = _known.get(), _key(fusion, log_posteriors, labels, groups)
    if known is None or key is None:
        return fusion.fit(log_posteriors, labels, groups).rule()
    if key not in known:
        known[key] = fusion.fit(log_posteriors, labels, groups).rule()
    return known[key]


def _key(fusion: Fusion, *arrays: Array | Labels) -> bytes | None:
    """A checksum of settings and rows; None if some setting is no plain value."""
    settings = vars(fusion)
    if not all(map(_is_plain, settings.values())):
        return None
    found = hashlib.blake2b(repr((type(fusion).__qualname__, sorted(settings.items()))).encode())
    for array in arrays:
        found.update(repr(array.shape).encode())
        found.update(np.ascontiguousarray(array).data)
    return found.digest()


def _is_plain(value: object) -> bool:
    """Whether a value's text says all of it; a callable's has an address, which is used again."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | None)
