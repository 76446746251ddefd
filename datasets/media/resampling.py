"""Resampling in NumPy alone, for where neither torchaudio nor SciPy is installed."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_FILTER_BANK = 10_000_000
"""Numbers in torchaudio's: it has up × down, 12 GB for one clip at 44 101 Hz."""


def windowed_sinc(sound: Array, source_hz: int, target_hz: int) -> Array:
    """Windowed-sinc interpolation, the numbers of training's: torchaudio's defaults, or SciPy's.

    Every output sample is a dot product of the input around it with a kernel that depends only
    on where between two input samples it lies, of which there are `up` cases.
    """
    if source_hz == target_hz:
        return sound
    shared = math.gcd(source_hz, target_hz)
    up, down = target_hz // shared, source_hz // shared
    of_scipy = up * down > MAX_FILTER_BANK  # there, torchaudio would need gigabytes
    half = 10 if of_scipy else 6  # zero crossings on either side
    cutoff = min(1.0, up / down) * (1.0 if of_scipy else 0.99)  # of the input's Nyquist frequency
    width = math.ceil(half / cutoff) + 1
    count = -(-len(sound) * up // down)
    padded = np.pad(sound, (width, width + down + 1)).astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1)
    out = np.empty(count, np.float32)
    for phase in range(min(up, count)):
        first, rest = divmod(phase * down, up)
        taps = np.arange(-width, width + 1)
        if of_scipy:
            kernel = _kernel_of_scipy((taps - rest / up) * cutoff) * cutoff
        else:  # rounded where torchaudio rounds: one may hear the last of 16 bits
            place = np.float32(-phase) / np.float32(up) + (taps + first).astype("f4") / np.float32(
                down
            )
            kernel = _kernel_of_torchaudio(place * np.float32(min(up, down) * 0.99)) * cutoff
        places = out[phase::up]
        places[:] = views[first::down][: len(places)] @ kernel.astype(np.float32)
    return out


def _kernel_of_torchaudio(place: Array) -> Array:
    place = np.clip(place, -6, 6)
    window = np.cos(place * np.float32(np.pi / 12)) ** 2
    return np.asarray(np.sinc(place) * window)


def _kernel_of_scipy(place: Array) -> Array:
    return np.interp(place, *_scipy_table(), left=0.0, right=0.0)


@cache
def _scipy_table() -> tuple[Array, Array]:
    """A Kaiser window (5.0) of ten zero crossings, with a sum of one."""
    grid = np.linspace(-10, 10, 200_001)
    table = np.sinc(grid) * np.i0(5.0 * np.sqrt(1 - (grid / 10) ** 2))
    return grid, table / (20 * table.mean())
