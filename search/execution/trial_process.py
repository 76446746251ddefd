"""Train a trial in this process: open the corpus, train, record. No scheduling here."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from datasets.storage.synced_folder import default_cache_folder, local_folder
from search.execution.recorder import Recorder, TrialLog
from search.execution.reports import Report, StorageError, failed_by, writing_run
from search.monitoring import gauges
from search.trial_spec import CorpusSpec, TrialSpec

if TYPE_CHECKING:
    from search.data.training_data import TrainingData
    from search.training.distributed import Workers


def train(spec: TrialSpec) -> Iterator[Report]:
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


def train_part(spec: TrialSpec, log: TrialLog, workers: Workers) -> Iterator[Report]:
    """Train the part of one of several workers; the first one's reports count, the others' are empty."""
    import torch

    from search.training.checkpoint import Checkpoint, Progress
    from search.training.cross_validation import LockstepTrial

    context = spec.context
    torch.set_num_threads(max(1, context.cpus_per_trial))
    started = time.monotonic()
    trial = LockstepTrial(
        spec.plan,
        open_data(context.corpus, workers),
        seed=context.seed,
        device=context.device,
        precision=context.precision,
        workers=workers,
        by_speaker=bool(spec.enrolment),
        may_split=spec.has_gpu_alone,
    )
    checkpoint = Checkpoint(log.run, spec.name, spec.identity())
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
        f"{spec.plan.title}, {trial.precision}, setup {setup:.2f} s{_here()}\n"
        + (f"continued after epoch {trial.epoch}" if before else json.dumps(spec.plan.to_json()))
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

    reported = reports[-1]["epoch"] if reports else 0
    with gauges.trial_gauges(spec) as shown:
        record = Recorder(spec, trial, log, shown, started=started, reported_epochs=reported)
        for rung in trial.run(save, record.epoch):
            reports.append(record.rung(rung))
            yield reports[-1]


def _here() -> str:
    """Return the name of this host, where Ray knows it."""
    return f" on {ray.util.get_node_ip_address()}" if ray.is_initialized() else ""


_OPEN: dict[tuple[CorpusSpec, tuple[int, int]], TrainingData] = {}


def open_data(corpus: CorpusSpec, workers: Workers) -> TrainingData:
    """Open the corpus, or this worker's part; once a process, and kept for the next trials."""
    key = (corpus, (workers.rank, workers.count))
    if key not in _OPEN:
        _OPEN.clear()
        _OPEN[key] = _open(corpus, workers)
    return _OPEN[key]


def _open(corpus: CorpusSpec, workers: Workers) -> TrainingData:
    from datasets.protocols.split import make_folds
    from datasets.sharding.clip_cache import open_cache
    from datasets.sharding.index import read_index
    from search.data.training_data import TrainingData

    index = read_index(corpus.place)
    if corpus.classes:
        index = index.restrict(corpus.classes)
    cache = open_cache(
        index if workers.count == 1 else index.part_of(workers.rank, workers.count),
        Path(corpus.cache_folder) if corpus.cache_folder else None,
        max_bytes=int(corpus.cache_gb * 2**30),
        skip_corrupt=corpus.skip_corrupt,
    )
    folds = make_folds(index, corpus.protocol, corpus.test_speakers)
    assert folds.fingerprint == corpus.folds, "a worker split the corpus otherwise than the driver"
    place = corpus.weights
    return TrainingData(
        cache,
        folds,
        index if workers.count > 1 else None,
        weights=partial(local_folder, place, default_cache_folder()) if place else None,
        target=corpus.target,
        soft_labels=corpus.soft_labels,
    )
