"""Gauges for Ray's metrics endpoint, tagged by trial: docs/dashboard.md says where to look."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.util.metrics import Gauge

if TYPE_CHECKING:
    from search.training.cross_validation import FoldEpoch
    from search.trial_spec import TrialSpec
    from search.tuning.searcher import ModalitySearcher
    from search.tuning.tally import Tally

REPEAT_SECONDS = 5.0
"""Ray forgets what is not set again within two of its report intervals (of 10 s).

So what is set once an epoch would come and go where epochs are long; and a trial that has ended
disappears by itself, though its process lives on and trains the next one.
"""

_TRIAL_TAGS = ("run", "trial", "modality", "architecture")

TRIAL_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "emotion_trial_percent": ("Done of the trial's own schedule.", _TRIAL_TAGS),
    "emotion_trial_score": ("Mean over the folds at the last rung; higher is better.", _TRIAL_TAGS),
    "emotion_trial_fold_score": ("At the last rung; higher is better.", (*_TRIAL_TAGS, "fold")),
    "emotion_trial_loss": ("Mean training loss of the last epoch.", (*_TRIAL_TAGS, "fold")),
    "emotion_trial_clips_per_second": ("Trained on, in the last epoch of a fold.", _TRIAL_TAGS),
    "emotion_trial_gpu_memory_bytes": (
        "Most that tensors took on the first worker's GPU; 0 on CPUs.",
        _TRIAL_TAGS,
    ),
}
"""Name (Ray puts `ray_` before it) → what it is, its tags."""

SEARCH_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "emotion_search_trials": (
        "Trials, by state: running, finished, stopped, failed.",
        ("run", "modality", "state"),
    ),
    "emotion_search_best_score": ("Of the modality; higher is better.", ("run", "modality")),
    "emotion_search_deadline_timestamp_seconds": ("When the time budget is over.", ("run",)),
}
"""The same, of the search as a whole."""


class Gauges:
    """Gauges that keep their values for as long as the block runs. Outside of Ray they do nothing.

    Args:
        kinds: Name → description and tags.
        tags: That all of them have.
        repeat_seconds: How often they are sent again.
    """

    def __init__(
        self,
        kinds: Mapping[str, tuple[str, tuple[str, ...]]],
        tags: Mapping[str, str],
        *,
        repeat_seconds: float = REPEAT_SECONDS,
    ) -> None:
        self.kinds, self.tags, self.repeat_seconds = kinds, dict(tags), repeat_seconds
        self._gauges: dict[str, Any] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begins to send."""
        if ray.is_initialized():
            self._gauges = {
                name: Gauge(name, description=what, tag_keys=keys)
                for name, (what, keys) in self.kinds.items()
            }
            self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Sends no more."""
        self._over.set()
        if self._thread:
            self._thread.join()

    def set(self, name: str, value: float, **tags: str) -> None:
        """Sets one value, by the tags that are its own."""
        if not self._gauges:
            return
        every = {**self.tags, **tags}
        with self._lock:
            self._values[name, tuple(every.items())] = value
            self._gauges[name].set(value, every)

    def _repeat(self) -> None:
        while not self._over.wait(self.repeat_seconds):
            with self._lock:
                for (name, tags), value in self._values.items():
                    self._gauges[name].set(value, dict(tags))


def trial_gauges(spec: TrialSpec) -> Gauges:
    """Those of one trial, in the process that trains it."""
    tags = {
        "run": spec.context.run_name,
        "trial": spec.name,
        "modality": spec.modality,
        "architecture": spec.plan.title,
    }
    return Gauges(TRIAL_GAUGES, tags)


def show_epoch(gauges: Gauges, done: FoldEpoch, epochs: int, gpu_memory_bytes: int) -> None:
    """After an epoch of a fold."""
    gauges.set("emotion_trial_loss", done.loss, fold=str(done.fold))
    gauges.set("emotion_trial_percent", 100 * done.epoch / epochs)
    gauges.set("emotion_trial_clips_per_second", done.clips / max(done.seconds, 1e-9))
    gauges.set("emotion_trial_gpu_memory_bytes", gpu_memory_bytes)


def show_rung(gauges: Gauges, report: Mapping[str, Any]) -> None:
    """At a rung."""
    gauges.set("emotion_trial_score", report["score"])
    for fold, score in report["fold_scores"].items():
        gauges.set("emotion_trial_fold_score", score, fold=fold)


def search_gauges(run: str) -> Gauges:
    """Those of the search as a whole, in the driver."""
    return Gauges(SEARCH_GAUGES, {"run": run})


def show_search(gauges: Gauges, search: ModalitySearcher) -> Callable[[dict[str, Tally]], None]:
    """Return the function to be called when the trials were counted."""
    deadline = time.time() + search.deadline - time.monotonic()

    def show(tallies: dict[str, Tally]) -> None:
        gauges.set("emotion_search_deadline_timestamp_seconds", deadline)
        for modality, tally in tallies.items():
            for state in ("running", "finished", "stopped", "failed"):
                count = getattr(tally, state)
                gauges.set("emotion_search_trials", count, modality=modality, state=state)
            if tally.best is not None:
                gauges.set("emotion_search_best_score", tally.best, modality=modality)

    return show
