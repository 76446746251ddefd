"""What leaves through Ray's metrics endpoint, and what the Grafana dashboard asks of it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search import metrics
from search.metrics import SEARCH_GAUGES, TRIAL_GAUGES, Gauges, show_epoch, show_rung, show_search
from search.progress import Tally
from search.train import FoldEpoch

ROOT = Path(__file__).parents[2]
SPEC = {"trial": "audio-0003", "modality": "audio", "context": {"run": "/runs/mine/"}}


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
    monkeypatch.setattr(metrics, "Gauge", found.gauge)
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: True)
    return found


def test_a_trial_is_told_by_run_trial_modality_architecture_and_fold(exporter: Exporter) -> None:
    with metrics.trial_gauges(SPEC, "functionals") as gauges:
        done = FoldEpoch(fold=2, epoch=3, loss=1.5, clips=200, seconds=0.5)
        show_epoch(gauges, done, epochs=12, gpu_memory_bytes=1024)
        show_rung(gauges, {"score": 0.5, "fold_scores": {"0": 0.25, "1": 0.75}})
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
    with metrics.search_gauges("mine") as gauges:
        show_search(gauges, search)({"audio": Tally(running=1, finished=2, best=0.5)})
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
    assert not [thread for thread in threading.enumerate() if thread.name == "gauges"]


def test_outside_of_ray_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "Gauge", lambda *arguments, **options: pytest.fail("a gauge"))
    with metrics.trial_gauges(SPEC, "functionals") as gauges:
        show_rung(gauges, {"score": 0.5, "fold_scores": {"0": 0.5}})


def expressions() -> dict[str, str]:
    """Title → PromQL of every panel of the Grafana dashboard."""
    document = json.loads((ROOT / "docs" / "grafana-trials.json").read_text())
    return {p["title"]: t["expr"] for p in document["panels"] for t in p["targets"]}


def test_the_grafana_dashboard_asks_for_all_that_there_is_and_for_nothing_else() -> None:
    asked = set(re.findall(r"\bray_(emotion_\w+)", " ".join(expressions().values())))
    assert asked == set(TRIAL_GAUGES) | set(SEARCH_GAUGES)


@pytest.fixture()
def ray_folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow()
def test_prometheus_finds_every_trial_and_answers_every_panel(
    launch: Any, small_search: list[object], tmp_path: Path, ray_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    arguments = [a for a in small_search if a != "--dashboard=false"]
    search = launch(*arguments, "--trials", 400, "--time-budget", "90s", "--name", "seen")
    server = None
    try:
        written = _wait(
            lambda: next(ray_folder.glob("ray/session_2*/metrics/prometheus/*.yml"), None)
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [program, f"--config.file={written}", f"--web.listen-address=127.0.0.1:{port}",
             f"--storage.tsdb.path={tmp_path / 'prometheus'}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def ask(expression: str) -> list[dict[str, Any]]:
            query = re.sub(r"\$(run|modality|trial)", ".*", expression)
            address = f"http://127.0.0.1:{port}/api/v1/query?"
            with urllib.request.urlopen(address + urllib.parse.urlencode({"query": query})) as got:
                return list(json.load(got)["data"]["result"])

        unanswered = set(expressions())

        def answered() -> bool:
            for title in list(unanswered):
                if ask(expressions()[title]):
                    unanswered.discard(title)
            return not unanswered

        _wait(answered, lambda: f"panels without an answer: {sorted(unanswered)}")
        seen = ask("last_over_time(ray_emotion_trial_loss[5m])")
        names = {(s["metric"]["run"], s["metric"]["trial"], s["metric"]["fold"]) for s in seen}
        assert {("seen", "audio-0000", "0"), ("seen", "audio-0000", "1")} <= names

        # Trials that have ended are forgotten: no more are shown than run, or ran just now.
        logs = tmp_path / "runs" / "seen" / "logs"
        _wait(lambda: len(list(logs.iterdir())) > 20)
        assert len(ask("count by (trial) (ray_emotion_trial_percent)")) < len(list(logs.iterdir()))
    finally:
        search.terminate()  # as Ctrl-C: it reports and ends Ray
        if server:
            server.terminate()
            server.wait(20)
        _, err = search.communicate(timeout=120)
    assert "Traceback" not in err


def _wait(what: Any, why: Any = lambda: "in time") -> Any:
    deadline = time.monotonic() + 80
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(why())
