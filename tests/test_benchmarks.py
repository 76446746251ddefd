"""The scripts of benchmarks/ that run here in a small form."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A benchmark sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(printed: str) -> list[list[str]]:
    """The cells of the table's lines, without its head."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert all(line.count("|") == 5 for line in lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_tiny_form_measures_every_part_that_needs_no_ray(
    tiny_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tiny", "--data", str(tiny_shards), "--parts", "step,packed,frozen"]
    assert gpu.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "the tiny form" in printed
    table = rows(printed)
    steps, packed, frozen = len(gpu.TINY.stepped), len(gpu.TINY.at_once), len(gpu.TINY.frozen)
    assert len(table) == steps + packed + frozen
    assert all(float(ratio) > 0 for *_, ratio in table)


def test_a_part_that_lacks_its_package_is_skipped_and_one_that_fails_is_named(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(setting: gpu.Setting) -> Iterator[gpu.Row]:
        raise RuntimeError(f"no room on {setting.device}")

    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    monkeypatch.setitem(gpu.PARTS, "packed", fail)
    assert gpu.main(["--tiny", "--data", str(tiny_shards), "--parts", "runner"]) == 0
    assert "skipped: import of ray" in rows(capsys.readouterr().out)[0][1]
    assert gpu.main(["--tiny", "--data", str(tiny_shards), "--parts", "packed,runner"]) == 1
    failed, skipped = rows(capsys.readouterr().out)
    assert failed[1].startswith("failed: RuntimeError: no room on")
    assert skipped[1].startswith("skipped")


def test_no_part_starts_when_the_time_is_over(
    tiny_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--tiny", "--data", str(tiny_shards), "--minutes", "0"]) == 0
    assert [row[0] for row in rows(capsys.readouterr().out)] == list(gpu.PARTS)
