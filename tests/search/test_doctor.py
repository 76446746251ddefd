"""The doctor names what is wrong, and what to do about it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets.sharding.index import ShardEntry, ShardIndex
from search.config import SearchConfig
from search.doctor import (
    NodeFacts,
    check_node,
    check_reach,
    check_same,
    check_shards,
    node_facts,
    quick_findings,
)


@pytest.fixture()
def facts(tmp_path: Path) -> NodeFacts:
    """Those of this machine, whatever else runs on it, with room and memory enough."""
    found = node_facts(None, str(tmp_path / "runs"), str(tmp_path / "cache"), "probe")
    assert found.memory_gb > 0
    assert found.disk_gb >= 0
    return replace(found, memory_gb=16.0, disk_gb=100.0)


def bad(findings: Any) -> list[tuple[str, str]]:
    return [(f.level, f.what) for f in findings if f.level != "ok"]


def test_this_machine_is_fit_for_a_search(facts: NodeFacts, tmp_path: Path) -> None:
    assert bad(check_node(replace(facts, gpu_devices=0, gpus=[]))) == []
    assert bad(check_reach(facts, None, "runs")) == []
    assert len(list((tmp_path / "runs").glob("probe-*"))) == 1
    assert facts.versions["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("changes", "level", "what"),
    [
        ({"memory_gb": 0.5}, "warning", "0.5 GiB of memory are free"),
        ({"disk_gb": 0.1}, "warning", "0.1 GiB of disk are free for the cache"),
        ({"gpu_devices": 2, "gpus": [], "cuda": None}, "error", "a GPU, but torch is a CPU build"),
        ({"gpu_devices": 1, "gpus": [], "cuda": "13.0"}, "error", "torch (CUDA 13.0) cannot use"),
        ({"versions": {"torch": "missing"}}, "error", "torch is not installed"),
    ],
)
def test_what_a_host_lacks_is_named(
    facts: NodeFacts, changes: dict[str, Any], level: str, what: str
) -> None:
    ((found_level, found),) = bad(check_node(replace(facts, **changes)))
    assert found_level == level
    assert what in found


def test_hosts_that_differ_are_named(facts: NodeFacts) -> None:
    other = replace(facts, host="other", versions={**facts.versions, "ray": "2.1"})
    ((level, what),) = bad(check_same([facts, other]))
    assert level == "error"
    assert what == f"ray is {facts.versions['ray']} on {facts.host} and 2.1 on other"
    assert bad(check_same([facts, facts])) == []


def test_shards_that_are_other_ones_or_cannot_be_read_are_said(
    facts: NodeFacts, tiny_index: ShardIndex
) -> None:
    well = replace(facts, checksum=tiny_index.checksum)
    assert bad(check_reach(well, tiny_index, "runs")) == []
    for changes, what in (
        ({"checksum": "0" * 64}, "shards: it reads other shards than here"),
        (
            {"checksum": None, "index_error": "No index.json in 'x'."},
            "shards: No index.json in 'x'.",
        ),
        ({"shard": "cut off"}, "shards cannot be read: cut off"),
        ({"runs": "Read-only file system"}, "the runs' folder 'runs' cannot be written: Read-only"),
    ):
        ((level, found),) = bad(check_reach(replace(well, **changes), tiny_index, "runs"))
        assert level == "error"
        assert what in found


def test_shards_must_be_enough_and_even(tiny_index: ShardIndex) -> None:
    def shards(*sizes: int) -> ShardIndex:
        entries = tuple(ShardEntry(f"{n}.tar", size, 1, "") for n, size in enumerate(sizes))
        return replace(tiny_index, shards=entries)

    assert bad(check_shards(shards(9, 10), 2)) == []
    assert bad(check_shards(shards(2, 10), 1)) == []
    ((level, what),) = bad(check_shards(shards(2, 10), 2))
    assert (level, "unbalanced" in what) == ("warning", True)
    ((level, what),) = bad(check_shards(shards(2, 10), 3))
    assert (level, "for 3 workers a trial" in what) == ("error", True)


def test_the_quick_checks_leave_nothing(tmp_path: Path) -> None:
    config = SearchConfig(runs_dir=str(tmp_path / "runs"), cache_dir=str(tmp_path))
    quick_findings(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    config = SearchConfig(runs_dir=str(tmp_path / "runs"), cache_dir=str(tmp_path))
    assert ("error", f"the runs' folder '{tmp_path}/runs'") in [
        (f.level, f.what[: len(f"the runs' folder '{tmp_path}/runs'")])
        for f in quick_findings(config)
    ]


def test_a_folder_that_not_even_root_may_write_is_an_error(tmp_path: Path) -> None:
    """Linux lets nobody make a folder in /proc."""
    config = SearchConfig(runs_dir="/proc/runs", cache_dir=str(tmp_path))
    (found,) = [f.what for f in quick_findings(config) if f.level == "error"]
    assert found.startswith("the runs' folder '/proc/runs' cannot be written: ")


def test_a_runs_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")
    config = SearchConfig(runs_dir=str(tmp_path / "runs"), cache_dir=str(tmp_path))
    assert [f.what for f in quick_findings(config) if f.level == "error"] == [
        f"the runs' folder '{tmp_path / 'runs'}' cannot be written: File exists"
    ]
