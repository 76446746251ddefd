"""Folders that are kept in an object store, worked on here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from datasets.storage.synced_folder import (
    KeptFolder,
    OutsideError,
    below,
    is_url,
    local_folder,
    working_copy,
)
from ensembles.export import main as export_main
from search.persistence.remote_mirror import bring_together


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


def test_a_name_that_leads_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    kept = KeptFolder(tmp_path, "memory://store/run")
    takers = (kept.fetch, kept.send, kept.remove, kept.sizes, lambda name: kept.pull([name]))
    for name in (
        "../evil",
        "a/../../evil",
        "/evil",
        "a\\..\\..\\evil",
        "\\evil",
        "C:evil",
        "evil\0",
    ):
        for take in (*takers, lambda name: below(tmp_path, name)):
            with pytest.raises(
                OutsideError, match=r"lists '.*evil.*', which lies outside its folder"
            ):
                take(name)


@pytest.mark.parametrize("name", ["", "a", "a/./b.tar", "a..b/..c", "ravdess:actor_01"])
def test_a_name_that_does_not_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    assert below(tmp_path, name) == tmp_path / name


@pytest.fixture()
def memory() -> Iterator[Any]:
    """An object store in this process, which takes every key as it is."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def take_weights(url: str, cache: Path) -> None:
    local_folder(url, cache)


def continue_run(url: str, cache: Path) -> None:
    bring_together(KeptFolder.at(url, cache))


def export_run(url: str, cache: Path) -> None:
    out = cache / "exported"
    assert export_main([url, "--out", str(out)]) == 2


@pytest.mark.parametrize(
    ("take", "key", "named"),
    [
        (take_weights, "../../evil", ".."),
        (take_weights, "sub/../../../evil", "sub/../../../evil"),
        (continue_run, "sub/../../../evil", "sub/../../../evil"),
        (continue_run, "{outside}/evil", "{outside}/evil"),
        (export_run, "../../evil", ".."),
        (export_run, "sub/../../../evil", "sub/../../../evil"),
    ],
)
def test_an_object_whose_name_leads_out_is_refused_and_written_nowhere(
    memory: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    take: Callable[[str, Path], None],
    key: str,
    named: str,
) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    key, named = key.format(outside=tmp_path), named.format(outside=tmp_path)
    for name in ("config.yaml", "journal.log", "sub/fine", key):
        memory.pipe_file(f"/store/run/{name}", b"x")
    try:
        take("memory://store/run", tmp_path / "cache")
        message = capsys.readouterr().err.strip()
    except OutsideError as error:
        message = str(error)
    assert not list(tmp_path.rglob("evil"))
    assert f"'memory://store/run' lists '{named}', which lies outside its folder" in message
    assert "\n" not in message
