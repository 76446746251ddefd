"""Ctrl-C: once asks the run to stop training and report, twice leaves at once.

Storage that takes nothing more ends a run too: what cannot be written is not a trial's failure.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether the run is to end early.

    Attributes:
        asked: By the user, or a host that is being taken away (SIGTERM).
        broken: Why the storage takes nothing more; empty while it does.
    """

    def __init__(self) -> None:
        self.asked, self.broken = False, ""

    @property
    def now(self) -> bool:
        """For whatever reason."""
        return self.asked or bool(self.broken)

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
