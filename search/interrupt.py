"""Ctrl-C: once asks the run to stop training and report, twice leaves at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether the user, or a host that is being taken away (SIGTERM), asked to stop.

    Attributes:
        asked: True from the first signal on.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def watched(self, on_first: Callable[[], None]) -> Iterator[None]:
        """While the block runs the first signal only sets `asked`; the second ends it.

        Args:
            on_first: Tells the user what happens now.
        """

        def first(number: int, frame: FrameType | None) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            on_first()

        before = {s: signal.signal(s, first) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
