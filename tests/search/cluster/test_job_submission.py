"""What is submitted to a cluster; the submission itself is in tests/cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from search.cluster.job_submission import command, is_dashboard
from search.config import ConfigError, parse_arguments
from search.run import main


def words(*arguments: str) -> list[str]:
    config, given = parse_arguments([*arguments, "--address", "http://head:8265"])
    return command(config, given)


def test_the_job_is_asked_what_was_asked_here(tmp_path: Any) -> None:
    (tmp_path / "night.yaml").write_text("trials: 12\nskip_corrupt: true\n")
    asked = words("--config", str(tmp_path / "night.yaml"), "--data", "s3://corpora/ravdess")
    assert asked[:3] == ["python", "-m", "search.run"]
    assert sorted(asked[3:]) == [
        "--data=s3://corpora/ravdess",
        "--skip_corrupt=true",
        "--trials=12",
    ]
    config, given = parse_arguments(asked[3:])
    assert (config.trials, config.skip_corrupt, config.address) == (12, True, None)
    assert given == {"trials", "skip_corrupt", "data"}


def test_where_runs_are_kept_comes_from_here_if_it_is_said_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMOTION_RUNS", "s3://bucket/runs")
    assert "--runs_dir=s3://bucket/runs" in words()
    monkeypatch.delenv("EMOTION_RUNS")
    assert not [word for word in words() if "runs_dir" in word]


@pytest.mark.parametrize("option", ["--data=shards/ravdess", "--runs-dir=runs", "--cache-dir=x"])
def test_a_path_of_this_machine_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=r"is a path of this machine. On the cluster it takes"):
        words(option)


def test_only_a_url_is_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_dashboard("http://127.0.0.1:8265") and is_dashboard("https://head")
    assert not is_dashboard("head:6379") and not is_dashboard("auto") and not is_dashboard(None)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert is_dashboard(None)
    assert not is_dashboard("local")


@pytest.fixture()
def server() -> Iterator[Any]:
    """A web server that gives one answer to everything; set its `code`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(made.code)  # type: ignore[attr-defined]

        def log_message(self, *_: Any) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (403, "does not accept this machine's token"),
        (401, "does not accept"),
        (404, "is no Ray dash"),
    ],
)
def test_a_server_that_does_not_take_the_job_is_one_line(
    server: Any, code: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.code = code
    assert main(["--address", f"http://127.0.0.1:{server.server_address[1]}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: http://127.0.0.1") and what in err and err.count("\n") == 1


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--address", "http://127.0.0.1:9"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: Cannot reach the Ray dashboard at 'http://127.0.0.1:9'"), err
    assert err.count("\n") == 1
