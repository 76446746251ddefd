"""Send what libraries print to the run's log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from rich.console import Console


@contextmanager
def capture_logs(log: Path) -> Iterator[Console]:
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
