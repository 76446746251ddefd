"""What others see of a running search: Prometheus with Grafana's panels, MLflow, Weights & Biases, TensorBoard."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.grafana import expressions
from tests.runs.conftest import Launcher
from tests.runs.process import journal


@pytest.fixture()
def ray_folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_prometheus_finds_every_trial_and_answers_every_panel(
    ray_folder: Path, launch: Launcher, tmp_path: Path
) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    env = {"RAY_TMPDIR": str(ray_folder)}
    search = launch.search(name="seen", trials=400, epochs=36, dashboard=True, env=env)
    written = search.until(
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

    unanswered = dict(expressions())

    def answered() -> bool:
        for title in list(unanswered):
            if ask(unanswered[title]):
                del unanswered[title]
        return not unanswered

    try:
        search.until(answered)
        seen = ask("last_over_time(ray_emotion_trial_loss[5m])")
        names = {(s["metric"]["run"], s["metric"]["trial"], s["metric"]["fold"]) for s in seen}
        assert {("seen", "audio-0000", "0"), ("seen", "audio-0000", "1")} <= names

        # Trials that have ended are forgotten.
        shown = "ray_emotion_trial_percent"
        search.until(lambda: "audio-0000" not in {s["metric"]["trial"] for s in ask(shown)})
        run = tmp_path / "runs" / "seen"
        search.until(lambda: "PRUNED" in {trial["state"] for trial in journal(run).values()})
    finally:
        server.terminate()
        server.wait()
    search.send(signal.SIGTERM)  # as Ctrl-C: it reports and ends Ray
    search.finish(130)


def test_a_search_logs_to_mlflow_and_wandb(
    launch: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    launch.search(name="logged", trials=3, log_to="mlflow,wandb").finish()
    run = tmp_path / "runs" / "logged"
    client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("logged").experiment_id])
    assert {r.info.run_name for r in runs} == {"audio-0000", "video-0000", "early-0000"}
    assert all(0 <= r.data.metrics["score"] <= 1 for r in runs)
    assert len(list((run / "wandb").rglob("*.wandb"))) == 3
    for file in (run / "wandb").rglob("*.wandb"):
        content = file.read_bytes()
        assert b"learning_rate" in content
        assert b"cache_folder" not in content, "where the files of a run are is nobody's business"
    names = {path.name for path in (run / "tensorboard").iterdir()}
    assert names == {"audio-0000", "video-0000", "early-0000"}
