"""`--runner train`: Ray Train workers around the same stepper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensembles.bank import PosteriorBank

pytestmark = pytest.mark.slow


def _bank(run: Path) -> dict[tuple[str, int], Any]:
    entries = PosteriorBank.open(run / "bank").read()
    return {(entry.trial, entry.percent): entry.logits for entry in entries}


def _search(launch: Any, arguments: list[object]) -> tuple[int, str]:
    process = launch(*arguments)
    _, err = process.communicate(timeout=400)
    return process.returncode, err


def test_both_runners_give_the_same_numbers_for_the_same_seed(
    launch: Any, small_search: list[object], tmp_path: Path
) -> None:
    short = [*small_search, "--only", "action_units", "--trials", 2]
    for runner in ("actor", "train"):
        code, err = _search(launch, [*short, "--runner", runner, "--name", runner])
        assert code == 0, err
    actor, train = (_bank(tmp_path / "runs" / name) for name in ("actor", "train"))
    assert actor.keys() == train.keys()
    for key, logits in actor.items():
        np.testing.assert_array_equal(logits, train[key])


def test_two_workers_train_one_trial_together(
    launch: Any, small_search: list[object], tmp_path: Path
) -> None:
    arguments = ["--only", "action_units", "--trials", 1, "--workers-per-trial", 2]
    code, err = _search(launch, [*small_search, *arguments, "--name", "two"])
    assert code == 0, err
    assert "runner: train" in err  # auto: several workers need Ray Train
    for logits in _bank(tmp_path / "runs" / "two").values():
        assert np.isfinite(logits).all()


def test_more_workers_than_there_are_cores_is_said_at_once(
    launch: Any, small_search: list[object]
) -> None:
    arguments = ["--runner", "train", "--workers-per-trial", 500]
    code, err = _search(launch, [*small_search, *arguments])
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "A trial of 500 workers needs 500 CPUs" in lines[0]
