from __future__ import annotations

from pathlib import Path

import pytest

from datasets.storage.atomic import write_atomically, written_whole


def test_a_file_appears_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_is_not_there_before_its_block_ends(tmp_path: Path) -> None:
    with written_whole(tmp_path / "file") as file:
        file.write(b"half")
        file.flush()
        assert not (tmp_path / "file").exists()
        file.write(b" and half")
    assert (tmp_path / "file").read_bytes() == b"half and half"


def test_what_breaks_off_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
