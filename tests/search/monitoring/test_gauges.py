"""What leaves through Ray's metrics endpoint, and what the Grafana dashboard asks of it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.monitoring import gauges
from search.monitoring.gauges import (
    SEARCH_GAUGES,
    TRIAL_GAUGES,
    Gauges,
    show_epoch,
    show_rung,
    show_search,
)
from search.training.cross_validation import FoldEpoch
from search.tuning.tally import Tally
from tests.grafana import expressions
from tests.specs import context_of, spec_of

ROOT = Path(__file__).parents[3]
SPEC = spec_of("audio-0003", context=context_of("/runs/mine/"))


class Exporter:
    """Stands in for Ray's Gauge: keeps every value that was set, with its tags."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, float, dict[str, str]]] = []

    def gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        def send(value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(tag_keys), "Ray refuses a value without all its tags"
            assert description
            self.sent.append((name, value, tags))

        return SimpleNamespace(set=send)

    def last(self, name: str, **tags: str) -> float:
        values = [v for n, v, t in self.sent if n == name and t.items() >= tags.items()]
        return values[-1]


@pytest.fixture()
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    found = Exporter()
    monkeypatch.setattr(gauges, "Gauge", found.gauge)
    monkeypatch.setattr(gauges.ray, "is_initialized", lambda: True)
    return found


def test_a_trial_is_told_by_run_trial_modality_architecture_and_fold(exporter: Exporter) -> None:
    with gauges.trial_gauges(SPEC) as shown:
        done = FoldEpoch(fold=2, epoch=3, loss=1.5, clips=200, seconds=0.5)
        show_epoch(shown, done, epochs=12, gpu_memory_bytes=1024)
        show_rung(shown, {"score": 0.5, "fold_scores": {"0": 0.25, "1": 0.75}})
    tags = {"run": "mine", "trial": "audio-0003", "modality": "audio"}
    tags["architecture"] = "functionals"
    assert exporter.last("emotion_trial_loss", **tags, fold="2") == 1.5
    assert exporter.last("emotion_trial_percent", **tags) == 25
    assert exporter.last("emotion_trial_clips_per_second", **tags) == 400
    assert exporter.last("emotion_trial_gpu_memory_bytes", **tags) == 1024
    assert exporter.last("emotion_trial_score", **tags) == 0.5
    assert exporter.last("emotion_trial_fold_score", **tags, fold="1") == 0.75
    assert {name for name, _, _ in exporter.sent} == set(TRIAL_GAUGES)


def test_the_search_is_told_by_modality_and_state(exporter: Exporter) -> None:
    before = time.time()
    search: Any = SimpleNamespace(deadline=time.monotonic() + 100)
    after = time.time()
    with gauges.search_gauges("mine") as shown:
        show_search(shown, search)({"audio": Tally(running=1, finished=2, best=0.5)})
    assert exporter.last("emotion_search_trials", modality="audio", state="finished") == 2
    assert exporter.last("emotion_search_trials", modality="audio", state="running") == 1
    assert exporter.last("emotion_search_best_score", modality="audio") == 0.5
    ends = exporter.last("emotion_search_deadline_timestamp_seconds", run="mine")
    assert before - 0.1 <= ends - 100 <= after + 0.1
    assert {name for name, _, _ in exporter.sent} == set(SEARCH_GAUGES)


def test_values_are_repeated_while_a_trial_runs_and_no_longer(exporter: Exporter) -> None:
    """Ray forgets what is not set again, and must forget what has ended."""
    with Gauges({"score": ("Of it.", ("trial",))}, {"trial": "a"}, repeat_seconds=0.02) as gauges:
        gauges.set("score", 0.5)
        deadline = time.monotonic() + 600
        while len(exporter.sent) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert exporter.sent[:4] == [("score", 0.5, {"trial": "a"})] * 4
    assert gauges._thread is not None
    assert not gauges._thread.is_alive(), "nothing more is sent"


def test_outside_of_ray_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "Gauge", lambda *arguments, **options: pytest.fail("a gauge"))
    with gauges.trial_gauges(SPEC) as shown:
        show_rung(shown, {"score": 0.5, "fold_scores": {"0": 0.5}})


def test_the_grafana_dashboard_asks_for_all_that_there_is_and_for_nothing_else() -> None:
    asked = set(re.findall(r"\bray_(emotion_\w+)", " ".join(expressions().values())))
    assert asked == set(TRIAL_GAUGES) | set(SEARCH_GAUGES)
