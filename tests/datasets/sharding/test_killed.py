"""Preparations that are killed, and decoders that end their process."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PosixPath

import numpy as np
import psutil
import pytest
import soundfile

from datasets.clips import ClipRecord, Corpus, DataError
from datasets.corpora.manifest import load_manifest
from datasets.prepare import main, pace
from datasets.sharding.worker_pool import Job, Marker, run_jobs
from datasets.sharding.writer import ShardSettings, prepare
from tests.faults.storage import small_disk

ROOT = Path(__file__).parents[3]
FOUR = ShardSettings(clips_per_shard=4)


class Deadly(PosixPath):
    """A file at which whoever decodes it dies, as of a decoder's crash."""

    def is_file(self) -> bool:
        os.kill(os.getpid(), signal.SIGSEGV)
        return True


class DeadlyOnce(PosixPath):
    """The same, but only the first time, as of memory that another process took."""

    def is_file(self) -> bool:
        if not self.with_suffix(".died").exists():
            self.with_suffix(".died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().is_file()


class Unlucky(PosixPath):
    """Ends the process at any time that it is looked at by another than the one that made it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_die, (str(self),))


def _die(path: str) -> Path:
    if os.getpid() != int(os.environ["TEST_PARENT"]):
        os._exit(9)
    return Unlucky(path)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def with_path(corpus: Corpus, clip: str, kind: type[Path]) -> Corpus:
    return replace(
        corpus,
        clips=tuple(
            replace(r, audio=kind(r.audio)) if r.clip == clip and r.audio else r
            for r in corpus.clips
        ),
    )


def test_a_clip_that_crashes_the_decoder_is_left_out_and_named(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    deadly = with_path(small_corpus, "bob-sad-1", Deadly)
    index = prepare(deadly, tmp_path / "out", FOUR, workers=2)
    assert [(s.clip, s.reason) for s in index.skipped] == [
        ("bob-sad-1", "'bob-sad-1.wav' ends the process that decodes it (signal 11)")
    ]
    assert len(index.clips) == 11
    others = replace(
        small_corpus, clips=tuple(r for r in small_corpus.clips if r.clip != "bob-sad-1")
    )
    hashes = {e.clip: e.content_hash for e in prepare(others, tmp_path / "others", FOUR).clips}
    assert {e.clip: e.content_hash for e in index.clips} == hashes


def test_a_process_that_is_killed_once_costs_no_clip(small_corpus: Corpus, tmp_path: Path) -> None:
    index = prepare(
        with_path(small_corpus, "bob-sad-1", DeadlyOnce), tmp_path / "out", FOUR, workers=2
    )
    assert len(index.clips) == 12 and not index.skipped
    prepare(small_corpus, tmp_path / "undisturbed", FOUR)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_processes_that_die_before_they_decode_end_it_in_one_line(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PARENT", str(os.getpid()))
    unlucky = with_path(small_corpus, "bob-sad-1", Unlucky)
    with pytest.raises(DataError, match=r"2 worker processes died while decoding \(exit code 9\)"):
        prepare(unlucky, tmp_path / "out", FOUR, workers=3)
    assert not (tmp_path / "out" / "index.json").exists()


def test_after_a_crash_of_the_only_process_the_next_call_finds_the_culprit(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    deadly = with_path(small_corpus, "bob-sad-1", Deadly)
    child = os.fork()
    if child == 0:  # one process, which decodes by itself, and dies
        faulthandler.disable()
        prepare(deadly, out, FOUR, workers=1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV
    assert list((out / ".prepare").glob("*.now"))
    index = prepare(deadly, out, FOUR, workers=1)
    assert [s.clip for s in index.skipped] == ["bob-sad-1"]
    assert sorted(path.name for path in out.iterdir()) == [
        "index.json", "shard-00000.tar", "shard-00001.tar", "shard-00002.tar",
    ]  # fmt: skip


HELD = "7.wav"
HOLD = f"""
import multiprocessing, os, pathlib, time
real = pathlib.Path.is_file
def is_file(self):
    if self.name == {HELD!r} and multiprocessing.parent_process():
        here = pathlib.Path(os.environ["HOLD"])
        (here / "held").write_text(str(os.getpid()))
        while not (here / "go").exists():
            time.sleep(0.01)
    return real(self)
pathlib.Path.is_file = is_file
"""
"""A `sitecustomize` with which the worker that comes to a clip waits there."""


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of twelve sounds."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    rows = ["clip,speaker,label,audio"]
    for number in range(12):
        noise = generator.integers(-9000, 9000, 800).astype(np.int16)
        soundfile.write(folder / f"{number}.wav", noise, 16_000)
        rows.append(f"c{number:02d},s{number % 3},sad,{number}.wav")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("whole_group", [True, False], ids=["all processes", "the parent"])
def test_a_killed_command_leaves_whole_shards_and_is_taken_up(
    sounds: Path, tmp_path: Path, whole_group: bool
) -> None:
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    arguments = [
        "manifest", "--root", str(sounds), "--clips-per-shard", "3", "--workers", "2", "--out", str(out),
    ]  # fmt: skip
    prepare(load_manifest(sounds), undisturbed, ShardSettings(clips_per_shard=3))
    (tmp_path / "sitecustomize.py").write_text(HOLD)
    run = subprocess.Popen(
        [sys.executable, "-m", "datasets.prepare", *arguments],
        env={**os.environ, "HOLD": str(tmp_path), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        start_new_session=True,
    )
    held = tmp_path / "held"
    until(lambda: run.poll() is not None or (held.exists() and len([*out.glob("shard-*.tar")]) > 1))
    os.killpg(run.pid, signal.SIGKILL) if whole_group else run.kill()
    assert run.wait() == -signal.SIGKILL, "it was killed before its end"
    assert not (out / "index.json").exists()
    for path in out.glob("shard-*.tar"):
        assert path.read_bytes() == (undisturbed / path.name).read_bytes()
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) == 6
    assert main(arguments) == 0
    (tmp_path / "go").touch()
    orphan = int(held.read_text())
    until(lambda: not _lives(orphan))
    assert content(out) == content(undisturbed)


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_shard_that_is_not_as_it_was_reported_is_written_again(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(small_corpus, out, FOUR, on_progress=stop)
    (out / "shard-00000.tar").write_bytes(b"half")
    (out / ".prepare" / "shard-00001.tar.json").write_text("")  # as power that fails leaves it
    prepare(small_corpus, out, FOUR)
    prepare(small_corpus, tmp_path / "undisturbed", FOUR)
    assert content(out) == content(tmp_path / "undisturbed")


def test_two_preparations_of_one_folder_do_not_meet(small_corpus: Corpus, tmp_path: Path) -> None:
    def meddle(done: int, total: int) -> None:
        with pytest.raises(DataError, match="Another process is preparing"):
            prepare(small_corpus, tmp_path / "out", FOUR)

    assert len(prepare(small_corpus, tmp_path / "out", FOUR, on_progress=meddle).clips) == 12


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three shards of two clips each, the last of them of nearly 2 MB, the others of a few kB."""
    folder = tmp_path_factory.mktemp("loud")
    noise = np.random.default_rng(0).integers(-30_000, 30_000, 16_000 * 30).astype(np.int16)
    soundfile.write(folder / "long.wav", noise, 16_000)
    soundfile.write(folder / "short.wav", noise[:1600], 16_000)
    clips = tuple(
        ClipRecord(
            clip=f"c{n}", speaker="ann", label="sad", audio=folder / ("short.wav", "long.wav")[n > 3],
        )
        for n in range(6)
    )  # fmt: skip
    return Corpus(name="loud", labels=("sad",), clips=clips)


LOUD = ShardSettings(clips_per_shard=2)


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A disk with room for a large shard when what else lies there is gone."""
    with small_disk(folder, 4) as disk:
        (disk / "other").write_bytes(bytes(3 * 2**20))
        yield disk


@contextmanager
def small_files(folder: Path) -> Iterator[Path]:
    """A folder; no file may become larger than half a large shard, here and in child processes."""
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("no_room", "why"),
    [
        pytest.param(
            full_disk,
            "No space left on device",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root"),
        ),
        (small_files, "File too large"),
    ],
    ids=["disk", "file"],
)
def test_without_room_it_ends_in_one_line_and_goes_on_when_there_is_some(
    loud: Corpus,
    tmp_path: Path,
    no_room: Callable[[Path], AbstractContextManager[Path]],
    why: str,
    workers: int,
) -> None:
    prepare(loud, tmp_path / "undisturbed", LOUD)
    with ExitStack() as stack:
        folder = stack.enter_context(no_room(tmp_path / "folder"))
        with pytest.raises(DataError, match=rf"Cannot write to '.*/out': {why}\."):
            prepare(loud, folder / "out", LOUD, workers=workers)
        assert not list(folder.rglob("*.partial")) and not (folder / "out" / "index.json").exists()
        if no_room is full_disk:
            (folder / "other").unlink()
        else:
            stack.close()
        prepare(loud, folder / "out", LOUD, workers=workers)
        shutil.rmtree(folder / "out" / ".prepare", ignore_errors=True)
        assert content(folder / "out") == content(tmp_path / "undisturbed")


def test_progress_never_goes_back_and_counts_what_was_done_before(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(small_corpus, tmp_path / "out", FOUR, on_progress=stop)
    calls: list[tuple[int, int]] = []
    prepare(
        with_path(small_corpus, "zzz", Deadly), tmp_path / "out", FOUR, workers=2,
        on_progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls[0] == (4, 12) and calls[-1] == (12, 12)
    assert calls == sorted(calls)


@pytest.mark.parametrize(
    ("done", "left", "seconds", "said"),
    [
        (0, 10, 3.0, ""),
        (50, 100, 10.0, ", 5/s, 0:00:20 left"),
        (5, 5000, 60.0, ", 0.0833/s, 16:40:00 left"),
        (20_000, 80_000, 24.6, ", 813/s, 0:01:38 left"),
    ],
)
def test_the_pace_is_told_with_what_is_left(
    done: int, left: int, seconds: float, said: str
) -> None:
    assert pace(done, left, seconds) == said


def square(number: int) -> int:
    if number < 0:
        raise OSError(28, "No space left on device")
    return number * number


def never(job: Job, exit_code: int) -> Job:
    raise AssertionError(f"{job.name} died with {exit_code}")


def test_jobs_are_taken_as_workers_are_free() -> None:
    taken: list[int] = []

    def jobs() -> object:
        for number in range(20):
            taken.append(number)
            yield Job(name=str(number), arguments=(number,))

    results = {}
    for ended in run_jobs(square, jobs(), 2, never):  # type: ignore[arg-type]
        if ended is not None:
            results[ended[0].name] = ended[1]
            assert len(taken) <= len(results) + 2
    assert results == {str(n): n * n for n in range(20)}


def test_what_the_work_raises_arrives() -> None:
    jobs = [Job(name=str(n), arguments=(n,)) for n in (1, -1, 2)]
    with pytest.raises(OSError, match="No space left"):
        list(run_jobs(square, jobs, 1, never))


def test_a_marker_is_there_while_the_work_is_done(tmp_path: Path) -> None:
    with Marker(tmp_path / "now") as marker:
        assert Marker.read(tmp_path / "now") is None
        marker.at(12)
        marker.at(7)
        assert Marker.read(tmp_path / "now") == 7
    assert Marker.read(tmp_path / "now") is None
    assert not list(tmp_path.iterdir())
