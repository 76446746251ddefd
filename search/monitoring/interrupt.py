"""Ctrl-C: once asks the run to stop training and report, twice leaves at once.

Storage that takes nothing more ends a run too: what cannot be written is not a trial's failure.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether the run is to end early.

    Attributes:
        asked: By the user, or a host that is being taken away (SIGTERM).
        broken: Why the storage takes nothing more; empty while it does.
    """

    def __init__(self) -> None:
        self.asked, self.broken = False, ""
        self._on_first: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of what it was given, which is never read."""
        return {**self.__dict__, "_on_first": None}

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
        before = {s: signal.signal(s, self._first) for s in _SIGNALS}
        self._on_first = on_first
        try:
            yield
        finally:
            self._on_first = None
            for number, handler in before.items():
                signal.signal(number, handler)

    def watch_again(self) -> None:
        """To be called once Ray is there, which takes SIGTERM for itself."""
        if self._on_first and not self.asked:
            for number in _SIGNALS:
                signal.signal(number, self._first)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._on_first:
            self._on_first()
