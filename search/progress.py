"""The live line of a running search, and where Ray's and Optuna's chatter goes."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from rich.console import Console
from rich.live import Live
from rich.text import Text

_SECONDS_BETWEEN_PLAIN_LINES = 20.0


@contextmanager
def chatter_to(log: Path) -> Iterator[Console]:
    """Sends everything that libraries print, from C++ too, to a file; yields a console that still shows."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept_out, kept_err = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    logging.captureWarnings(True)
    screen = os.fdopen(os.dup(kept_err), "w", encoding="utf-8")
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield Console(file=screen)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept_out, 1)
        os.dup2(kept_err, 2)
        for descriptor in (kept_out, kept_err, target):
            os.close(descriptor)
        screen.close()


class ProgressLine:
    """One line that says where the search is; on a terminal it renews itself, in a file it repeats.

    Args:
        console: Where to.
        state: Called for the text.
    """

    def __init__(self, console: Console, state: Callable[[], str]) -> None:
        self.console, self.state = console, state
        self.started = time.monotonic()
        self._last_plain = -_SECONDS_BETWEEN_PLAIN_LINES
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=2, transient=True
        )

    def _render(self) -> Text:
        return Text(self._text(), overflow="ellipsis", no_wrap=True)

    def _text(self) -> str:
        elapsed = int(time.monotonic() - self.started)
        return f"{elapsed // 60}:{elapsed % 60:02d}  {self.state()}"

    def changed(self) -> None:
        """Something happened; matters where there is no terminal."""
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_plain >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_plain = now
            self.console.print(self._text(), highlight=False, soft_wrap=True)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Shows the line while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        with self._live:
            yield
