"""What the measurements share: a corpus, a clock, a table."""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from datasets.index import ShardIndex, read_index
from datasets.shards import prepare
from datasets.synthetic import load_synthetic


def arguments(what: str) -> argparse.Namespace:
    """`--data DIR`: prepared shards; without it a synthetic corpus is made."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--data", help="prepared shards (default: 10 synthetic speakers)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
    return parser.parse_args()


def corpus(data: str | None, folder: Path) -> ShardIndex:
    """The shards asked for, or synthetic ones in `folder`."""
    if data:
        return read_index(data)
    made = load_synthetic(folder / "media", speakers=10, repetitions=4)
    return prepare(made, folder / "shards")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes away."""
    return tempfile.TemporaryDirectory(prefix="benchmark-")


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time, after one run that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def machine() -> str:
    """Hardware and versions, for the note."""
    cpu = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"
