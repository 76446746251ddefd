"""What a trial needs wherever it runs, and how its end or failure is reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.clips import DataError
from datasets.storage.synced_folder import KeptFolder, default_cache_folder, is_url
from search.config import SearchConfig
from search.data.training_data import TrainingData
from search.trial_config import describe

if TYPE_CHECKING:
    pass


def _absolute(place: str | None) -> str | None:
    return place if place is None or is_url(place) else str(Path(place).resolve())


def data_context(config: SearchConfig, data: TrainingData, device: str) -> dict[str, Any]:
    """What it takes to open the corpus, wherever it is."""
    index = data.cache.index
    return {
        "data": index.root if "://" in index.root else str(Path(index.root).resolve()),
        "checksum": index.checksum,
        "classes": list(config.class_names),
        "target": data.target,
        "protocol": data.folds.protocol,
        "test_speakers": list(data.folds.test_speakers),
        "folds": data.folds.fingerprint,
        "device": device,
        "cache_folder": str(Path(config.cache_dir).resolve()) if config.cache_dir else None,
        "cache_gb": config.cache_gb,
        "skip_corrupt": config.skip_corrupt,
        "soft_labels": config.soft_labels,
        "weights": _absolute(config.weights),
    }


ATTEMPTS = 3
"""How many processes a trial may take one after the other, where they or their hosts die."""


ACTOR_CPUS = 0.01
"""What the actor that waits for a trial's task takes of the trial's own share."""


def title(spec: Spec) -> str:
    """What the dashboard calls a trial."""
    return f"{spec['trial']} {describe(spec['plan'])}"


Spec = dict[str, Any]
"""JSON that says all: `trial`, `modality`, `plan`, and the run's `context` (data, folds, paths)."""


def enrolled_name(trial: str, clips: int) -> str:
    """What the bank calls a trial whose held-out speakers were normalised by so many clips."""
    return f"{trial}+enrol{clips}"


def _cost_key(plan: dict[str, Any]) -> str:
    """What the cost of a trial is found by (`search.space.step_cost.Cost`)."""
    sides = [
        plan["settings"][m]["architecture"] for m in ("audio", "video") if m in plan["settings"]
    ]
    mode = plan["settings"].get("transfer")
    return "+".join(sides) or (f"{plan['architecture']} {mode}" if mode else plan["architecture"])


def gpus_for(spec: Spec) -> float:
    """What a trial takes of a GPU: a share where it shares one, one a worker, or 0 without."""
    context = spec["context"]
    if context["device"] == "cpu":
        return 0.0
    if context["workers_per_trial"] > 1:
        return 1.0  # NCCL does not let workers share one
    measured = context["gpu_share"].get(_cost_key(spec["plan"]), 1.0)
    return min(1.0, float(measured) * float(spec.get("times_the_share", 1)))


def take_more(spec: Spec) -> bool:
    """Twice the share of a GPU for a trial that had too little memory; False if it had all."""
    if gpus_for(spec) in (0.0, 1.0):
        return False
    spec["times_the_share"] = 2 * spec.get("times_the_share", 1)
    return True


def kept_run(context: dict[str, Any]) -> KeptFolder:
    """The run's folder as this process sees it."""
    return KeptFolder.at(context["run"], default_cache_folder())


def failed(why: str) -> dict[str, Any]:
    """The report of a trial that came to nothing."""
    return {"failed": why, "percent": 0, "score": float("nan")}


def failed_by(error: Exception) -> dict[str, Any]:
    """The same, marked where it is not the trial's own fault: too little memory, storage, shards."""
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


class StorageError(OSError):
    """The run's folder takes nothing more."""


@contextmanager
def writing_run(run: KeptFolder) -> Iterator[None]:
    """Tells what the storage refuses from other mistakes."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"the run's folder '{run.url or run.path}': {why}") from error
