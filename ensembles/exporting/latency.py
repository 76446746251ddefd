"""Measure an expert on this machine: time for one clip, bytes on disk."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch

from ensembles.artifact.fold_networks import FoldedExpert
from ensembles.artifact.formats import weight_files
from ensembles.artifact.onnx_export import example_batch, run_session, to_onnx
from ensembles.artifact.onnx_session import open_session
from ensembles.exporting.budget import Cost
from models import ClipShape

_REPEATS = 15
_MOST_SECONDS = 2.0


def measure(expert: FoldedExpert, shape: ClipShape, weights: Path, formats: Sequence[str]) -> Cost:
    """Milliseconds of one clip of typical length through the graph, and MB in these formats.

    The graph runs as in prediction: on the CPU, with onnxruntime's own number of threads.

    Raises:
        EnsembleError, RuntimeError: If there can be no graph.
    """
    graph = to_onnx(expert, shape)
    session = open_session(graph)
    batch = example_batch(expert.kinds, shape, clips=1, share=1.0, seed=0)
    run_session(session, batch)
    times: list[float] = []
    while len(times) < _REPEATS and (len(times) < 3 or sum(times) < _MOST_SECONDS):
        started = time.perf_counter()
        run_session(session, batch)
        times.append(time.perf_counter() - started)
    size = len(graph) if "onnx" in formats else 0
    if "torch" in formats:
        size += sum(path.stat().st_size for path in weight_files(weights))
    return Cost(1000 * statistics.median(times), size / 1e6)


def hardware() -> str:
    """Where it was measured, and how busy that was."""
    name = torch.cpu.get_capabilities().get("cpu_name") or "unknown processor"
    threads = len(os.sched_getaffinity(0))
    return (
        f"{name}, {threads} cores, load {os.getloadavg()[0]:.1f}, "
        f"onnxruntime {onnxruntime.__version__}"
    )
