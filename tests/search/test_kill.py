"""A run that is killed anywhere continues as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from ensembles.bank import PosteriorBank
from search.sampler import open_journal


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for the end, and says what was printed if it was not a good one."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def kill_when(process: subprocess.Popen[str], run: Path, entries: int, delay: float) -> None:
    """kill -9 on the process group, shortly after the bank holds so many entries."""
    deadline = time.monotonic() + 120
    while len(list((run / "bank").glob("*.npz"))) < entries:
        assert process.poll() is None, (
            f"ended before it could be killed: {process.stderr.read() if process.stderr else ''}"
        )
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def journal(run: Path) -> list[dict[str, Any]]:
    """Every trial of every modality, as the journal has it."""
    storage = open_journal(run / "journal.log")
    trials = []
    there = {study.study_name for study in storage.get_all_studies()}
    for modality in [m for m in ("audio", "video", "early") if m in there]:
        study = optuna.load_study(study_name=modality, storage=storage)
        for trial in study.get_trials():
            if trial.state != optuna.trial.TrialState.WAITING:
                trials.append(
                    {
                        "trial": f"{modality}-{trial.number}",
                        "params": trial.params,
                        "state": trial.state.name,
                        "values": trial.values,
                        "rungs": trial.intermediate_values,
                    }
                )
    return trials


@pytest.mark.slow()
def test_a_run_killed_at_several_moments_ends_as_the_uninterrupted_one(
    launch: Any, small_search: list[object], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    finish(launch(*small_search, "--name", "whole"))
    expected = journal(runs / "whole")
    assert [t["state"] for t in expected].count("COMPLETE") >= 3

    process = launch(*small_search, "--name", "killed")
    finished: dict[str, Any] = {}
    for entries, delay in ((1, 0.0), (7, 0.03), (14, 0.1), (23, 0.0)):
        kill_when(process, runs / "killed", entries, delay)
        now = {
            t["trial"]: t for t in journal(runs / "killed") if t["state"] in {"COMPLETE", "PRUNED"}
        }
        assert finished.items() <= now.items(), "a finished trial was lost or repeated"
        finished = now
        process = launch("--resume", "killed", "--runs-dir", runs)
    finish(process)

    assert journal(runs / "killed") == expected
    banks = [PosteriorBank.open(runs / name / "bank") for name in ("whole", "killed")]
    whole, killed = (bank.read() for bank in banks)
    assert banks[1].damaged == []
    assert [(e.trial, e.percent) for e in whole] == [(e.trial, e.percent) for e in killed]
    for one, other in zip(whole, killed, strict=True):
        assert (one.logits == other.logits).all(), f"{one.trial} trained otherwise after the kill"


def wait_for(process: subprocess.Popen[str], run: Path, pattern: str, count: int) -> None:
    """Until the bank holds so many entries of that name."""
    deadline = time.monotonic() + 120
    while len(list((run / "bank").glob(pattern))) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow()
def test_ctrl_c_leaves_a_run_that_can_be_continued(
    launch: Any, small_search: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "stopped"
    process = launch(*small_search, "--name", "stopped")
    wait_for(process, run, "*.npz", 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, "nothing to report yet"
    assert "--resume stopped" in err
    assert "Traceback" not in err

    process = launch("--resume", "stopped", "--runs-dir", tmp_path / "runs")
    wait_for(process, run, "*@100.npz", 4)  # of the last one the journal may not know yet
    process.send_signal(signal.SIGTERM)  # as a host that is taken away sends it
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "fused" in out, "what has finished is reported"
    assert "Stopping: what runs is kept" in err
    assert "--resume stopped" in err
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["experts"]) >= 3

    out = finish(launch("--resume", "stopped", "--runs-dir", tmp_path / "runs"))
    assert "9 trials finished" in out or "stopped early" in out
    states = [t["state"] for t in journal(run)]
    assert len(states) == 9
    assert "RUNNING" not in states
    assert not list((run / "checkpoints").glob("*")), "of trials that have ended"


@pytest.mark.slow()
def test_a_second_ctrl_c_leaves_at_once(
    launch: Any, small_search: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "left"
    process = launch(*small_search, "--name", "left")
    wait_for(process, run, "*@100.npz", 1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "fused" not in out
    assert "--resume left" in err
    assert "Traceback" not in err


@pytest.mark.slow()
def test_a_finished_search_goes_on_with_more_trials_and_architectures(
    launch: Any, small_search: list[object], tmp_path: Path
) -> None:
    run, runs = tmp_path / "runs" / "grown", tmp_path / "runs"
    few = [*small_search, "--only", "action_units", "--trials", 3]
    finish(launch(*few, "--name", "grown"))
    before = journal(run)
    assert {t["trial"].partition("-")[0] for t in before} == {"video"}

    extend = ["--extend", "grown", "--runs-dir", runs, "--trials", 4]
    finish(launch(*extend, "--only", "functionals,concatenation"))
    after = journal(run)
    assert len(after) == 3 + 4
    assert [t for t in after if t["trial"].startswith("video")][:3] == before
    assert {t["trial"].partition("-")[0] for t in after} == {"audio", "video", "early"}
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["headline"]) >= {"audio", "video", "early", "fused"}

    finish(launch("--resume", "grown", "--runs-dir", runs))
    assert journal(run) == after, "there is nothing left to do"
