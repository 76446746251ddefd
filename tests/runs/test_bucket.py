"""Runs that are kept in an object store: killed on one machine, finished on another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from datasets.storage.synced_folder import KeptFolder
from tests.faults.injection import injection
from tests.runs.conftest import Launcher, Searched
from tests.runs.process import happened, journal


@pytest.mark.parametrize(("first", "then"), [("actor", "train"), ("train", "actor")])
def test_a_run_killed_on_one_machine_goes_on_on_another(
    object_store: Any, launch_joint: Launcher, searched_by_train: Searched, tmp_path: Path,
    first: str, then: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    object_store.create_bucket(Bucket="kept")
    where, name = {"runs_dir": "s3://kept/runs"}, f"begun-by-{first}"
    file = tmp_path / "held"
    env = injection({"kind": "hold", "trial": "video-0000", "step": 8, "file": str(file)})
    command = launch_joint.search(
        name=name, trials=3, confirm_seeds=0, keep_weights="all", runner=first, env=env, **where
    )
    command.until(happened(file))
    listed = object_store.list_objects_v2(Bucket="kept", Prefix=f"runs/{name}/bank/")
    sent = {entry["Key"].rpartition("/")[2] for entry in listed["Contents"]}
    assert {"audio-0000@100.npz", "video-0000@025.npz"} <= sent, "sent before it was reported"
    command.kill()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {"EMOTION_CACHE": str(elsewhere)}
    launch_joint.go_on(resume=name, runner=then, env=env, **where).finish()
    copy = next((elsewhere / "kept").rglob(name))
    assert journal(copy) == journal(searched_by_train.run)
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "third"))
    kept = KeptFolder.at(f"s3://kept/runs/{name}", tmp_path / "third")
    assert not [name for name in kept.sizes() if name.startswith("checkpoints/")]
    ours, expected = (
        json.loads((r / "summary.json").read_text()) for r in (copy, searched_by_train.run)
    )
    assert ours["headline"] == expected["headline"]
    assert ours["weights"]["experts"] == expected["weights"]["experts"]

    from ensembles.export import main

    shutil.rmtree(elsewhere)
    assert main([f"s3://kept/runs/{name}", "--out", str(tmp_path / "exported")]) == 0
