"""Types of command-line options: text → value, or a message that says what is expected."""

from __future__ import annotations

import argparse
import math

from datasets.media.crop import MOST_MARGIN

_MOST_FRAME_RATE = 100.0


def frame_size(text: str) -> tuple[int, int]:
    """(H, W) in pixels, such as 60x100."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 60x100, got '{text}'")
    return int(height), int(width)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got '{text}'")
    return int(text)


def margin(text: str) -> float:
    """A share of a face's size, 0 to `MOST_MARGIN`."""
    if not 0 <= (value := _number(text)) <= MOST_MARGIN:
        raise argparse.ArgumentTypeError(f"expected 0 to {MOST_MARGIN:g}, got '{text}'")
    return value


def frame_rate(text: str) -> float:
    """Frames a second, above 0."""
    if not 0 < (value := _number(text)) <= _MOST_FRAME_RATE:
        raise argparse.ArgumentTypeError(f"expected up to {_MOST_FRAME_RATE:g}, got '{text}'")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
