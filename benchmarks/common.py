"""Corpus, clock and table that the measurements share."""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from datasets.corpora.synthetic import load_synthetic
from datasets.sharding.index import ShardIndex, read_index
from datasets.sharding.writer import prepare
from models import BackboneEncoder, build_expert
from search.data.training_data import TrainingData
from search.trial_spec import CorpusSpec, RunContext


def arguments(what: str) -> argparse.Namespace:
    """`--data DIR`: prepared shards; without it a synthetic corpus is made."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--data", help="prepared shards (default: 10 synthetic speakers)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
    return parser.parse_args()


def corpus(
    data: str | None, folder: Path, *, speakers: int = 10, repetitions: int = 4
) -> ShardIndex:
    """The shards asked for, or synthetic ones in `folder`."""
    if data:
        return read_index(data)
    made = load_synthetic(folder / "media", speakers=speakers, repetitions=repetitions)
    return prepare(made, folder / "shards")


def save_random_weights(name: str, data: TrainingData) -> None:
    """Save an architecture's random weights under its own name, as a checkpoint of it.

    Time does not depend on what they are.
    """
    expert = build_expert(name, {}, data.shape)
    (kind,) = expert.kinds
    encoder = expert.encoder(kind)
    assert isinstance(encoder, BackboneEncoder)
    assert data.weights is not None
    data.weights.mkdir(exist_ok=True)
    state = {key: x.contiguous() for key, x in encoder.backbone.state_dict().items()}
    save_file(state, data.weights / f"{name}.safetensors")


def context_of(run: str, corpus: CorpusSpec | None = None, **changes: Any) -> RunContext:
    """The context of trials on the CPU; without a corpus for trials that train nothing."""
    none = CorpusSpec(
        place="", checksum="", classes=(), target="", protocol="", test_speakers=(), folds="",
        skip_corrupt=False, soft_labels=False, cache_folder=None, cache_gb=1.0, weights=None,
    )  # fmt: skip
    usual = {
        "metric": "accuracy", "seed": 0, "device": "cpu", "precision": "auto", "runner": "actor",
        "workers_per_trial": 1, "gpu_share": {},
    }  # fmt: skip
    return RunContext(run=run, corpus=corpus or none, **{**usual, **changes})


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
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    cpu = known.get("cpu_name", platform.machine())
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"
