"""Things that are expensive to make, made once a session, also between pytest-xdist's workers."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

Made = TypeVar("Made")


class Shared:
    """A folder of the session, in which whoever asks first makes a thing and the others find it.

    What is handed out is read-only: a test that changes something copies it first.
    """

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        base = factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            base = base.parent
        self.folder = base / "shared"
        self.folder.mkdir(exist_ok=True)

    def make(self, name: str, build: Callable[[Path], Made]) -> Made:
        """Builds a thing in a folder of its own, or returns what was built there.

        Args:
            name: Of the folder.
            build: Gets the empty folder; what it returns is pickled, for the other workers.

        Raises:
            RuntimeError: It could not be built, here or in another worker; it is tried once.
        """
        folder = self.folder / name
        made, broken = folder.with_suffix(".pickle"), folder.with_suffix(".broken")
        with FileLock(folder.with_suffix(".lock")):
            if broken.exists():
                raise RuntimeError(f"'{name}' could not be built: {broken.read_text()}")
            if not made.exists():
                folder.mkdir()
                try:
                    result = build(folder)
                except BaseException as error:
                    broken.write_text(f"{type(error).__name__}: {error}")
                    raise
                partial = folder.with_suffix(".partial")
                partial.write_bytes(pickle.dumps(result))
                partial.rename(made)
        found: Made = pickle.loads(made.read_bytes())
        return found
