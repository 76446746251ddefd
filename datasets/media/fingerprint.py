"""Finds recordings that are nearly the same: copied at another level, cut elsewhere, compressed, with some noise.

After Haitsma & Kalker (2002): at every moment the signs of how the energies of neighbouring bands
change make a word, which survives all that. A clip is remembered by a few of its words, the
least ones of a hash, so that two cuts of one recording remember the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import scipy.fft
from numpy.typing import NDArray

_WINDOW_SECONDS, _HOP_SECONDS = 0.256, 0.016
_BITS, _LOW_HZ, _HIGH_HZ = 20, 200.0, 4000.0
_QUIET = 1e-4
"""Share of the loudest moment's energy: below it, words are the noise's."""
_KEPT = 24
_ALIKE = 6
"""Words in common. Of all pairs of RAVDESS's clips but for one recording that is there twice, none has more
than 3; copies at 0.4 of the level have 24, cut elsewhere 7 to 24, as MP3 5 and more (of sixty the third 7)."""
_COMMON = 100
"""Clips from which on a word says nothing: hum, or a beep that all recordings begin with."""
_PAIRS_AT_ONCE = 2_000_000
"""Pairs of clips that are counted together; all of a large corpus's would take many GB."""


def fingerprint(samples: NDArray[np.int16], sample_rate_hz: int) -> frozenset[int]:
    """(L,) mono → at most `_KEPT` words; empty where the clip is silent or shorter than two windows."""
    size = scipy.fft.next_fast_len(round(_WINDOW_SECONDS * sample_rate_hz), real=True)
    if len(samples) < 2 * size:
        return frozenset()
    hop = round(_HOP_SECONDS * sample_rate_hz)
    moments = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float32), size)[::hop]
    high_hz = min(_HIGH_HZ, 0.45 * sample_rate_hz)
    bands = np.geomspace(_LOW_HZ, high_hz, _BITS + 2)
    edges = np.searchsorted(np.fft.rfftfreq(size, 1 / sample_rate_hz), bands)
    window = np.hanning(size).astype(np.float32)
    spectrum = scipy.fft.rfft(moments * window, axis=1)[:, edges[0] : edges[-1]]
    power = spectrum.real**2 + spectrum.imag**2
    energy = np.add.reduceat(power, edges[:-1] - edges[0], axis=1)
    loudness = energy.max(axis=1)[1:-1]
    if not loudness.max(initial=0.0) > 0:
        return frozenset()
    slope = -np.diff(np.log(energy + np.float32(1e-3)), axis=1)
    words = (slope[2:] > slope[:-2]) @ (1 << np.arange(_BITS, dtype=np.int64))
    heard = np.unique(words[loudness > _QUIET * loudness.max()]).astype(np.uint64)
    hashed = heard * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)
    return frozenset(np.sort(hashed)[:_KEPT].tolist())


def near_duplicates(fingerprints: Mapping[str, Iterable[int]]) -> list[tuple[str, str]]:
    """Pairs of clips that are nearly the same recording."""
    names = sorted(fingerprints)
    found = [np.fromiter(fingerprints[name], np.int64) for name in names]
    words = np.concatenate([*found, np.zeros(0, np.int64)])
    clips = np.repeat(np.arange(len(names)), [len(some) for some in found])
    order = np.argsort(words, kind="stable")
    clips, words = clips[order], words[order]
    first = np.searchsorted(words, words, side="left")
    behind = np.searchsorted(words, words, side="right")
    shared = np.flatnonzero((behind - first > 1) & (behind - first < _COMMON))
    # By their first clip, so that all that a pair has in common is counted together.
    shared = shared[np.argsort(clips[shared], kind="stable")]
    partners = behind[shared] - shared - 1
    block = np.cumsum(partners) // _PAIRS_AT_ONCE
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    starts = np.unique(np.searchsorted(clips[shared], clips[shared][starts], side="left"))
    pairs: list[tuple[str, str]] = []
    for some in np.split(np.arange(len(shared)), starts[1:]):
        counts = partners[some]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        others = clips[np.repeat(shared[some] + 1, counts) + within]
        keys, times = np.unique(
            np.repeat(clips[shared[some]], counts) * len(names) + others, return_counts=True
        )
        pairs += (
            (names[key // len(names)], names[key % len(names)]) for key in keys[times >= _ALIKE]
        )
    return pairs
