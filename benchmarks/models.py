"""Training speed and memory of every architecture, against the same network on tensors at hand.

`python -m benchmarks.models [--only a,b] [--device cpu|cuda] [--data DIR] [--steps N] [--json FILE]`

For each architecture, in its known-good settings: clips a second of forward and backward at batch
32, fed from the cache as a trial is (a step of `FoldTrainer` with inputs, loss, backward and update),
and fed with the same batches already on the device; the share of a step that the front end would take
if its output were not cached, and that it takes from the cache; and the peak memory of a process
that does nothing else. Each architecture runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import machine, scratch
from datasets.corpora.synthetic import load_synthetic
from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import read_index
from datasets.sharding.writer import ShardSettings, prepare
from models import get_architecture
from models.registry import architectures
from search.data.training_data import TrainingData
from search.training.device import choose_precision
from search.training.fold_builder import build_fold
from search.trial_config import TrialConfig

_PARTS = {
    "audio": {"architecture": "logmel_resnet", "settings": {}},
    "video": {"architecture": "frame_cnn", "settings": {}},
}
BATCH = 32


def main() -> None:
    """Prints a row an architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="architectures, separated by commas (default: all)")
    parser.add_argument("--data", help="prepared shards (default: synthetic clips are made)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5, help="measured; the median counts")
    parser.add_argument("--seconds", type=float, default=60, help="at most, of each measurement")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what the processes are given
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.data, given.device, given.steps, given.seconds)))
        return
    names = given.only.split(",") if given.only else [entry.name for entry in architectures()]
    print(f"{machine()}, {given.device}; batch {BATCH}")
    print(
        f"{'':22}{'precision':>10}{'clips/s':>9}{'at hand':>9}{'ratio':>7}"
        f"{'front end':>11}{'cached':>8}{'peak MiB':>10}"
    )
    rows = []
    with scratch() as folder:
        data = given.data or _synthetic(Path(folder))
        for name in names:
            row = _apart(name, data, given.device, given.steps, given.seconds)
            rows.append(row)
            print(_line(row), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def _synthetic(folder: Path) -> str:
    """48 clips of sound, pictures and features, of about a second and a half."""
    corpus = load_synthetic(folder / "media", speakers=4, repetitions=2)
    return prepare(corpus, folder / "shards", ShardSettings(clips_per_shard=16)).root


def _apart(name: str, data: str, device: str, steps: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.models", "--one", name, "--data", data]
    command += ["--device", device, "--steps", str(steps), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"name": name, "error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:22}  {row['error'][:120]}"
    return (
        f"{row['name']:22}{row['precision']:>10}{row['clips_per_second']:9.1f}{row['at_hand']:9.1f}"
        f"{row['clips_per_second'] / row['at_hand']:7.2f}{row['front_end_share']:11.1%}"
        f"{row['cached_share']:8.1%}{row['peak_mib']:10.0f}"
    )


def measure(name: str, location: str, device: str, steps: int, seconds: float) -> dict[str, Any]:
    """One architecture, in this process."""
    torch.set_num_threads(1 if device == "cuda" else 2)
    index = read_index(location)
    protocol = "speaker-kfold:2"
    data = TrainingData(
        open_cache(index, Path(location).parent / "cache"), make_folds(index, protocol)
    )
    early = get_architecture(name).modality == "early"
    plan = TrialConfig.of(name, _PARTS if early else {}, {"batch_size": BATCH, "mixup": 0.0})
    precision = choose_precision(plan, device)
    trainer = build_fold(plan, data, 0, seed=0, device=device, precision=precision)
    trainer.expert.train()
    rows = np.resize(trainer.rows, BATCH)
    inputs, targets = trainer._examples(rows)

    def whole() -> None:
        trainer._step(rows, 0)

    def at_hand() -> None:
        trainer.optimizer.zero_grad()
        trainer._loss(dict(inputs), targets, False).backward()
        trainer.optimizer.update()
        trainer.averaged.after_step(trainer.expert)

    def front_end() -> None:
        batch = data.cache.batch(rows, trainer.expert.kinds)
        trainer.expert.preprocess({k: x.to(device) for k, x in batch.items()})

    def cached() -> None:
        trainer._inputs(rows)

    step, ready = _seconds((whole, at_hand), steps, seconds)
    uncached, read = _seconds((front_end, cached), steps, seconds)
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    return {
        "name": name,
        "precision": precision,
        "clips_per_second": BATCH / step,
        "at_hand": BATCH / ready,
        "front_end_share": uncached / (uncached + ready),
        "cached_share": read / (read + ready),
        "peak_mib": peak,
    }


def _seconds(calls: tuple[Callable[[], None], ...], steps: int, most: float) -> list[float]:
    """Median of each, measured in turn, after one that warms up."""
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    for step in range(steps + 1):
        for call, own in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            own.append(time.perf_counter() - started)
        if step and time.perf_counter() - began > most:
            break
    return [statistics.median(own[1:]) for own in times]


if __name__ == "__main__":
    main()
