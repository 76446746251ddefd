from __future__ import annotations

import io
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset as wds
from torch.utils.data import DataLoader

from datasets.clips import Corpus, DataError
from datasets.media.audio import read_audio
from datasets.sharding.index import ShardIndex, read_index, write_index
from datasets.sharding.stream import content_hashes, decode_clip, encode_clip, stream_clips

ChangeMember = Callable[[Path, str, Callable[[bytes], bytes]], None]


def names(clips: Iterable[dict[str, object]]) -> list[str]:
    return [str(sample["clip"]) for sample in clips]


def every(index: ShardIndex) -> list[str]:
    return sorted(entry.clip for entry in index.clips)


def clips_of(index: ShardIndex, shard: str) -> set[str]:
    return {entry.clip for entry in index.clips if entry.shard == shard}


class Culprits:
    """A handler that skips what is corrupt and remembers it."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def __call__(self, culprit: str, error: Exception) -> None:
        self.found.append((culprit, str(error)))


def test_clips_come_with_the_sound_that_went_in(
    small_corpus: Corpus, small_index: ShardIndex
) -> None:
    by_name = {record.clip: record for record in small_corpus.clips}
    count = 0
    for sample in stream_clips(small_index):
        record = by_name[sample["clip"]]
        assert record.audio is not None
        np.testing.assert_array_equal(sample["audio"], read_audio(record.audio, 16_000))
        np.testing.assert_array_equal(sample["features"], record.features)
        assert sample["audio"].dtype == np.int16
        assert sample["features"].dtype == np.float32
        assert "video" not in sample
        count += 1
    assert count == 12


def test_every_pass_visits_every_clip_once(small_index: ShardIndex) -> None:
    stream = stream_clips(small_index)
    assert sorted(names(stream)) == every(small_index)
    assert sorted(names(stream)) == every(small_index)


# Four workers for three shards: one has nothing to do.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_workers_visit_every_clip_once_together(small_index: ShardIndex, workers: int) -> None:
    loader = DataLoader(stream_clips(small_index), batch_size=None, num_workers=workers)
    assert sorted(names(loader)) == every(small_index)


@pytest.mark.parametrize("workers", [0, 2])
def test_nodes_visit_every_clip_once_together(
    small_index: ShardIndex, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    visited: list[list[str]] = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        loader = DataLoader(stream_clips(small_index), batch_size=None, num_workers=workers)
        visited.append(names(loader))
    assert sorted(visited[0] + visited[1]) == every(small_index)
    assert visited[0] and visited[1]


def test_the_stream_can_be_sent_to_spawned_workers(small_index: ShardIndex) -> None:
    for training in (False, True):
        stream = stream_clips(small_index, training=training)
        sent = pickle.loads(pickle.dumps(stream))
        assert names(islice(sent, 5)) == names(islice(stream, 5))


def test_training_gives_exactly_the_clips_asked_for(small_index: ShardIndex) -> None:
    # More than the corpus holds, and no multiple of a shard.
    assert len(list(stream_clips(small_index, training=True).with_epoch(31))) == 31
    assert len(list(stream_clips(small_index, training=True).with_epoch(3))) == 3


def test_training_comes_round_to_every_clip(small_index: ShardIndex) -> None:
    seen = names(stream_clips(small_index, training=True).with_epoch(200))
    assert set(seen) == set(every(small_index))


def test_training_depends_on_the_seed_alone(small_index: ShardIndex) -> None:
    def draw(seed: int) -> list[str]:
        return names(stream_clips(small_index, training=True, seed=seed).with_epoch(24))

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_the_seed_decides_which_shards_are_drawn(small_index: ShardIndex) -> None:
    def draw(seed: int) -> list[str]:
        stream = stream_clips(small_index, training=True, seed=seed, shuffle=1)
        return names(stream.with_epoch(48))

    assert Counter(draw(0)) == Counter(draw(0))
    assert Counter(draw(0)) != Counter(draw(1))


def test_training_draws_anew_every_epoch(small_index: ShardIndex) -> None:
    stream = stream_clips(small_index, training=True, seed=0).with_epoch(24)
    assert names(stream) != names(stream)


def test_training_mixes_the_shards(small_index: ShardIndex) -> None:
    shard_of = {entry.clip: entry.shard for entry in small_index.clips}
    order = [shard_of[c] for c in names(stream_clips(small_index, training=True).with_epoch(48))]
    changes = sum(one != other for one, other in pairwise(order))
    assert changes > 48 / 4  # unshuffled, the shard could change every four clips at most


def test_training_workers_and_nodes_draw_differently(
    small_index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    drawn = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        drawn.append(names(stream_clips(small_index, training=True).with_epoch(24)))
    assert drawn[0] != drawn[1]


def test_a_truncated_shard_is_named(small_index: ShardIndex) -> None:
    shard = Path(small_index.root) / "shard-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"fLaC", len(content) // 2) + 100])
    with pytest.raises(DataError, match=r"Corrupt shard '.*/shard-00001\.tar': .*--skip-corrupt"):
        list(stream_clips(small_index))


def test_the_rest_arrives_when_a_truncated_shard_is_skipped(small_index: ShardIndex) -> None:
    shard = Path(small_index.root) / "shard-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"fLaC", len(content) // 2) + 100])
    culprits = Culprits()
    arrived = names(stream_clips(small_index, handler=culprits))
    ((culprit, _),) = culprits.found
    assert culprit == f"shard '{shard}'"
    others = set(every(small_index)) - clips_of(small_index, "shard-00001.tar")
    assert others < set(arrived) < set(every(small_index))
    assert Counter(arrived).most_common(1)[0][1] == 1


def test_a_missing_shard_is_named(small_index: ShardIndex) -> None:
    (Path(small_index.root) / "shard-00002.tar").unlink()
    with pytest.raises(DataError, match=r"Corrupt shard '.*/shard-00002\.tar': .*No such file"):
        list(stream_clips(small_index))
    arrived = set(names(stream_clips(small_index, handler=Culprits())))
    assert arrived == set(every(small_index)) - clips_of(small_index, "shard-00002.tar")


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000, b"\x1f\x8b" + bytes(2000)])
def test_a_shard_that_is_no_tar_is_named(small_index: ShardIndex, content: bytes) -> None:
    (Path(small_index.root) / "shard-00000.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"Corrupt shard '.*/shard-00000\.tar'"):
        list(stream_clips(small_index))


DAMAGE: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("flac", lambda content: content[:40] + bytes(200) + content[240:]),
    ("flac", lambda content: content[: len(content) // 2]),
    ("flac", lambda content: b"riff"),
    ("features.npy", lambda content: content[:-4]),
    ("features.npy", lambda content: b"PK\x03\x04" + content),
    ("features.npy", lambda content: b""),
    ("json", lambda content: b"{"),
    ("json", lambda content: b"{}"),
    ("json", lambda content: b"[1]"),
]


@pytest.mark.parametrize(("member", "damage"), DAMAGE)
def test_a_corrupt_clip_is_named_with_its_shard(
    small_index: ShardIndex,
    change_member: ChangeMember,
    member: str,
    damage: Callable[[bytes], bytes],
) -> None:
    shard = Path(small_index.root) / "shard-00001.tar"
    change_member(shard, f"0000100002.{member}", damage)
    with pytest.raises(
        DataError, match=r"Corrupt clip 0000100002 in shard '.*/shard-00001\.tar': "
    ):
        list(stream_clips(small_index))
    culprits = Culprits()
    arrived = names(stream_clips(small_index, handler=culprits))
    assert [culprit for culprit, _ in culprits.found] == [f"clip 0000100002 in shard '{shard}'"]
    assert len(set(arrived)) == len(arrived) == 11


class Payload:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickled_object_in_a_shard_is_never_run(
    small_index: ShardIndex, change_member: ChangeMember, tmp_path: Path
) -> None:
    harmed = tmp_path / "harmed"
    array = np.empty(1, object)
    array[0] = Payload(harmed)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True)
    assert harmed.exists()  # the payload works where pickles are allowed
    harmed.unlink()
    shard = Path(small_index.root) / "shard-00000.tar"
    for planted in (buffer.getvalue(), pickle.dumps(Payload(harmed))):
        change_member(shard, "0000000001.features.npy", lambda _, new=planted: new)  # type: ignore[misc]
        with pytest.raises(DataError, match=r"Corrupt clip 0000000001 in shard '.*shard-00000"):
            list(stream_clips(small_index))
        assert len(list(stream_clips(small_index, handler=Culprits()))) == 11
        assert not harmed.exists()


@pytest.mark.parametrize("place", ["shard", "root"])
def test_a_pipe_in_an_index_runs_no_command(
    small_index: ShardIndex, tmp_path: Path, place: str
) -> None:
    harmed = tmp_path / "harmed"
    command = f"pipe:touch {harmed}; true "
    if place == "shard":
        planted = tuple(replace(shard, name=command) for shard in small_index.shards)
        write_index(replace(small_index, shards=planted), Path(small_index.root))
        index = read_index(small_index.root)
    else:
        index = replace(small_index, root=command)
    for training in (False, True):
        with pytest.raises(DataError, match=r"Corrupt shard '.*pipe:touch"):
            list(islice(stream_clips(index, training=training), 1))
    assert not harmed.exists()


def test_the_planted_pipe_would_run_in_webdataset_itself(tmp_path: Path) -> None:
    # What the test above guards against: without our own opener, the command runs.
    with pytest.raises(tarfile.ReadError, match="empty file"):
        list(wds.WebDataset(f"pipe:touch {tmp_path}/harmed", shardshuffle=False))
    assert (tmp_path / "harmed").exists()


def test_encoding_and_decoding_are_inverse() -> None:
    generator = np.random.default_rng(0)
    sample = {
        "clip": "Ünïcode / name",
        "audio": generator.integers(-32768, 32768, 500).astype(np.int16),
        "video": generator.integers(0, 256, (2, 4, 6, 3)).astype(np.uint8),
        "features": generator.normal(size=3).astype(np.float32),
    }
    decoded = decode_clip(encode_clip("key", sample, 16_000))
    assert decoded.pop("clip") == "Ünïcode / name"
    assert set(decoded) == {"audio", "video", "features"}
    for kind, values in decoded.items():
        np.testing.assert_array_equal(values, sample[kind])
        assert values.dtype == np.asarray(sample[kind]).dtype


def test_the_hashes_tell_content_from_sound() -> None:
    sound, other = np.arange(5, dtype=np.int16), np.arange(1, 6, dtype=np.int16)
    features = np.ones(2, np.float32)
    alone = content_hashes({"audio": sound})
    with_features = content_hashes({"audio": sound, "features": features})
    assert alone[0] == alone[1] == with_features[1]
    assert with_features[0] != alone[0]
    assert content_hashes({"audio": other})[1] != alone[1]


def test_sound_in_a_shard_is_plain_flac(small_index: ShardIndex) -> None:
    member = next(iter(wds.WebDataset(f"{small_index.root}/shard-00000.tar", shardshuffle=False)))
    samples, rate_hz = soundfile.read(io.BytesIO(member["flac"]), dtype="int16")
    assert (len(samples), rate_hz) == (800, 16_000)
