"""Pickles that leave a trace where they are loaded, for tests that nothing unpickles files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


class Bomb:
    """Creates a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def plain(path: Path, trace: Path) -> None:
    """Writes a bare pickle."""
    path.write_bytes(pickle.dumps(Bomb(trace)))


def zipped(path: Path, trace: Path) -> None:
    """Writes a pickle as torch stores one."""
    torch.save({"classifier.weight": Bomb(trace)}, path)


PLANTS = [plain, zipped]
