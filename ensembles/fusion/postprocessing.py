"""The four-step chain of Tzirakis et al. (2017): median filter, centring, scaling, time shift.

Fitted on development speakers, step after step and dimension after dimension; a step is kept only
where it raises their concordance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensembles import EnsembleError
from ensembles.metrics import Array, ccc

STEPS = ("median", "centre", "scale", "shift")
"""In the order in which they are tried and applied."""

_FILTER_SECONDS = (0.4, 0.8, 1.6, 3.2, 5.0, 8.0, 12.0, 20.0)
_SHIFT_SECONDS = (0.04, 0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 2.8, 4.0, 6.0, 8.0, 10.0)
_WORTH = 1e-4
"""Least gain in concordance of a step that is kept; less is chance."""

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class OneChain:
    """Settings of one dimension; what has its default was not kept.

    Attributes:
        median_steps: Width of the filter; 1 for none.
        offset: Added.
        middle: Of the traces that it was fitted on: they are stretched about it.
        stretch: Factor on the distance to it; 1 for none.
        shift_steps: By how much it comes later; negative: earlier.
    """

    median_steps: int = 1
    offset: float = 0.0
    middle: float = 0.0
    stretch: float = 1.0
    shift_steps: int = 0

    @property
    def kept(self) -> tuple[str, ...]:
        """Return those of STEPS that it takes."""
        used = (self.median_steps > 1, self.offset != 0, self.stretch != 1, self.shift_steps != 0)
        return tuple(name for name, there in zip(STEPS, used, strict=True) if there)

    def apply(self, trace: Array, spans: Spans) -> Array:
        """(S,) of several recordings, whose rows `spans` gives; they do not touch each other."""
        out = _filtered(trace, spans, self.median_steps) if self.median_steps > 1 else trace
        out = out + self.offset
        out = self.middle + self.stretch * (out - self.middle) if self.stretch != 1 else out
        return _shifted(out, spans, self.shift_steps) if self.shift_steps else out


@dataclass(frozen=True)
class PostProcessing:
    """A chain a dimension.

    Attributes:
        chains: (D,).
        gains: (D,) of each kept step what it added to the concordance it was fitted by.
    """

    chains: tuple[OneChain, ...]
    gains: tuple[dict[str, float], ...] = ()

    def apply(self, traces: Array, spans: Spans) -> Array:
        """(S, D) → (S, D)."""
        return np.stack(
            [chain.apply(traces[:, d], spans) for d, chain in enumerate(self.chains)], axis=1
        )

    def to_json(self) -> dict[str, Any]:
        """See `from_json`."""
        return {
            "chains": [dict(chain.__dict__) for chain in self.chains],
            "gains": [dict(gain) for gain in self.gains],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any], dimensions: int) -> PostProcessing:
        """The inverse of `to_json`; raises EnsembleError."""
        try:
            chains = tuple(_chain(one) for one in document["chains"])
            gains = tuple(
                {str(name): float(value) for name, value in gain.items()}
                for gain in document["gains"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EnsembleError(f"Damaged post-processing: {error!r}.") from error
        if len(chains) != dimensions:
            raise EnsembleError(f"The post-processing does not fit {dimensions} dimensions.")
        return PostProcessing(chains, gains)


def _chain(document: Mapping[str, Any]) -> OneChain:
    chain = OneChain(
        int(document["median_steps"]),
        float(document["offset"]),
        float(document["middle"]),
        float(document["stretch"]),
        int(document["shift_steps"]),
    )
    numbers = (chain.offset, chain.middle, chain.stretch)
    if not np.isfinite(numbers).all() or not 1 <= chain.median_steps <= 100_000:
        raise ValueError("a number that cannot be")
    return chain


def fit_postprocessing(
    traces: Array, gold: Array, spans: Spans, step_seconds: float
) -> PostProcessing:
    """Fits the chain.

    Args:
        traces: (S, D) of development speakers, as networks that did not train on them said.
        gold: (S, D).
        spans: Rows of each recording.
        step_seconds: 0 where every clip has one value: then nothing is filtered or shifted.
    """
    chains, gains = [], []
    for d in range(gold.shape[1]):
        chain, gain = _fit_one(traces[:, d], gold[:, d], spans, step_seconds)
        chains.append(chain)
        gains.append(gain)
    return PostProcessing(tuple(chains), tuple(gains))


def _fit_one(
    trace: Array, gold: Array, spans: Spans, step_seconds: float
) -> tuple[OneChain, dict[str, float]]:
    shortest = min(end - start for start, end in spans)
    settings: dict[str, Any] = {}
    gains: dict[str, float] = {}
    now, best = trace, ccc(gold, trace)

    def offer(step: str, changed: Array, **values: Any) -> bool:
        nonlocal now, best
        score = ccc(gold, changed)
        if score < best + _WORTH:
            return False
        gains[step] = gains.get(step, 0.0) + score - best
        now, best = changed, score
        settings.update(values)
        return True

    def try_all(step: str, key: str, widths: Sequence[int], make: Callable[[int], Array]) -> None:
        tried = [(make(width), width) for width in widths]
        for changed, width in sorted(tried, key=lambda item: -ccc(gold, item[0]))[:1]:
            offer(step, changed, **{key: width})

    if step_seconds:
        widths = [round(s / step_seconds) | 1 for s in _FILTER_SECONDS]
        widths = [width for width in widths if 1 < width <= shortest]
        origin = now
        try_all("median", "median_steps", widths, lambda w: _filtered(origin, spans, w))
    offset = float(gold.mean() - now.mean())
    offer("centre", now + offset, offset=offset)
    middle, spread = float(now.mean()), float(now.std())
    if spread > 0:
        stretch = float(gold.std() / spread)
        offer("scale", middle + stretch * (now - middle), middle=middle, stretch=stretch)
    if step_seconds:
        shifts = [round(s / step_seconds) for s in _SHIFT_SECONDS]
        shifts = [shift for shift in shifts if 0 < shift < shortest]
        moved = now
        try_all(
            "shift",
            "shift_steps",
            [sign * shift for shift in shifts for sign in (1, -1)],
            lambda s: _shifted(moved, spans, s),
        )
    return OneChain(**settings), gains


def _filtered(trace: Array, spans: Spans, width: int) -> Array:
    """Running median of each recording, mirrored at its ends."""
    from scipy.ndimage import median_filter  # an export's own program has no SciPy

    out = np.empty_like(trace)
    for start, end in spans:
        out[start:end] = median_filter(trace[start:end], size=width, mode="reflect")
    return out


def _shifted(trace: Array, spans: Spans, steps: int) -> Array:
    """Later by so many steps (earlier, where negative); the end that is left is held."""
    out = np.empty_like(trace)
    for start, end in spans:
        place = np.clip(np.arange(end - start) - steps, 0, end - start - 1)
        out[start:end] = trace[start:end][place]
    return out
