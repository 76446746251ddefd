"""`--runner train`: Ray Train workers around the same stepper."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
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
    arguments = ["--runner", "train", "--workers", 500]
    code, err = _search(launch, [*small_search, *arguments])
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "500 trials of 1 workers would take 500 CPUs" in lines[0]


def test_workers_listen_where_the_cluster_knows_their_host() -> None:
    code = """
import os, ray
hook = {"worker_process_setup_hook": "search.network.use_cluster_interface"}
ray.init(address="local", num_cpus=1, include_dashboard=False, runtime_env=hook, log_to_driver=False)
where = ray.remote(lambda: (os.environ["GLOO_SOCKET_IFNAME"], ray.util.get_node_ip_address()))
print(*ray.get(where.remote()))
"""
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    interface, address = found.stdout.split()
    assert address in [a.address for a in psutil.net_if_addrs()[interface]]
