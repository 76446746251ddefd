"""Trials whose processes die, diverge or have too little memory, under either runner."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np

from ensembles.bank.posterior_bank import PosteriorBank
from tests.faults.injection import injection
from tests.runs.conftest import Launcher, Searched
from tests.runs.process import assert_same_entries, bank, happened, journal, words


def test_a_dead_process_is_replaced_and_three_deaths_fail_one_trial(
    launch_joint: Launcher, searched: Searched, tmp_path: Path
) -> None:
    once, thrice = tmp_path / "once", tmp_path / "thrice"
    env = injection(
        {"kind": "crash", "trial": "video-0000", "step": 8, "file": str(once)},
        {"kind": "crash", "trial": "audio-0000", "step": 2, "file": str(thrice), "times": 3},
    )
    command = launch_joint.search(
        name="wounded", trials=3, confirm_seeds=0, keep_weights="all", env=env
    )
    out = words(command.finish())
    assert (once.stat().st_size, thrice.stat().st_size) == (1, 3)
    assert "1 failed" in out
    assert "failed: audio-0000: its process died 3 times" in out
    run = tmp_path / "runs" / "wounded"
    assert journal(run)["audio-0000"]["state"] == "FAIL"
    assert (run / "logs" / "video-0000.log").read_text().count(", setup ") == 2, "two processes"
    healthy = {key: x for key, x in bank(searched.run).items() if key[0] == "video-0000"}
    ours = {key: x for key, x in bank(run).items() if key[0] == "video-0000"}
    assert len(ours) == 4
    assert_same_entries(ours, healthy)


def test_two_ray_train_workers_meet_every_fault(launch_joint: Launcher, tmp_path: Path) -> None:
    """Each in the second of two workers: a divergence, a death, too little memory; and one trial without."""
    file = tmp_path / "crashed"
    env = injection(
        {"kind": "nan", "trial": "audio-0000", "rank": 1, "step": 2, "file": f"{file}.nan"},
        {"kind": "crash", "trial": "video-0000", "rank": 1, "step": 8, "file": str(file)},
        {"kind": "memory", "trial": "early-0000", "rank": 1, "clips": 4, "file": f"{file}.memory"},
    )
    command = launch_joint.search(
        name="two", trials=4, workers_per_trial=2, confirm_seeds=0, keep_weights="all", env=env
    )
    out = words(command.finish())
    assert "runner: train" in command.err, "several workers need Ray Train"
    run = tmp_path / "runs" / "two"
    states = {trial: found["state"] for trial, found in journal(run).items()}
    assert (states.pop("audio-0000"), states.pop("early-0000")) == ("FAIL", "FAIL")
    assert set(states.values()) == {"COMPLETE"}, "the others go on"
    assert "failed: audio-0000: NonFiniteLossError: The loss of fold 1 is nan" in out
    assert "failed: early-0000: OutOfMemoryError" in out, "batches are halved for one worker alone"
    assert file.stat().st_size == 1, "one death"
    assert (run / "logs" / "video-0000.log").read_text().count(", setup ") == 2, "two groups"
    entries = bank(run)
    assert {trial for trial, percent in entries if percent == 100} == set(states)
    predicted = PosteriorBank.open(run / "bank").table.folds >= 0  # the others are test speakers
    for logits in entries.values():
        assert np.isfinite(logits[predicted]).all()
        assert np.isnan(logits[~predicted]).all()
    assert json.loads((run / "summary.json").read_text())["workers_per_trial"] == 2


def test_ctrl_c_ends_a_ray_train_trial_which_the_other_runner_finishes(
    launch_joint: Launcher, searched_by_train: Searched, tmp_path: Path
) -> None:
    file = tmp_path / "held"
    env = injection({"kind": "hold", "trial": "video-0000", "step": 8, "file": str(file)})
    options = {"trials": 3, "confirm_seeds": 0, "keep_weights": "all"}
    command = launch_joint.search(name="stopped", runner="train", env=env, **options)
    command.until(happened(file))
    command.send(signal.SIGINT)
    command.finish(130)
    run = tmp_path / "runs" / "stopped"
    states = {trial: found["state"] for trial, found in journal(run).items()}
    assert states == {"audio-0000": "COMPLETE", "video-0000": "RUNNING"}

    launch_joint.go_on(resume="stopped", runner="actor").finish()
    assert journal(run) == journal(searched_by_train.run)
    assert_same_entries(bank(run), bank(searched_by_train.run))
