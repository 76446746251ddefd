from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from datasets.clips import Corpus, DataError
from datasets.sharding import clip_cache
from datasets.sharding.clip_cache import Batch, open_cache
from datasets.sharding.index import ShardIndex, read_index
from datasets.sharding.stream import stream_clips
from datasets.sharding.writer import ShardSettings, prepare
from datasets.storage.synced_folder import default_cache_folder

ROOT = Path(__file__).parents[3]
ChangeMember = Callable[[Path, str, Callable[[bytes], bytes]], None]
# The clips of `small_corpus` take 12 × (800 × 2 + 2 × 4) = 19 296 bytes decoded.
SMALL_BYTES = 19_296


def garble(content: bytes) -> bytes:
    return content[:40] + bytes(200) + content[240:]


def clip_under(index: ShardIndex, shard: str, position: int) -> str:
    """The clip that a shard holds at a position."""
    one = replace(index, shards=tuple(s for s in index.shards if s.name == shard))
    return str([sample["clip"] for sample in stream_clips(one)][position])


def home_of(index: ShardIndex, folder: Path) -> Path:
    """The cache of a corpus."""
    (home,) = (path for path in folder.iterdir() if path.is_dir() and path.name in index.checksum)
    return home


def lengths_and_sums(batch: Batch) -> tuple[Tensor, Tensor]:
    """A derivation: the features, twice for clips whose first feature is even."""
    values = batch["features"]
    repeated = values[:, None, :].expand(-1, 2, -1)
    return repeated, 1 + (values[:, 0] % 2 == 0).long()


def test_a_batch_holds_what_decoding_gives(tiny_index: ShardIndex, tmp_path: Path) -> None:
    cache = open_cache(tiny_index, tmp_path)
    decoded = {sample["clip"]: sample for sample in stream_clips(tiny_index)}
    rows = np.asarray([3, 0, 17])
    batch = cache.batch(rows, ["audio", "video", "features"])
    longest = max(tiny_index.clips[row].samples for row in rows)
    assert batch["audio"].shape == (3, longest)
    assert batch["audio"].dtype == torch.float32
    assert batch["video"].shape == (3, 20, 60, 100, 3)
    assert batch["video"].dtype == torch.uint8
    assert batch["features"].dtype == torch.float32
    assert batch["audio_lengths"].dtype == batch["target"].dtype == torch.int64
    for position, row in enumerate(rows):
        entry = tiny_index.clips[row]
        sample = decoded[entry.clip]
        audio = batch["audio"][position].numpy()
        assert batch["audio_lengths"][position] == entry.samples
        np.testing.assert_array_equal(
            audio[: entry.samples], sample["audio"].astype(np.float32) / 32768
        )
        assert not audio[entry.samples :].any()
        assert batch["video_lengths"][position] == 20
        np.testing.assert_array_equal(batch["video"][position], sample["video"])
        mean = sample["features"].mean(axis=0)  # of its frames
        np.testing.assert_allclose(batch["features"][position], mean, atol=1e-6)
        assert tiny_index.labels[batch["target"][position]] == entry.label


def test_a_batch_holds_only_the_kinds_asked_for(tiny_index: ShardIndex, tmp_path: Path) -> None:
    cache = open_cache(tiny_index, tmp_path)
    assert set(cache.batch(np.asarray([0]), ["features"])) == {"target", "features"}
    assert set(cache.batch(np.asarray([0]), ["audio"])) == {"target", "audio", "audio_lengths"}


def test_a_full_scale_sample_is_one(tmp_path: Path, small_corpus: Corpus) -> None:
    first = small_corpus.clips[0].audio
    assert first is not None
    soundfile.write(first, np.asarray([-32768, 0, 16384, 32767], np.int16), 16_000)
    index = prepare(small_corpus, tmp_path / "out")
    batch = open_cache(index, tmp_path / "cache").batch(np.asarray([0, 1]), ["audio"])
    assert batch["audio_lengths"].tolist() == [4, 800]
    assert batch["audio"][0, :4].tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]
    assert not batch["audio"][0, 4:].any()


def test_a_restricted_corpus_keeps_its_own_rows_and_classes(
    small_index: ShardIndex, tmp_path: Path
) -> None:
    swapped = small_index.restrict(("sad", "glad"))
    alone = replace(
        swapped, labels=("sad",), clips=tuple(e for e in swapped.clips if e.label == "sad")
    )
    cache = open_cache(alone, tmp_path)
    batch = cache.batch(np.asarray([0, 5]), ["features"])
    # `small_corpus` numbers its clips in its features: the sad ones are 2, 3, 6, 7, 10, 11.
    assert batch["features"].tolist() == [[2, -2], [11, -11]]
    assert cache.targets.tolist() == [0] * 6
    assert open_cache(swapped, tmp_path).targets.tolist() == [1, 1, 0, 0] * 3


def test_the_shards_are_read_once(small_index: ShardIndex, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def count(done: int, total: int) -> None:
        calls.append((done, total))

    first = open_cache(small_index, tmp_path / "cache", on_progress=count)
    assert calls == [(number, 12) for number in range(1, 13)]
    for shard in Path(small_index.root).glob("*.tar"):
        shard.unlink()
    second = open_cache(small_index, tmp_path / "cache", on_progress=count)
    assert len(calls) == 12
    rows = np.arange(12)
    assert torch.equal(
        first.batch(rows, ["audio"])["audio"], second.batch(rows, ["audio"])["audio"]
    )


def test_another_index_has_another_cache(small_corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    one = prepare(small_corpus, tmp_path / "one")
    two = prepare(replace(small_corpus, name="renamed"), tmp_path / "two")
    same = prepare(small_corpus, tmp_path / "same")
    for index in (one, two, same):
        open_cache(index, folder)
    assert one.checksum == same.checksum != two.checksum
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2


def test_shards_that_change_in_use_are_refused(
    small_corpus: Corpus, small_index: ShardIndex, tmp_path: Path
) -> None:
    shutil.rmtree(small_index.root)
    prepare(replace(small_corpus, clips=small_corpus.clips[1:]), Path(small_index.root))
    with pytest.raises(DataError, match=r"'.*/shards' changed while they were in use\. Start"):
        open_cache(small_index, tmp_path / "cache")


def test_a_corpus_beyond_the_bound_is_refused(small_index: ShardIndex, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"GiB decoded, the cache may hold .* Raise --cache-gb"):
        open_cache(small_index, tmp_path, max_bytes=SMALL_BYTES - 1)
    assert list(tmp_path.rglob("*.bin")) == []
    open_cache(small_index, tmp_path, max_bytes=SMALL_BYTES)


def test_the_corpus_used_longest_ago_makes_room(small_corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    old, used, new = (
        prepare(replace(small_corpus, name=name), tmp_path / name) for name in ("a", "b", "c")
    )
    # Room for two corpora with their small files, not for three.
    bound = int(2.7 * SMALL_BYTES)
    open_cache(used, folder, max_bytes=bound)
    open_cache(old, folder, max_bytes=bound)
    os.utime(home_of(used, folder) / "complete.json", (1, 1))
    os.utime(home_of(old, folder) / "complete.json", (2, 2))
    open_cache(used, folder, max_bytes=bound)  # filled first, used last
    open_cache(new, folder, max_bytes=bound)
    kept = {path.name for path in folder.iterdir() if path.is_dir()}
    assert kept == {used.checksum[:24], new.checksum[:24]}
    open_cache(old, folder, max_bytes=10 * SMALL_BYTES)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 3


def test_making_room_removes_nothing_but_caches(
    small_corpus: Corpus, small_index: ShardIndex, tmp_path: Path
) -> None:
    # A user may name any folder as --cache-dir: here the one in which the shards lie.
    other = prepare(replace(small_corpus, name="other"), tmp_path / "other")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_bytes(bytes(SMALL_BYTES))
    open_cache(small_index, tmp_path, max_bytes=int(1.5 * SMALL_BYTES))
    open_cache(other, tmp_path, max_bytes=int(1.5 * SMALL_BYTES))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "media", "shards", "other", "thesis", other.checksum[:24],
    }  # fmt: skip
    assert (tmp_path / "thesis" / "text").exists()


def test_a_removed_cache_can_still_be_read_by_who_has_it_open(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    one = prepare(small_corpus, tmp_path / "one")
    two = prepare(replace(small_corpus, name="two"), tmp_path / "two")
    cache = open_cache(one, folder, max_bytes=int(1.5 * SMALL_BYTES))
    before = cache.batch(np.arange(12), ["audio"])["audio"]
    open_cache(two, folder, max_bytes=int(1.5 * SMALL_BYTES))
    assert not (folder / one.checksum[:24]).exists()
    assert torch.equal(cache.batch(np.arange(12), ["audio"])["audio"], before)


def test_a_corrupt_clip_is_refused_and_named(
    small_index: ShardIndex, change_member: ChangeMember, tmp_path: Path
) -> None:
    change_member(Path(small_index.root) / "shard-00001.tar", "0000100002.flac", garble)
    for _ in range(2):  # a failed filling leaves nothing that looks complete
        with pytest.raises(
            DataError, match=r"Corrupt clip 0000100002 in shard '.*/shard-00001\.tar': "
        ):
            open_cache(small_index, tmp_path / "cache")


def test_content_that_is_not_what_the_index_says_is_refused(
    small_index: ShardIndex, change_member: ChangeMember, tmp_path: Path
) -> None:
    clip = clip_under(small_index, "shard-00001.tar", 2)
    # Another value, well formed.
    change_member(
        Path(small_index.root) / "shard-00001.tar",
        "0000100002.features.npy",
        lambda content: content[:-4] + np.float32(77).tobytes(),
    )
    with pytest.raises(
        DataError,
        match=rf"Corrupt clip '{clip}' in shard 'shard-00001\.tar': its content is not what",
    ):
        open_cache(small_index, tmp_path / "cache")


def test_a_clip_that_no_shard_holds_is_named(
    small_index: ShardIndex, change_member: ChangeMember, tmp_path: Path
) -> None:
    clip = clip_under(small_index, "shard-00001.tar", 2)
    shard = Path(small_index.root) / "shard-00001.tar"
    # The third clip becomes a second copy of the second.
    for suffix in ("json", "flac", "features.npy"):
        with tarfile.open(shard) as tar:
            second = tar.extractfile(f"0000100001.{suffix}")
            assert second is not None
            content = second.read()
        change_member(shard, f"0000100002.{suffix}", lambda _, new=content: new)  # type: ignore[misc]
    with pytest.raises(DataError, match=rf"lack 1 clips of their index: {clip}\. Prepare"):
        open_cache(small_index, tmp_path / "cache")


def test_what_is_intact_can_be_used_and_the_rest_is_marked(
    small_index: ShardIndex, change_member: ChangeMember, tmp_path: Path
) -> None:
    clip = clip_under(small_index, "shard-00001.tar", 2)
    decoded = {sample["clip"]: sample for sample in stream_clips(small_index)}
    change_member(Path(small_index.root) / "shard-00001.tar", "0000100002.flac", garble)
    cache = open_cache(small_index, tmp_path / "cache", skip_corrupt=True)
    assert cache.missing.tolist() == [entry.clip == clip for entry in small_index.clips]
    intact = np.flatnonzero(~cache.missing)
    batch = cache.batch(intact, ["audio"])
    for position, row in enumerate(intact):
        expected = decoded[small_index.clips[row].clip]["audio"].astype(np.float32) / 32768
        np.testing.assert_array_equal(batch["audio"][position], expected)
    # The mask follows the rows of a restricted corpus.
    part = small_index.restrict(("sad", "glad"))
    part = replace(part, clips=part.clips[::-1])
    again = open_cache(part, tmp_path / "cache", skip_corrupt=True)
    assert again.missing.tolist() == [entry.clip == clip for entry in part.clips]


def test_leaving_out_corrupt_clips_is_asked_for_every_time(
    small_index: ShardIndex, change_member: ChangeMember, tmp_path: Path
) -> None:
    clip = clip_under(small_index, "shard-00001.tar", 2)
    change_member(Path(small_index.root) / "shard-00001.tar", "0000100002.flac", garble)
    open_cache(small_index, tmp_path / "cache", skip_corrupt=True)
    with pytest.raises(
        DataError, match=rf"1 clips of '.*/shards' are corrupt: {clip}\. .*--skip-corrupt"
    ):
        open_cache(small_index, tmp_path / "cache")
    # The cache of those who ask for it stays.
    calls: list[int] = []
    open_cache(
        small_index,
        tmp_path / "cache",
        skip_corrupt=True,
        on_progress=lambda done, _: calls.append(done),
    )
    assert calls == []


def test_mended_shards_are_read_again(
    small_index: ShardIndex, change_member: ChangeMember, tmp_path: Path
) -> None:
    shard = Path(small_index.root) / "shard-00001.tar"
    whole = shard.read_bytes()
    change_member(shard, "0000100002.flac", garble)
    lacking = open_cache(small_index, tmp_path / "cache", skip_corrupt=True)
    row = int(np.flatnonzero(lacking.missing)[0])
    assert not lacking.batch(np.asarray([row]), ["audio"])["audio"].any()
    # A new preparation gives the same index, and so the same cache.
    shard.write_bytes(whole)
    cache = open_cache(small_index, tmp_path / "cache")
    assert not cache.missing.any()
    assert cache.batch(np.asarray([row]), ["audio"])["audio"].any()


def test_a_corpus_of_which_nothing_is_intact_is_refused(
    small_index: ShardIndex, tmp_path: Path
) -> None:
    for shard in Path(small_index.root).glob("*.tar"):
        shard.write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"No intact clip is left in '.*/shards'"):
        open_cache(small_index, tmp_path / "cache", skip_corrupt=True)


def test_an_interrupted_filling_is_done_again(small_index: ShardIndex, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(small_index, tmp_path / "cache", on_progress=stop)
    cache = open_cache(small_index, tmp_path / "cache")
    clean = open_cache(small_index, tmp_path / "clean")
    rows = np.arange(12)
    assert torch.equal(cache.batch(rows, ["audio"])["audio"], clean.batch(rows, ["audio"])["audio"])


def test_a_folder_that_cannot_be_written_is_named(small_index: ShardIndex, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"Cannot write the cache in '.*/file/cache': .* Set --cache-dir or EMOTION"
    ):
        open_cache(small_index, tmp_path / "file" / "cache")


def test_a_full_disk_fails_before_anything_is_written(
    small_index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.sharding.clip_cache.os.posix_fallocate", full)
    with pytest.raises(DataError, match=r"Cannot write the cache in '.*': No space left on device"):
        open_cache(small_index, tmp_path / "cache")


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOTION_CACHE", "/fast/cache")
    assert default_cache_folder() == Path("/fast/cache")
    monkeypatch.delenv("EMOTION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/ann/caches")
    assert default_cache_folder() == Path("/home/ann/caches/emotion-search")


FILL = """
import json, sys, time
from pathlib import Path
import numpy as np
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import read_index
shards, cache, begun, go = sys.argv[1], *map(Path, sys.argv[2:])
filled = []
def note(done, total):
    filled.append(done)
    begun.touch()
    while not go.exists():
        time.sleep(0.01)
cache = open_cache(read_index(shards), cache, on_progress=note)
total = float(cache.batch(np.arange(12), ["audio"])["audio"].abs().sum())
print(json.dumps({"filled": len(filled), "total": total}))
"""


def test_who_comes_while_another_process_fills_the_cache_waits_for_it(
    small_index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, filled = threading.Event(), []

    class Noted(FileLock):  # type: ignore[valid-type,misc]
        """The lock as it is; says when another one holds it."""

        def _acquire(self) -> None:
            super()._acquire()
            if not self.is_locked:
                refused.set()

    folder, begun, go = tmp_path / "cache", tmp_path / "begun", tmp_path / "go"
    arguments = [small_index.root, *map(str, (folder, begun, go))]
    command = [sys.executable, "-c", FILL, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        while not begun.exists():
            assert other.poll() is None
            time.sleep(0.01)
        monkeypatch.setattr(clip_cache, "FileLock", Noted)
        with ThreadPoolExecutor(1) as pool:
            note = lambda done, total: filled.append(done)  # noqa: E731
            here = pool.submit(open_cache, small_index, folder, on_progress=note)
            while not (refused.is_set() or here.done()):
                time.sleep(0.01)
            go.touch()
            report = json.loads(other.communicate()[0])
            audio = here.result().batch(np.arange(12), ["audio"])["audio"]
    assert refused.is_set(), "it met the other one"
    assert (report["filled"], filled) == (12, [])
    assert report["total"] == float(audio.abs().sum()) > 0


def test_a_derivation_is_computed_once_and_kept_by_row(
    small_index: ShardIndex, tmp_path: Path
) -> None:
    calls: list[int] = []

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        calls.append(len(batch["target"]))
        return lengths_and_sums(batch)

    cache = open_cache(small_index, tmp_path)
    derived = cache.derive("twice", "features", compute, batch_clips=5)
    assert sum(calls) == 12
    assert max(calls) == 5
    values, lengths = derived.gather(np.asarray([4, 7]))
    # By hand: the features of clip n are (n, -n); even ones come twice, odd ones once.
    assert lengths.tolist() == [2, 1]
    assert values.tolist() == [[[4, -4], [4, -4]], [[7, -7], [0, 0]]]

    again = open_cache(small_index, tmp_path).derive("twice", "features", compute)
    assert sum(calls) == 12
    assert again.gather(np.arange(12))[0].equal(derived.gather(np.arange(12))[0])
    cache.derive("another name", "features", compute)
    assert sum(calls) == 24


def test_a_derivation_of_a_restricted_corpus_counts_its_rows(
    small_index: ShardIndex, tmp_path: Path
) -> None:
    open_cache(small_index, tmp_path).derive("twice", "features", lengths_and_sums)
    sad = replace(small_index, clips=tuple(e for e in small_index.clips if e.label == "sad"))
    derived = open_cache(sad, tmp_path).derive("twice", "features", lengths_and_sums)
    values, lengths = derived.gather(np.arange(6))
    assert values[:, 0, 0].tolist() == [2, 3, 6, 7, 10, 11]
    assert lengths.tolist() == [2, 1, 2, 1, 2, 1]


def test_a_derivation_that_fails_is_computed_again(small_index: ShardIndex, tmp_path: Path) -> None:
    def fail(batch: Batch) -> tuple[Tensor, Tensor]:
        raise RuntimeError("out of memory")

    cache = open_cache(small_index, tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        cache.derive("twice", "features", fail)
    derived = cache.derive("twice", "features", lengths_and_sums)
    assert derived.gather(np.asarray([4]))[0].tolist() == [[[4, -4], [4, -4]]]


def test_derivations_make_room_for_derivations(small_index: ShardIndex, tmp_path: Path) -> None:
    def wide(batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.ones(len(batch["target"]), 1, 400), torch.ones(
            len(batch["target"]), dtype=torch.int64
        )

    # Each derivation takes 12 × 400 × 4 = 19 200 bytes, as much as the corpus: room for one.
    cache = open_cache(small_index, tmp_path, max_bytes=int(2.7 * SMALL_BYTES))
    cache.derive("one", "features", wide)
    cache.derive("two", "features", wide)
    assert len(list(home_of(small_index, tmp_path).glob("derived-*.bin"))) == 1
    assert cache.batch(np.arange(12), ["features"])["features"][3].tolist() == [3, -3]


def test_a_corpus_without_a_kind_has_no_file_of_it(small_index: ShardIndex, tmp_path: Path) -> None:
    open_cache(small_index, tmp_path)
    names = sorted(path.name for path in home_of(small_index, tmp_path).glob("*.bin"))
    assert names == ["audio.bin", "features.bin"]


def test_clips_without_a_kind_have_length_zero(small_corpus: Corpus, tmp_path: Path) -> None:
    silent = replace(small_corpus.clips[0], audio=None)
    corpus = replace(small_corpus, clips=(silent, *small_corpus.clips[1:]))
    index = prepare(corpus, tmp_path / "out", ShardSettings(clips_per_shard=4))
    assert read_index(tmp_path / "out").has("audio") == 11
    batch = open_cache(index, tmp_path / "cache").batch(np.asarray([0, 1]), ["audio"])
    assert batch["audio_lengths"].tolist() == [0, 800]
    assert not batch["audio"][0].any()
    assert batch["audio"][1].any()


def test_pages_that_are_let_go_while_it_is_filled_keep_their_content(
    small_index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = []
    real = clip_cache._let_go

    def count(mapped: Iterable[NDArray[Any]]) -> None:
        let_go.append(1)
        real(mapped)

    monkeypatch.setattr(clip_cache, "_let_go", count)
    rows = np.arange(len(small_index.clips))
    kept = open_cache(small_index, tmp_path / "kept").batch(rows, ["audio", "features"])
    assert not let_go
    monkeypatch.setattr(clip_cache, "_RESIDENT_BYTES", 0)
    batch = open_cache(small_index, tmp_path / "let go").batch(rows, ["audio", "features"])
    assert len(let_go) == len(small_index.clips)
    for name, values in kept.items():
        assert torch.equal(batch[name], values)
