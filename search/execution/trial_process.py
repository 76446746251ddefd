"""A trial in the process that trains it: what it trains, and all that it leaves. No scheduling here."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from datasets.storage.synced_folder import default_cache_folder, local_folder
from search.monitoring import gauges

if TYPE_CHECKING:
    from search.training.distributed import Workers
from search.execution.recorder import Recorder, TrialLog
from search.execution.trial_spec import (
    Spec,
    StorageError,
    failed_by,
    gpus_for,
    kept_run,
    writing_run,
)
from search.trial_config import describe


def train(spec: Spec) -> Iterator[dict[str, Any]]:
    """Trains one trial; yields percent, score, loss and more at every rung, when all of it is on disk.

    A failure is yielded as `failed` with its reason instead of raised: the search goes on.
    """
    log = TrialLog(spec)
    try:
        from search.training.distributed import Workers

        yield from train_part(spec, log, Workers())
    except Exception as error:  # any trial may fail in its own way; the journal keeps the reason
        if not isinstance(error, StorageError):
            log.write(traceback.format_exc())
        yield failed_by(error)


def train_part(spec: Spec, log: TrialLog, workers: Workers) -> Iterator[dict[str, Any]]:
    """What one of several workers does of it; the first one's reports count, the others' are empty."""
    import torch

    from search.training.checkpoint import Checkpoint, Progress
    from search.training.cross_validation import LockstepTrial
    from search.trial_config import TrialPlan

    context = spec["context"]
    torch.set_num_threads(max(1, int(context["cpus_per_trial"])))
    started = time.monotonic()
    trial = LockstepTrial(
        TrialPlan.from_json(spec["plan"]),
        open_data(context, workers),
        seed=context["seed"],
        device=context["device"],
        precision=context["precision"],
        workers=workers,
        by_speaker="enrolment" in spec,
        alone=gpus_for(spec) in (0.0, 1.0),
    )
    checkpoint = Checkpoint(kept_run(context), spec["trial"], _identity(spec))
    before = checkpoint.load()
    if not workers.agree(before.trial["epoch"] if before else 0):
        before = None
    if before:
        trial.load_state_dict(before.trial)
    reports = before.reports if before else []
    if workers.rank:  # one of several writes and tells
        for _ in chain(reports, trial.run()):
            yield {}
        return
    setup = time.monotonic() - started
    log.write(
        f"{describe(spec['plan'])}, {trial.precision}, setup {setup:.2f} s{_here()}\n"
        + (f"continued after epoch {trial.epoch}" if before else json.dumps(spec["plan"]))
    )
    # Told again: who judges them may have died before they were written down.
    yield from reports
    if before:
        started = time.monotonic() - before.seconds

    def save() -> None:
        if checkpoint.due:
            seconds = time.monotonic() - started
            with writing_run(log.run):
                checkpoint.save(Progress(trial.state_dict(), reports, seconds))

    with gauges.trial_gauges(spec, describe(spec["plan"])) as shown:
        record = Recorder(spec, trial, log, started, shown)
        record.told = int(reports[-1]["epoch"]) if reports else 0
        for rung in trial.run(save, record.epoch):
            reports.append(record.rung(rung))
            yield reports[-1]


def _here() -> str:
    """Which host this is, where Ray knows."""
    return f" on {ray.util.get_node_ip_address()}" if ray.is_initialized() else ""


def _identity(spec: Spec) -> dict[str, Any]:
    """What a trial's networks are a function of."""
    context = spec["context"]
    keys = (
        "seed",
        "checksum",
        "classes",
        "target",
        "protocol",
        "test_speakers",
        "folds",
        "skip_corrupt",
    )
    return {
        "plan": spec["plan"],
        "enrolment": spec.get("enrolment"),
        **{key: context[key] for key in keys},
        **({"soft_labels": True} if context["soft_labels"] else {}),
    }


_OPEN: dict[str, Any] = {}


def open_data(context: dict[str, Any], workers: Workers) -> Any:
    """The corpus, or this worker's part; opened once a process and kept for the next trials."""
    from datasets.protocols.split import make_folds
    from datasets.sharding.clip_cache import open_cache
    from datasets.sharding.index import read_index
    from search.data.training_data import TrainingData

    keys = (
        "data",
        "classes",
        "target",
        "protocol",
        "test_speakers",
        "checksum",
        "cache_folder",
        "skip_corrupt",
        "soft_labels",
        "weights",
    )
    part = (workers.rank, workers.count)
    identity = json.dumps([{key: context[key] for key in keys}, part])
    if identity not in _OPEN:
        index = read_index(context["data"])
        if context["classes"]:
            index = index.restrict(tuple(context["classes"]))
        cache = open_cache(
            index if workers.count == 1 else index.part_of(*part),
            Path(context["cache_folder"]) if context["cache_folder"] else None,
            max_bytes=int(context["cache_gb"] * 2**30),
            skip_corrupt=context["skip_corrupt"],
        )
        folds = make_folds(index, context["protocol"], context["test_speakers"])
        assert folds.fingerprint == context["folds"], (
            "a worker split the corpus otherwise than the driver"
        )
        _OPEN.clear()
        place = context["weights"]
        find = partial(local_folder, place, default_cache_folder()) if place else None
        whole = index if workers.count > 1 else None
        about = {"target": context["target"], "soft_labels": context["soft_labels"]}
        _OPEN[identity] = TrainingData(cache, folds, whole, weights=find, **about)
    return _OPEN[identity]
