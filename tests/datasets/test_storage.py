"""Folders that are kept in an object store, worked on here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datasets.storage import KeptFolder, is_url, working_copy


@pytest.fixture()
def bucket(object_store: Any) -> Any:
    """A client whose store has the bucket `kept`."""
    object_store.create_bucket(Bucket="kept")
    return object_store


@pytest.fixture()
def one(bucket: Any, tmp_path: Path) -> KeptFolder:
    """The folder as one machine sees it."""
    return KeptFolder.at("s3://kept/runs/night", tmp_path / "one")


@pytest.fixture()
def other(bucket: Any, tmp_path: Path) -> KeptFolder:
    """As another machine sees it."""
    return KeptFolder.at("s3://kept/runs/night/", tmp_path / "other")


def write(kept: KeptFolder, name: str, text: str) -> None:
    path = kept.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_one_machine_sends_another_gets(one: KeptFolder, other: KeptFolder) -> None:
    write(one, "bank/a.npz", "posteriors")
    write(one, "weights/a/fold-0", "network")
    one.send("bank/a.npz", "weights")
    assert other.sizes() == {"bank/a.npz": 10, "weights/a/fold-0": 7}
    assert other.names() == ["bank", "weights"]
    other.pull(["bank"])
    assert (other.path / "bank/a.npz").read_text() == "posteriors"
    assert not (other.path / "weights").exists()
    assert other.fetch("weights/a/fold-0")
    assert (other.path / "weights/a/fold-0").read_text() == "network"


def test_what_changed_is_pulled_again(one: KeptFolder, other: KeptFolder) -> None:
    for text in ("short", "somewhat longer"):
        write(one, "run.json", text)
        one.send("run.json")
        other.pull(["run.json"])
        assert (other.path / "run.json").read_text() == text


def test_what_is_not_there_is_nothing(one: KeptFolder) -> None:
    assert not one.fetch("checkpoints/a.pt")
    assert one.sizes() == {} and one.sizes("bank") == {} and one.names() == []
    one.remove("checkpoints")
    one.pull(["bank"])


def test_removing_removes_there_too(one: KeptFolder, other: KeptFolder) -> None:
    for name in ("checkpoints/a.pt", "weights/a/fold-0", "weights/b/fold-0"):
        write(one, name, "x")
        one.send(name)
    one.remove("checkpoints/a.pt")
    one.remove("weights/a")
    assert other.sizes() == {"weights/b/fold-0": 1}
    assert not (one.path / "weights/a").exists()


def test_a_missing_bucket_is_told_at_once(object_store: Any, tmp_path: Path) -> None:
    kept = KeptFolder.at("s3://nowhere/runs/night", tmp_path)
    write(kept, "run.json", "{}")
    with pytest.raises(FileNotFoundError, match=r"bucket"):
        kept.send("run.json")


def test_a_folder_of_this_machine_is_its_own_truth(tmp_path: Path) -> None:
    kept = KeptFolder.at(tmp_path / "night", tmp_path / "cache")
    write(kept, "bank/a.npz", "x")
    kept.send("bank")
    kept.pull(["bank"])
    assert kept.path == tmp_path / "night" and kept.url is None
    assert kept.fetch("bank/a.npz") and not kept.fetch("bank/b.npz")
    assert kept.sizes() == {"bank/a.npz": 1} and kept.names() == ["bank"]
    kept.remove("bank")
    assert kept.sizes() == {}


def test_runs_behind_different_urls_have_working_copies_of_their_own(tmp_path: Path) -> None:
    copies = {
        working_copy(url, tmp_path)
        for url in ("s3://a/runs/x", "s3://a/runs/y", "s3://b/runs/x", "gs://a/runs/x")
    }
    assert len(copies) == 4
    assert is_url("s3://a/runs") and not is_url("/runs/x")
