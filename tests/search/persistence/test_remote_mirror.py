"""Runs that are kept in an object store: any machine may go on with them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from datasets.storage.synced_folder import KeptFolder
from search.config import ConfigError
from search.persistence.remote_mirror import Mirror, bring_together, mend_journal
from search.run import main


@pytest.fixture()
def bucket(object_store: Any) -> Any:
    """A client whose store has the bucket `kept`."""
    object_store.create_bucket(Bucket="kept")
    return object_store


def machine(folder: Path) -> KeptFolder:
    """The run `night` as one machine sees it, with a journal of one line."""
    kept = KeptFolder.at("s3://kept/runs/night", folder)
    kept.path.mkdir(parents=True, exist_ok=True)
    return kept


def test_what_the_driver_writes_is_sent_and_what_trials_write_is_not(
    bucket: Any, tmp_path: Path
) -> None:
    kept = machine(tmp_path)
    for name in ("journal.log", "summary.json", "plots/a.png", "bank/a.npz", "ray/tune/x", ".lock"):
        (kept.path / name).parent.mkdir(parents=True, exist_ok=True)
        (kept.path / name).write_text(name)
    with Mirror(kept).working():
        assert set(kept.sizes()) == {"journal.log", "summary.json", "plots/a.png", "lease.json"}
        (kept.path / "journal.log").write_text("more of it\n")
    assert kept.sizes() == {"journal.log": 11, "summary.json": 12, "plots/a.png": 11}


def test_a_checkpoint_goes_when_the_journal_that_needs_it_no_more_is_safe(
    bucket: Any, tmp_path: Path
) -> None:
    kept = machine(tmp_path)
    (kept.path / "checkpoints").mkdir()
    (kept.path / "checkpoints/audio-0000.pt").write_text("progress")
    kept.send("checkpoints")
    mirror = Mirror(kept)
    mirror.forget_checkpoint("audio-0000")
    assert "checkpoints/audio-0000.pt" in kept.sizes()
    (kept.path / "journal.log").write_text("it ended\n")
    mirror.send()
    assert kept.sizes() == {"journal.log": 9}


def test_a_second_machine_is_told_who_works_on_the_run(bucket: Any, tmp_path: Path) -> None:
    one, other = Mirror(machine(tmp_path / "one")), Mirror(machine(tmp_path / "other"))
    with (
        one.working(),
        pytest.raises(ConfigError, match=r"in use by .*, which was there \d+ s"),
        other.working(),
    ):
        pass
    with other.working():  # the first has left
        pass


def test_the_lease_of_a_process_of_this_machine_ends_with_it(bucket: Any, tmp_path: Path) -> None:
    one, other = Mirror(machine(tmp_path / "one")), Mirror(machine(tmp_path / "other"))
    one._take_lease()
    lease = one.kept.path / "lease.json"
    ended = subprocess.Popen(["true"])
    ended.wait()
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "process": ended.pid}))
    one.kept.send("lease.json")
    with other.working():
        assert json.loads((other.kept.path / "lease.json").read_text())["process"] == os.getpid()


def test_the_lease_of_a_machine_that_is_gone_runs_out(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Mirror(machine(tmp_path / "one")), Mirror(machine(tmp_path / "other"))
    one._take_lease()
    now = time.time()
    monkeypatch.setattr("search.persistence.remote_mirror.time.time", lambda: now + 59)
    with pytest.raises(ConfigError, match="in use by"), other.working():
        pass
    monkeypatch.setattr("search.persistence.remote_mirror.time.time", lambda: now + 61)
    with other.working():
        assert json.loads((other.kept.path / "lease.json").read_text())["at"] == now + 61


def test_the_longer_of_two_journals_goes_on(bucket: Any, tmp_path: Path) -> None:
    one, other = machine(tmp_path / "one"), machine(tmp_path / "other")
    (one.path / "journal.log").write_text("a\nb\n")
    (one.path / "run.json").write_text("{}")
    one.send("journal.log", "run.json")
    bring_together(other)
    assert (other.path / "journal.log").read_text() == "a\nb\n"
    assert (other.path / "run.json").exists()
    (other.path / "journal.log").write_text("a\nb\nc\n")
    bring_together(other)
    assert (other.path / "journal.log").read_text() == "a\nb\nc\n", "it was not yet sent"


def test_a_run_that_two_machines_went_on_with_is_an_error(bucket: Any, tmp_path: Path) -> None:
    one, other = machine(tmp_path / "one"), machine(tmp_path / "other")
    (one.path / "journal.log").write_text("a\nb\n")
    one.send("journal.log")
    (other.path / "journal.log").write_text("a\nc\n")
    with pytest.raises(ConfigError, match=r"also continued from this machine's copy, '.*night'"):
        bring_together(other)


@pytest.mark.parametrize(
    ("content", "left"),
    [("a\nb\n", "a\nb\n"), ("a\nhalf a li", "a\n"), ("half", ""), ("", "")],
)
def test_half_a_line_of_a_journal_is_taken_off(tmp_path: Path, content: str, left: str) -> None:
    path = tmp_path / "journal.log"
    path.write_text(content)
    (tmp_path / "journal.log.lock").symlink_to(path)
    mend_journal(path)
    assert path.read_text() == left
    assert not (tmp_path / "journal.log.lock").is_symlink()


def test_storage_that_does_not_take_the_run_is_one_line(
    object_store: Any, tiny_shards: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("EMOTION_CACHE", str(cache_folder))
    arguments = ["--data", str(tiny_shards), "--protocol", "speaker-kfold:2", "--name", "night"]
    arguments += ["--only", "action_units", "--runs-dir", "s3://nowhere/runs"]
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert lines[-1].startswith("error: Cannot write the run's folder 's3://nowhere/runs/night'")
