"""Who else is told of a trial, and that what was told can be read back."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from models import ClipShape
from search.config import ConfigError, SearchConfig
from search.monitoring.loggers import TensorBoardCallback, flatten, loggers_for
from search.space.scope import scope_for
from search.trial_config import TrainSettings, TrialConfig
from search.tuning.searcher import ModalitySearcher
from search.tuning.study import open_journal
from tests.specs import context_of, spec_of

PLAN = TrialConfig(
    "functionals",
    {"layers": [64, 32], "norm": None},
    TrainSettings(epochs=4, learning_rate=0.001),
)


class Trial:
    """What a callback sees of a Tune trial."""

    def __init__(self, name: str = "audio-0003") -> None:
        self.name, self.trial_id = name, "abc"
        self.config = {"spec": spec_of(name, PLAN, context_of("/somewhere/private"))}

    def __str__(self) -> str:
        return self.name


def report(percent: int, losses: list[list[float]], scores: list[float]) -> dict[str, Any]:
    return {
        "percent": percent,
        "epoch": percent // 25,
        "score": sum(scores) / len(scores),
        "fold_scores": {str(fold): score for fold, score in enumerate(scores)},
        "epoch_losses": losses,
        "clips_per_second": 100.0,
        "gpu_memory_mib": 0.0,
        "training_iteration": percent // 50,
        "config": {"context": {"run": "/somewhere/private"}},
    }


FIRST = report(50, [[2.0, 4.0], [1.0, 2.0]], [0.25, 0.75])
SECOND = report(100, [[0.5, 1.5], [0.25, 0.75]], [0.5, 1.0])


def told(callback: TensorBoardCallback, *reports: dict[str, Any]) -> None:
    trial = Trial()
    callback.log_trial_start(trial)
    for number, one in enumerate(reports):
        callback.log_trial_result(number, trial, one)


def read_events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def series(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def test_event_files_have_every_epoch_rung_and_fold(tmp_path: Path) -> None:
    callback = TensorBoardCallback(tmp_path)
    told(callback, FIRST, SECOND)
    callback.log_trial_end(Trial())
    events = read_events(tmp_path / "tensorboard" / "audio-0003")
    assert series(events, "loss/mean") == [(1, 3.0), (2, 1.5), (3, 1.0), (4, 0.5)]
    assert series(events, "loss/fold-1") == [(1, 4.0), (2, 2.0), (3, 1.5), (4, 0.75)]
    assert series(events, "score/mean") == [(2, 0.5), (4, 0.75)]
    assert series(events, "score/fold-0") == [(2, 0.25), (4, 0.5)]
    assert series(events, "percent") == [(2, 50), (4, 100)]


def test_event_files_have_the_settings(tmp_path: Path) -> None:
    callback = TensorBoardCallback(tmp_path)
    told(callback, FIRST)
    callback.on_experiment_end([])  # cut off by the end of the time
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    events = read_events(tmp_path / "tensorboard" / "audio-0003")
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["modality"].string_value == "audio"
    assert settings["training.learning_rate"].number_value == 0.001
    assert settings["settings.layers"].string_value == "[64, 32]"
    assert "context" not in " ".join(settings)


def test_a_trial_that_is_told_again_is_written_anew(tmp_path: Path) -> None:
    told(TensorBoardCallback(tmp_path), FIRST)  # its process died: nobody closed the file
    callback = TensorBoardCallback(tmp_path)
    told(callback, FIRST, SECOND)
    callback.log_trial_end(Trial())
    events = read_events(tmp_path / "tensorboard" / "audio-0003")
    assert [step for step, _ in series(events, "score/mean")] == [2, 4]


def test_a_trial_that_failed_leaves_a_readable_file(tmp_path: Path) -> None:
    callback = TensorBoardCallback(tmp_path)
    told(callback, FIRST, {"failed": "NonFiniteLossError", "percent": 0, "score": float("nan")})
    callback.log_trial_end(Trial(), failed=True)
    events = read_events(tmp_path / "tensorboard" / "audio-0003")
    assert [step for step, _ in series(events, "score/mean")] == [2]


def test_settings_are_flattened_with_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": "x"}}, "e": [1, 2], "f": None, "g": True}) == {
        "a.b": 1, "a.c.d": "x", "e": "[1, 2]", "f": "None", "g": True,
    }  # fmt: skip


def test_an_unknown_or_missing_logger_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"Unknown log_to 'neptune'. Known: mlflow, wandb."):
        SearchConfig(log_to="neptune")
    monkeypatch.setattr("search.config.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log_to mlflow: mlflow is not installed. Install it"):
        SearchConfig(log_to="mlflow")
    assert SearchConfig().loggers == ()


def test_wandb_without_a_login_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    with pytest.raises(ConfigError, match="log_to wandb needs a login: set WANDB_API_KEY"):
        SearchConfig(log_to="wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    SearchConfig(log_to="wandb")


def test_mlflow_knows_the_trial_and_not_where_it_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "mine"
    run.mkdir()
    _, callback = loggers_for(SearchConfig(log_to="mlflow"), run)
    trial = Trial()
    callback.setup()
    callback.log_trial_start(trial)
    callback.log_trial_result(1, trial, FIRST)
    callback.log_trial_result(2, trial, SECOND)
    callback.log_trial_end(trial)
    broken = Trial("audio-0004")
    callback.log_trial_start(broken)
    nothing = {"failed": "a reason", "percent": 0, "score": float("nan"), "training_iteration": 1}
    callback.log_trial_result(1, broken, nothing)
    callback.log_trial_end(broken, failed=True)
    assert "spec" in trial.config, "the trial itself keeps what it needs"
    client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mine")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert runs["audio-0004"].info.status == "FAILED"
    found = runs["audio-0003"]
    assert found.info.status == "FINISHED"
    assert found.data.params["training/learning_rate"] == "0.001"
    assert "private" not in json.dumps(found.to_dictionary())
    assert found.data.metrics["score"] == 0.75
    assert found.data.metrics["fold_scores/1"] == 1.0
    assert [m.value for m in client.get_metric_history(found.info.run_id, "score")] == [0.5, 0.75]


def test_wandb_has_several_trials_at_once_and_not_where_they_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "mine"
    run.mkdir()
    _, callback = loggers_for(SearchConfig(log_to="wandb"), run)
    first, second = Trial("audio-0003"), Trial("audio-0004")
    for trial in (first, second):
        callback.log_trial_start(trial)
    callback.log_trial_result(1, first, FIRST)
    callback.log_trial_result(1, second, {"failed": "a reason", "percent": 0})
    callback.log_trial_result(2, first, SECOND)
    callback.log_trial_end(first)
    callback.on_experiment_end([])  # the second was cut off
    written = {path: path.read_bytes() for path in (run / "wandb").rglob("*.wandb")}
    assert len(written) == 2
    for content in written.values():
        assert b"learning_rate" in content
        assert b"private" not in content
    scored = [content for content in written.values() if b"fold_scores/1" in content]
    assert len(scored) == 1 and b"audio-0003" in scored[0]


def test_wandb_that_cannot_be_reached_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: Any) -> None:
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr("wandb.init", refuse)
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, callback = loggers_for(SearchConfig(log_to="wandb"), tmp_path)
    callback.log_trial_start(Trial())
    callback.log_trial_result(1, Trial(), FIRST)
    callback.log_trial_end(Trial())
    assert "audio-0003 is not logged to W&B: no route to host" in caplog.text


def test_optuna_dashboard_opens_the_journal(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("optuna-dashboard")
    scope = scope_for(
        ClipShape(num_classes=4, sample_rate_hz=16_000, num_features=5),
        ("functionals", "action_units"),
    )
    path = tmp_path / "journal.log"
    search = ModalitySearcher(scope, open_journal(path), seed=1, trials=4, deadline=math.inf)
    for number, score in enumerate((0.5, 0.6, 0.7, 0.8)):
        search.suggest(str(number))
        search.report_rung(str(number), 100, score)
        search.on_trial_complete(str(number), {"score": score, "percent": 100})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [str(program), str(path), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        studies = _get(f"http://127.0.0.1:{port}/api/studies", server)["study_summaries"]
        assert [study["study_name"] for study in studies] == ["audio", "video"]
        audio = studies[0]["study_id"]
        trials = _get(f"http://127.0.0.1:{port}/api/studies/{audio}", server)["trials"]
        assert [trial["values"] for trial in trials] == [[0.5], [0.7]]
        assert trials[0]["state"] == "Complete"
    finally:
        server.terminate()
        server.wait(10)


def _get(url: str, server: subprocess.Popen[bytes]) -> Any:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
