"""What a frozen function makes of the clips: written as it comes, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.clips import Corpus, DataError
from datasets.sharding.clip_cache import Batch, ClipCache, open_cache
from datasets.sharding.index import ShardIndex
from datasets.sharding.ragged import RaggedFile, RaggedWriter
from datasets.sharding.writer import prepare

ROOT = Path(__file__).parents[3]
Compute = Callable[[Batch], tuple[Tensor, Tensor]]


@pytest.fixture()
def cache(small_corpus: Corpus, tmp_path: Path) -> ClipCache:
    """Clip n has n + 1 steps of one feature, n · 100 + step; 12 clips."""
    clips = tuple(
        replace(r, features=(100 * n + np.arange(n + 1, dtype=np.float32))[:, None])
        for n, r in enumerate(small_corpus.clips)
    )
    corpus = replace(small_corpus, clips=clips, feature_names=("up",))
    return open_cache(prepare(corpus, tmp_path / "shards"), tmp_path / "cache")


def same(batch: Batch) -> tuple[Tensor, Tensor]:
    """The steps as they are."""
    return batch["feature_sequence"], batch["feature_sequence_lengths"]


def wide(width: int) -> Compute:
    """`width` values a step, ones."""

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        x, lengths = same(batch)
        return torch.ones(*x.shape[:2], width), lengths

    return compute


def item(file: RaggedFile, row: int) -> list[float]:
    values, lengths = file.gather(np.asarray([row]))
    return [float(x) for x in values[0, : int(lengths[0])].flatten()]


def files(cache: ClipCache) -> set[str]:
    """Suffixes of what lies there of derivations, but locks."""
    there = cache.folder.glob("derived-*")
    return {path.name.partition(".")[2] for path in there if path.suffix != ".lock"}


def test_every_clip_keeps_its_own_steps(cache: ClipCache) -> None:
    file = cache.derive("same", "feature_sequence", same, batch_clips=5)
    assert file.lengths.tolist() == list(range(1, 13))
    for row in range(12):
        assert item(file, row) == [100 * row + step for step in range(row + 1)]
    values, lengths = file.gather(np.asarray([2, 0]))
    assert lengths.tolist() == [3, 1]
    assert values[..., 0].tolist() == [[200, 201, 202], [0, 0, 0]]
    again = cache.derive("same", "feature_sequence", wide(7))  # not computed
    assert again.gather(np.arange(12))[0].equal(file.gather(np.arange(12))[0])


def test_the_longest_clips_come_first_in_batches_of_like_length(cache: ClipCache) -> None:
    seen: list[list[int]] = []

    def note(batch: Batch) -> tuple[Tensor, Tensor]:
        seen.append(batch["feature_sequence_lengths"].tolist())
        return same(batch)

    done: list[tuple[int, int]] = []
    cache.derive(
        "same", "feature_sequence", note, batch_clips=5,
        on_progress=lambda *counts: done.append(counts),
    )  # fmt: skip
    assert seen == [[12, 11, 10, 9, 8], [7, 6, 5, 4, 3], [2, 1]]
    assert done == [(5, 12), (10, 12), (12, 12)]


def test_no_more_than_a_batch_is_held(cache: ClipCache) -> None:
    written: list[int] = []

    def note(batch: Batch) -> tuple[Tensor, Tensor]:
        (partial,) = cache.folder.glob("derived-*.partial")
        written.append(partial.stat().st_size)
        # Larger than what Python buffers.
        return wide(100_000)(batch)

    cache.derive("wide", "feature_sequence", note, batch_clips=4)
    # 4 bytes × 100 000 × the steps of the batches before: 12 + 11 + 10 + 9, then 8 + 7 + 6 + 5.
    assert written == [0, 42 * 400_000, 68 * 400_000]


def test_half_precision_takes_half_the_space(cache: ClipCache) -> None:
    half = cache.derive("same", "feature_sequence", same, dtype="float16")
    whole = cache.derive("same", "feature_sequence", same)
    values, _ = half.gather(np.arange(12))
    assert values.dtype == torch.float16
    assert 2 * half.data.nbytes == whole.data.nbytes
    assert values.float().equal(whole.gather(np.arange(12))[0])  # whole numbers below 2048


def test_vectors_lie_in_the_order_of_their_rows(cache: ClipCache) -> None:
    def first(batch: Batch) -> tuple[Tensor, Tensor]:
        x, lengths = same(batch)
        return x[:, :1], torch.ones_like(lengths)

    file = cache.derive("first", "feature_sequence", first, batch_clips=5)
    assert file.data[:, 0].tolist() == [100 * row for row in range(12)]
    assert item(file, 7) == [700]
    assert files(cache) == {"bin", "json", "lengths.npy", "offsets.npy"}


def test_a_derivation_of_nothing_is_one(cache: ClipCache) -> None:
    def nothing(batch: Batch) -> tuple[Tensor, Tensor]:
        x, lengths = same(batch)
        return x[:, :0], torch.zeros_like(lengths)

    file = cache.derive("nothing", "feature_sequence", nothing)
    assert file.gather(np.asarray([3]))[0].shape == (1, 0, 1)


def test_what_an_older_program_derived_is_read(cache: ClipCache) -> None:
    file = cache.derive("same", "feature_sequence", same)
    path = next(cache.folder.glob("derived-*.bin"))
    # It wrote the items by row, and no offsets.
    np.concatenate([item(file, row) for row in range(12)]).astype(np.float32).tofile(path)
    path.with_suffix(".offsets.npy").unlink()
    header = json.loads(path.with_suffix(".json").read_text())
    del header["offsets"]
    path.with_suffix(".json").write_text(json.dumps(header))
    old = cache.derive("same", "feature_sequence", wide(3))
    assert item(old, 4) == [400, 401, 402, 403, 404]


def test_a_file_whose_offsets_are_gone_is_computed_again(cache: ClipCache) -> None:
    cache.derive("same", "feature_sequence", same)
    next(cache.folder.glob("*.offsets.npy")).unlink()
    assert item(cache.derive("same", "feature_sequence", same), 2) == [200, 201, 202]


def test_a_failure_leaves_nothing(cache: ClipCache) -> None:
    calls = 0

    def fail(batch: Batch) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("of the function, not of the cache")
        return same(batch)

    with pytest.raises(OSError, match="of the function, not of the cache"):
        cache.derive("same", "feature_sequence", fail, batch_clips=4)
    assert files(cache) == set()
    assert item(cache.derive("same", "feature_sequence", same), 2) == [200, 201, 202]


def test_a_full_disk_while_writing_names_the_folder(
    cache: ClipCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RaggedWriter.__enter__

    def onto_a_full_disk(writer: RaggedWriter) -> RaggedWriter:
        real(writer)
        writer._file.close()
        writer._file = Path("/dev/full").open("wb")  # noqa: SIM115
        return writer

    monkeypatch.setattr(RaggedWriter, "__enter__", onto_a_full_disk)
    with pytest.raises(
        DataError, match=rf"Cannot write the cache in '{cache.folder}': No space left on device"
    ):
        cache.derive("wide", "feature_sequence", wide(100_000), batch_clips=4)
    assert files(cache) == set()


def test_a_folder_that_is_gone_is_named(cache: ClipCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("datasets.sharding.clip_cache.os.fsync", refused)
    with pytest.raises(DataError, match=r"Cannot write the cache in '.*': Permission denied"):
        cache.derive("same", "feature_sequence", same)
    assert files(cache) == set()


def used(cache: ClipCache) -> int:
    return sum(p.stat().st_size for p in cache.folder.rglob("*") if p.is_file())


def test_what_cannot_fit_the_bound_is_refused_after_the_first_batch(cache: ClipCache) -> None:
    calls = 0

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return wide(1000)(batch)

    # 78 steps of 4000 bytes.
    cache.max_bytes = used(cache) + 78 * 4000 - 1
    with pytest.raises(
        DataError, match=r"What 'wide' makes of the clips takes about .* GiB.*Raise --cache-gb"
    ):
        cache.derive("wide", "feature_sequence", compute, batch_clips=4)
    assert calls == 1
    assert files(cache) == set()
    cache.max_bytes += 1000  # offsets and the like
    cache.derive("wide", "feature_sequence", compute, batch_clips=4)


def test_what_grows_beyond_its_estimate_is_noticed_while_writing(cache: ClipCache) -> None:
    def constant(batch: Batch) -> tuple[Tensor, Tensor]:
        # Twelve items of one size: what the longest clips promise is too little.
        lengths = batch["feature_sequence_lengths"]
        return torch.ones(len(lengths), 2, 500), torch.full_like(lengths, 2)

    cache.max_bytes = used(cache) + 12 * 4000 - 1
    with pytest.raises(DataError, match="Raise --cache-gb"):
        cache.derive("constant", "feature_sequence", constant, batch_clips=4)
    assert files(cache) == set()


def test_the_derivation_used_longest_ago_makes_room(cache: ClipCache) -> None:
    cache.derive("one", "feature_sequence", wide(1000))
    cache.max_bytes = used(cache) + 1000
    cache.derive("two", "feature_sequence", wide(1000))
    assert len(list(cache.folder.glob("derived-*.bin"))) == 1
    assert len(list(cache.folder.glob("derived-*.offsets.npy"))) == 1


KILLED = """
import signal, sys
from pathlib import Path
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import read_index
cache = open_cache(read_index(sys.argv[1]), Path(sys.argv[2]))
def compute(batch):
    return batch["feature_sequence"], batch["feature_sequence_lengths"]
def note(done, total):
    print(done, flush=True)
    if done == 8:
        signal.pause()  # until it is killed
cache.derive("same", "feature_sequence", compute, batch_clips=4, on_progress=note)
"""


def test_a_killed_process_leaves_no_file_that_looks_whole(cache: ClipCache) -> None:
    command = [sys.executable, "-c", KILLED, cache.index.root, str(cache.folder.parent)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "8":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert files(cache) == {"partial"}
    # Who derives something else clears it away.
    cache.derive("other", "feature_sequence", wide(2))
    assert files(cache) == {"bin", "json", "lengths.npy", "offsets.npy"}
    assert item(cache.derive("same", "feature_sequence", same), 3) == [300, 301, 302, 303]


def test_what_another_process_is_writing_is_left_alone(cache: ClipCache) -> None:
    from filelock import FileLock

    partial = cache.folder / "derived-0123.partial"
    partial.touch()
    with FileLock(str(cache.folder / "derived-0123.lock")):
        cache.derive("other", "feature_sequence", wide(2))
        assert partial.exists()
    cache.derive("another", "feature_sequence", wide(2))
    assert not partial.exists()


def test_sound_and_pictures_can_be_derived_from(tiny_index: ShardIndex, tmp_path: Path) -> None:
    cache = open_cache(tiny_index, tmp_path)

    def brightness(batch: Batch) -> tuple[Tensor, Tensor]:
        return batch["video"].float().mean(dim=(2, 3, 4))[..., None], batch["video_lengths"]

    file = cache.derive("brightness", "video", brightness, batch_clips=7)
    wanted = cache.batch(np.asarray([5]), ["video"])["video"].float().mean(dim=(2, 3, 4))
    assert torch.equal(file.gather(np.asarray([5]))[0][..., 0], wanted)
