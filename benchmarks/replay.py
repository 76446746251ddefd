"""Recorded trials, and workers that replay them: simulated ones, and Ray tasks that sleep.

`recorded_trials.json` has the seconds and the score at every rung of each trial of a real
search, and the command and commit that it came from.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.air.execution._internal.tracked_actor import TrackedActor

from search.execution import trial_task
from search.space.scope import SearchScope
from search.trial_spec import TrialSpec

RUNGS = (25, 50, 75, 100)
HANDOVER_SECONDS = 0.12
"""From the end of a trial to the begin of the next one's training (docs/performance.md)."""

SCOPE = SearchScope(
    single={"audio": ("functionals", "logmel_resnet"), "video": ("action_units",)},
    fusions=("concatenation",),
    parts={"audio": ("functionals", "logmel_resnet"), "video": ("action_units",)},
)
"""Search space of the recorded search."""

Report = dict[str, Any]


def _recorded() -> dict[str, list[tuple[float, tuple[float, ...]]]]:
    """Architecture → seconds of the whole schedule and score at each rung, of its trials.

    One that was stopped goes on at its pace, with its last score.
    """
    table = json.loads(Path(__file__).with_name("recorded_trials.json").read_text())
    curves: dict[str, list[tuple[float, tuple[float, ...]]]] = {}
    for row in table["trials"]:
        scores, missing = row["scores"], len(RUNGS) - len(row["scores"])
        curve = (row["seconds"] * len(RUNGS) / len(scores), (*scores, *scores[-1:] * missing))
        curves.setdefault(row["architecture"], []).append(curve)
    return curves


_CURVES = _recorded()


def replayed(config: dict[str, Any], name: str) -> list[Report]:
    """A trial's reports: a recorded curve of its architecture, chosen by its name."""
    architecture = config.get("architecture") or config["spec"].plan.title
    seconds, scores = random.Random(zlib.crc32(name.encode())).choice(_CURVES[architecture])
    return [
        {
            "percent": percent,
            "epoch": percent,
            "training_iteration": 1 + RUNGS.index(percent),
            "score": score,
            "train_loss": 0.0,
            "seconds": seconds * percent / RUNGS[-1],
            "architecture": architecture,
        }
        for percent, score in zip(RUNGS, scores, strict=True)
    ]


@dataclass
class Record:
    """Events of a replay on simulated workers.

    Attributes:
        trained: Begin and end of each trial's training, on the virtual clock.
        begun: Begin of each trial's training.
        results: Rungs that were reported.
        search_cpu: Seconds in the search and the scheduler.
        controller_cpu: Seconds of the controller in all.
        controller_wall: The same by the clock on the wall: with waiting for the disk.
        blocks: The last four at the end of every thousand trials.
    """

    trained: list[tuple[float, float]] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    results: int = 0
    search_cpu: float = 0.0
    controller_cpu: float = 0.0
    controller_wall: float = 0.0
    blocks: list[tuple[int, float, float, float]] = field(default_factory=list)

    def ended(self, begin: float, end: float) -> None:
        """A trial has."""
        self.trained.append((begin, end))
        if len(self.trained) % 1000 == 0:
            self.blocks.append(
                (self.results, self.search_cpu, self.controller_cpu, self.controller_wall)
            )

    def busy(self, workers: int) -> float:
        """Share of the workers' time in which they trained, while there were trials to start."""
        return busy_share(self.trained, workers, 0.0, max(self.begun))


def busy_share(trained: list[tuple[float, float]], workers: int, begin: float, end: float) -> float:
    """Time in `trained` between two moments, over all that the workers had then."""
    spent = sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in trained)
    return spent / (workers * (end - begin))


@dataclass
class _Training:
    """A trial on a simulated worker."""

    begin: float
    left: list[Report]
    config: dict[str, Any]
    told: Report = field(default_factory=dict)


class _Handle:
    """Stand-in for a Ray actor's handle, with what Tune's controller touches."""

    class get_auto_filled_metrics:
        """Asked for at an actor's start, and awaited only where a trial fails."""

        @staticmethod
        def remote(**kwargs: Any) -> None:
            """No future."""


class SimulatedActors:
    """Stands in for Tune's manager of Ray actors: virtual time, to which the controller's is added.

    Whatever the controller computes between two events is measured and charged, one event after
    the other. A trial trains on while a rung is judged, as a real one does; what it trained
    after the rung that stopped it does not count.
    """

    record = Record()

    def __init__(self, resource_manager: Any) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Any, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._training: dict[Any, _Training] = {}
        self._live_actors_to_ray_actors_resources: dict[Any, tuple[_Handle, None]] = {}
        self._cpu, self._wall = time.thread_time(), time.perf_counter()

    def next(self, timeout: float | None = None) -> bool:
        """Charges what the controller has computed since, then lets the next event happen."""
        cpu, wall = time.thread_time() - self._cpu, time.perf_counter() - self._wall
        self.record.controller_cpu += cpu
        self.record.controller_wall += wall
        self.now += cpu
        self._cpu, self._wall = time.thread_time(), time.perf_counter()
        if not self._events:
            return False
        at, _, _, happen = heapq.heappop(self._events)
        self.now = max(self.now, at)
        happen()
        return True

    def _at(self, moment: float, actor: Any, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), actor, happen))

    def add_actor(self, cls: Any, resource_request: Any, kwargs: Any, **callbacks: Any) -> Any:
        """A worker, with its first trial."""
        actor = TrackedActor(next(self._numbers), **callbacks)
        self._live_actors_to_ray_actors_resources[actor] = (_Handle(), None)
        self._begin(actor, kwargs["config"])
        self._at(self.now, actor, lambda: actor._on_start(actor))
        return actor

    def _begin(self, actor: Any, config: dict[str, Any]) -> None:
        begin = self.now + HANDOVER_SECONDS
        reports = replayed(config, str(config.get("trial") or len(self.record.begun)))
        self.record.begun.append(begin)
        self._training[actor] = _Training(begin, reports, config)

    def _end(self, actor: Any) -> None:
        training = self._training.pop(actor)
        end = training.begin + training.told.get("seconds", 0.0)
        self.record.ended(training.begin, end)

    def schedule_actor_task(
        self,
        tracked_actor: Any,
        method_name: str,
        args: Any = (),
        kwargs: Any = None,
        on_result: Callable[[Any, Any], None] = lambda actor, result: None,
        on_error: Any = None,
        _return_future: bool = False,
    ) -> None:
        """Answer a call of the controller: `train` to the next rung, `reset`, `stop`."""
        actor = tracked_actor
        if method_name == "reset":
            self._end(actor)
            self._begin(actor, args[0])
            self._at(self.now, actor, lambda: on_result(actor, True))
        elif method_name == "train":
            training = self._training[actor]
            over = {**training.told, "__duplicate__": True, "done": True}
            training.told = training.left.pop(0) if training.left else over
            result = {**_TUNE_ADDS, **training.told, "config": training.config}
            ready = training.begin + training.told["seconds"]
            self._at(max(self.now, ready), actor, lambda: on_result(actor, result))

    def clear_actor_task_futures(self, tracked_actor: Any) -> None:
        """Drop the answer to whatever the actor was asked before."""
        self._events = [event for event in self._events if event[2] is not tracked_actor]
        heapq.heapify(self._events)

    def remove_actor(self, tracked_actor: Any, kill: bool = False, stop_future: Any = None) -> bool:
        """The worker goes."""
        self.clear_actor_task_futures(tracked_actor)
        self._end(tracked_actor)
        self._live_actors_to_ray_actors_resources.pop(tracked_actor)
        if tracked_actor._on_stop:
            self._at(self.now, tracked_actor, lambda: tracked_actor._on_stop(tracked_actor))
        return True

    def is_actor_started(self, tracked_actor: Any) -> bool:
        """Whether it is there."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: Any) -> bool:
        """Simulated ones do not fail."""
        return False

    def cleanup(self) -> None:
        """Nothing is left behind."""

    num_pending_actors = 0

    @property
    def num_live_actors(self) -> int:
        """Workers there are."""
        return len(self._live_actors_to_ray_actors_resources)

    num_total_actors = num_actor_tasks = num_live_actors


_TUNE_ADDS = {
    "timestamp": 0, "checkpoint_dir_name": None, "should_checkpoint": False, "done": False,
    "date": "2026-11-20_00-00-00", "time_this_iter_s": 1.0,
    "time_total_s": 1.0, "pid": 1, "hostname": "worker", "node_ip": "127.0.0.1",
    "time_since_restore": 1.0, "iterations_since_restore": 1,
}  # fmt: skip
"""Fields that every result of a real function trainable has as well."""


# On Ray: everything of a trial is real, but its training.


def replay_trial(config: dict[str, Any]) -> None:
    """Act like `search.execution.trial_task.run_trial`, with a task that sleeps."""
    trial_task.train_trial = sleep_through
    trial_task.run_trial(config)


@ray.remote(num_cpus=1, num_returns="streaming", max_retries=0)
def sleep_through(spec: TrialSpec) -> Iterator[Report]:
    """Act like `search.execution.trial_task.train_trial`."""
    setattr(trial_task, "train", _sleep)  # noqa: B010
    yield from trial_task.train_trial._function(spec)


def _sleep(spec: TrialSpec) -> Iterator[Report]:
    """Waits from rung to rung; leaves in a file when it began and when it reached the last one."""
    begin = time.time()
    run = Path(spec.context.run)
    file, speed = run / "slept" / spec.trial, float((run / "speed").read_text())

    def note() -> None:
        partial = file.with_suffix(".partial")
        partial.write_text(f"{begin} {time.time()}")
        partial.replace(file)

    for report in replayed({"spec": spec}, spec.trial):
        note()
        time.sleep(max(0.0, begin + report["seconds"] / speed - time.time()))
        note()
        yield report
