"""Tiny media files, a corpus of sound and features, and ways to damage its shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus
from datasets.sharding.index import ClipEntry, ShardIndex, read_index
from datasets.sharding.writer import ShardSettings, prepare

WriteSound = Callable[..., Path]
WriteVideo = Callable[..., Path]
ChangeMember = Callable[[Path, str, Callable[[bytes], bytes]], None]
MakeIndex = Callable[..., ShardIndex]


@pytest.fixture()
def write_sound(tmp_path: Path) -> WriteSound:
    """Writes noise (another for every seed) under `tmp_path`."""

    def write(name: str, *, samples: int = 800, rate_hz: int = 16_000, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(-9000, 9000, samples).astype(np.int16)
        soundfile.write(path, noise, rate_hz)
        return path

    return write


@pytest.fixture()
def write_video(tmp_path: Path, write_film: WriteVideo) -> WriteVideo:
    """Writes (V, H, W, 3) frames under `tmp_path`, as `write_film` does."""
    return lambda name, frames, **given: write_film(tmp_path / name, frames, **given)


@pytest.fixture(scope="session")
def write_film() -> WriteVideo:
    """Writes (V, H, W, 3) frames to a path, at `stamps` in tenths of a second."""
    return _write_film


def _write_film(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    stamps: Sequence[int] | None = None,
    sound: NDArray[np.int16] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.height, pictures.width = frames.shape[1:3]
        pictures.pix_fmt = "yuv420p"
        pictures.options = {"crf": "5", "preset": "ultrafast", "tune": "zerolatency"}
        voice = container.add_stream("aac", rate=16_000) if sound is not None else None
        for position, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = stamps[position] if stamps is not None else position
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if voice is not None and sound is not None:
            block = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
            block.rate = 16_000
            container.mux(voice.encode(block))
            container.mux(voice.encode(None))
    return path


@pytest.fixture()
def grey_frames() -> Callable[[int], NDArray[np.uint8]]:
    """Frames whose brightness is 20 times their number."""

    def make(count: int) -> NDArray[np.uint8]:
        brightness = np.arange(count, dtype=np.uint8)[:, None, None, None] * 20
        return np.ascontiguousarray(np.broadcast_to(brightness, (count, 32, 48, 3)))

    return make


@pytest.fixture()
def small_corpus(write_sound: WriteSound) -> Corpus:
    """Three speakers, two emotions, two clips each: 800 samples and two features a clip."""
    clips = []
    for speaker in ("ann", "bob", "cem"):
        for label in ("glad", "sad"):
            for take in (1, 2):
                name = f"{speaker}-{label}-{take}"
                seed = len(clips)
                clips.append(
                    ClipRecord(
                        clip=name,
                        speaker=speaker,
                        label=label,
                        audio=write_sound(f"media/{name}.wav", seed=seed),
                        features=np.asarray([seed, -seed], np.float32),
                    )
                )
    return Corpus(
        name="small", labels=("glad", "sad"), clips=tuple(clips), feature_names=("up", "down")
    )


@pytest.fixture()
def small_index(small_corpus: Corpus, tmp_path: Path) -> ShardIndex:
    """`small_corpus` in three shards of four clips, to be damaged as a test likes."""
    prepare(small_corpus, tmp_path / "shards", ShardSettings(clips_per_shard=4))
    return read_index(tmp_path / "shards")


@pytest.fixture()
def change_member() -> ChangeMember:
    """Rewrites a tar with the content of one member changed."""

    def change(shard: Path, member: str, edit: Callable[[bytes], bytes]) -> None:
        with tarfile.open(shard) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        files[member] = edit(files[member])
        with tarfile.open(shard, "w") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    return change


@pytest.fixture()
def make_index() -> MakeIndex:
    """An index in memory: one clip for each (clip, speaker, label), all of different sound."""

    def make(
        rows: Sequence[tuple[str, str, str]],
        *,
        corpus: str = "made",
        same_sound: Sequence[str] = (),
    ) -> ShardIndex:
        clips = tuple(
            ClipEntry(
                clip=clip,
                speaker=speaker,
                label=label,
                shard="shard-00000.tar",
                samples=800,
                frames=0,
                features=0,
                content_hash=clip,
                audio_hash="the same" if clip in same_sound else clip,
            )
            for clip, speaker, label in rows
        )
        return ShardIndex(
            root="nowhere",
            corpus=corpus,
            labels=tuple(sorted({label for _, _, label in rows})),
            clips=clips,
            shards=(),
            skipped=(),
            sample_rate_hz=16_000,
            frame_size=(60, 100),
            feature_names=(),
        )

    return make
