from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets.clips import DataError, Skipped
from datasets.sharding.index import ShardEntry, ShardIndex, read_index, write_index

MakeIndex = Callable[..., ShardIndex]
ROWS = [("c1", "ann", "glad"), ("c2", "ann", "sad"), ("c3", "bob", "sad"), ("c4", "bob", "odd")]


def edit(index: ShardIndex, change: Callable[[dict[str, Any]], object]) -> None:
    path = Path(index.root) / "index.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_an_index_survives_the_disk(make_index: MakeIndex, tmp_path: Path) -> None:
    written = replace(
        make_index(ROWS),
        skipped=(Skipped("c9", "is empty"),),
        feature_names=("AU01",),
        frame_size=(48, 64),
    )
    write_index(written, tmp_path)
    read = read_index(tmp_path)
    assert len(read.checksum) == 64
    assert replace(read, root=written.root, checksum="") == written
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_another_content_has_another_checksum(make_index: MakeIndex, tmp_path: Path) -> None:
    write_index(make_index(ROWS), tmp_path)
    first = read_index(tmp_path).checksum
    write_index(make_index(ROWS), tmp_path)
    assert read_index(tmp_path).checksum == first
    write_index(make_index(ROWS[:3]), tmp_path)
    assert read_index(tmp_path).checksum != first


def test_the_summary_counts(make_index: MakeIndex) -> None:
    summary = make_index(ROWS, same_sound=("c1", "c3")).summary()
    assert summary == {
        "clips": 4,
        "seconds_of_audio": 0.2,  # 4 × 800 samples at 16 kHz
        "per_class": {"glad": 1, "sad": 2, "odd": 1},
        "per_speaker": {"ann": 2, "bob": 2},
        "with": {"audio": 4, "video": 0, "features": 0, "feature_sequence": 0},
        "saliency_maps": False,
        "exact_duplicates": [["c1", "c3"]],
    }


def test_clips_without_sound_are_no_duplicates(make_index: MakeIndex) -> None:
    index = make_index(ROWS, same_sound=("c1", "c2"))
    silent = tuple(replace(entry, samples=0, frames=5) for entry in index.clips)
    assert replace(index, clips=silent).duplicates() == []


def test_restricting_keeps_the_classes_in_the_order_asked(make_index: MakeIndex) -> None:
    index = make_index(ROWS).restrict(("sad", "glad"))
    assert index.labels == ("sad", "glad")
    assert [entry.clip for entry in index.clips] == ["c1", "c2", "c3"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("glad", "mad"), r"Unknown class 'mad'\. Known: glad, odd, sad"),
        (("glad",), "classes must name two or more different classes, got glad"),
        (("glad", "sad", "glad"), "two or more different classes, got glad,sad,glad"),
    ],
)
def test_senseless_restrictions_are_refused(
    make_index: MakeIndex, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_index(ROWS).restrict(classes)


def test_a_folder_without_an_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"No index\.json in '.*'\. Make shards with: python -m datasets\.prepare"
    ):
        read_index(tmp_path / "nowhere")


def test_an_unknown_kind_of_url_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"Cannot read 'gopher://host/shards/index\.json'"):
        read_index("gopher://host/shards")


def test_shards_can_be_read_by_url(small_index: ShardIndex) -> None:
    assert read_index(f"file://{small_index.root}/").checksum == small_index.checksum


def test_another_format_version_is_refused(small_index: ShardIndex) -> None:
    edit(small_index, lambda document: document.update(format_version=2))
    with pytest.raises(
        DataError, match=r"shards of format version 2; this program reads version 1\. Prepare"
    ):
        read_index(small_index.root)


DAMAGE: list[Callable[[dict[str, Any]], object]] = [
    lambda document: document.pop("labels"),
    lambda document: document.update(clips=3),
    lambda document: document["clips"][0].pop("speaker"),
    lambda document: document["clips"][0].update(pitch=3),
    lambda document: document.update(frame_size=[60]),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_refused(
    small_index: ShardIndex, damage: Callable[[dict[str, Any]], object]
) -> None:
    edit(small_index, damage)
    with pytest.raises(DataError, match=r"index\.json' is damaged: .* Prepare the corpus again"):
        read_index(small_index.root)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00"])
def test_an_index_that_is_no_json_document_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.json' is damaged"):
        read_index(tmp_path)


def test_attributes_may_have_any_name(make_index: MakeIndex, tmp_path: Path) -> None:
    index = make_index(ROWS)
    odd = replace(index.clips[0], attributes={"content_hash": "x", "audio_hash": "y"})
    write_index(replace(index, clips=(odd, *index.clips[1:])), tmp_path)
    assert read_index(tmp_path).clips[0] == odd


def test_an_index_as_it_was_written_before_is_read(small_index: ShardIndex) -> None:
    path = Path(small_index.root) / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    assert read_index(small_index.root).clips == small_index.clips


def test_a_clip_is_a_line(small_index: ShardIndex) -> None:
    lines = (Path(small_index.root) / "index.json").read_text().splitlines()
    (line,) = (line for line in lines if '"bob-sad-1"' in line)
    assert json.loads(line.strip().rstrip(","))["speaker"] == "bob"


@pytest.mark.parametrize("name", ["../other/shard.tar", "a/../../shard.tar", "/etc/passwd", "C:x"])
def test_shards_that_lie_outside_the_folder_are_refused(
    make_index: MakeIndex, tmp_path: Path, name: str
) -> None:
    shard = ShardEntry(name="shard.tar", clips=4, bytes=1, sha256="0")
    written = replace(make_index(ROWS), root=str(tmp_path), shards=(shard,))
    write_index(written, tmp_path)
    assert read_index(tmp_path).shards == (shard,)
    edit(written, lambda document: document["shards"][0].update(name=name))
    with pytest.raises(DataError, match=rf"index\.json' lists '{name}', which lies outside"):
        read_index(tmp_path)
