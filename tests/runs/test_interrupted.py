"""Runs that are killed or interrupted at planted moments, and go on as if they had not been."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from tests.faults.injection import injection
from tests.runs.conftest import Launcher, Searched
from tests.runs.process import assert_same_entries, bank, happened, journal, words


def held(tmp_path: Path, trial: str, step: int) -> tuple[dict[str, str], Path]:
    """The environment in which a trial waits before this step, and the file that then exists."""
    file = tmp_path / f"{trial}-{step}"
    return injection({"kind": "hold", "trial": trial, "step": step, "file": str(file)}), file


def ended(run: Path) -> dict[str, Any]:
    return {t: found for t, found in journal(run).items() if found["state"] != "RUNNING"}


def test_a_run_killed_at_several_moments_ends_as_the_undisturbed_one(
    launch_joint: Launcher, searched: Searched, tmp_path: Path
) -> None:
    """Before the first rung; when the bank has a rung that the journal does not know; among the fresh seeds."""
    run = tmp_path / "runs" / "killed"
    fresh = sorted(trial for trial, _ in bank(searched.run) if trial.endswith("+seed1003"))
    finished: dict[str, Any] = {}
    for trial, moment in (
        ("audio-0000", {"kind": "hold", "step": 2}),
        ("early-0000", {"kind": "hold written", "percent": 50}),
        (fresh[1], {"kind": "hold", "step": 3}),
    ):
        file = tmp_path / trial
        env = injection({**moment, "trial": trial, "file": str(file)})
        first = launch_joint.search if trial == "audio-0000" else launch_joint.go_on
        command = first(**{"name" if first == launch_joint.search else "resume": "killed"}, env=env)
        command.until(happened(file))
        command.kill()
        now = ended(run)
        assert finished.items() <= now.items(), "a finished trial was lost or repeated"
        finished = now
    assert len(finished) == 6, "the fresh seeds come when all trials have ended"
    launch_joint.go_on(resume="killed").finish()

    assert journal(run) == journal(searched.run)
    assert_same_entries(bank(run), bank(searched.run))
    ours, expected = (json.loads((r / "summary.json").read_text()) for r in (run, searched.run))
    for what in ("headline", "confirmed", "test_speakers"):
        assert ours[what] == expected[what]


def test_signals_leave_a_run_that_can_be_continued(launch: Launcher, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "stopped"
    env, file = held(tmp_path, "audio-0000", 2)
    command = launch.search(name="stopped", env=env)
    command.until(happened(file))
    command.send(signal.SIGINT)
    command.finish(130)
    assert "fused" not in command.out, "nothing to report yet"
    assert "--resume stopped" in command.err

    env, file = held(tmp_path, "audio-0000", 3)
    command = launch.go_on(resume="stopped", env=env)
    command.until(happened(file))
    command.send(signal.SIGINT)
    command.until(lambda: "Stopping: what runs is kept" in command.err)
    command.send(signal.SIGINT)
    command.finish(130)  # a second Ctrl-C leaves at once
    assert "--resume stopped" in command.err

    env, file = held(tmp_path, "early-0001", 2)
    command = launch.go_on(resume="stopped", env=env)
    command.until(happened(file))
    command.send(signal.SIGTERM)  # as a host that is taken away sends it
    assert "fused" in command.finish(130), "what has finished is reported"
    assert "Stopping: what runs is kept" in command.err
    assert "--resume stopped" in command.err
    assert len(json.loads((run / "summary.json").read_text())["experts"]) >= 3

    out = launch.go_on(resume="stopped").finish()
    assert "6 trials finished" in words(out)
    states = [trial["state"] for trial in journal(run).values()]
    assert len(states) == 6
    assert "RUNNING" not in states
    assert not list((run / "checkpoints").glob("*")), "of trials that have ended"
