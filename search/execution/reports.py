"""Reports of a trial: its rungs, or why it came to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from datasets.clips import DataError
from datasets.storage.synced_folder import KeptFolder


class Report(TypedDict, total=False):
    """One rung of a trial, or its failure; what Tune calls a result.

    Attributes:
        percent: Of the trial's own schedule.
        epoch: Epochs done.
        score: Mean over the folds; greater is better.
        fold_scores: Fold → score.
        train_loss: Of the last epoch.
        epoch_losses: A list a fold for every epoch since the last report.
        clips_per_second: Trained on since the last report.
        gpu_memory_mib: Most that was taken.
        seconds: Trained so far.
        architecture: The configuration's title.
        failed: Why the trial came to nothing.
        out_of_memory: Whether because memory did not suffice.
        storage: Whether because of the run's folder or the shards: not the trial's own fault.
    """

    percent: int
    epoch: int
    score: float
    fold_scores: dict[str, float]
    train_loss: float
    epoch_losses: list[list[float]]
    clips_per_second: float
    gpu_memory_mib: float
    seconds: float
    architecture: str
    failed: str
    out_of_memory: bool
    storage: bool


class StorageError(OSError):
    """The run's folder takes nothing more."""


@contextmanager
def writing_run(run: KeptFolder) -> Iterator[None]:
    """Turn what the storage refuses into a StorageError, which no other mistake is."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"the run's folder '{run.url or run.path}': {why}") from error


def failed(why: str) -> Report:
    """Return the report of a trial that came to nothing."""
    return {"failed": why, "percent": 0, "score": float("nan")}


def failed_by(error: Exception) -> Report:
    """Return the same, marked where it is not the trial's own fault: memory, storage, shards."""
    from search.training.device import is_out_of_memory

    not_its_own = isinstance(error, StorageError | DataError)
    report = failed(str(error).removesuffix(".") if not_its_own else _reason(error))
    if is_out_of_memory(error):
        report["out_of_memory"] = True
    if not_its_own:
        report["storage"] = True
    return report


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text}"[:300]
