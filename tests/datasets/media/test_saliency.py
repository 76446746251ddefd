"""Precomputed saliency maps: a fourth channel of the frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus, DataError
from datasets.corpora.manifest import load_manifest
from datasets.media.containers import MediaError
from datasets.media.video import read_frames
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import read_index
from datasets.sharding.stream import stream_clips
from datasets.sharding.writer import ShardSettings, prepare
from datasets.verify import main as verify_main
from datasets.verify import verify

WriteVideo = Callable[..., Path]
Frames = NDArray[np.uint8]
SIZE = (32, 48)


def grey(*brightness: int) -> Frames:
    """One frame a value."""
    values = np.asarray(brightness, np.uint8)[:, None, None, None]
    return np.ascontiguousarray(np.broadcast_to(values, (len(brightness), *SIZE, 3)))


def levels(frames: Frames) -> list[float]:
    return [float(x) for x in frames.astype(np.float64).mean(axis=(1, 2))]


def test_a_map_is_the_fourth_channel_and_the_frames_stay_as_they_are(
    write_video: WriteVideo,
) -> None:
    video = write_video("a.mp4", grey(0, 40, 80, 120, 160))
    maps = write_video("map.mp4", grey(200, 150, 100, 50, 0))
    plain = read_frames(video, 5, SIZE)
    both = read_frames(video, 5, SIZE, saliency=maps)
    assert both.shape == (5, *SIZE, 4)
    assert both.dtype == np.uint8
    np.testing.assert_array_equal(both[..., :3], plain)
    np.testing.assert_allclose(levels(both[..., 3]), [200, 150, 100, 50, 0], atol=3)


def test_maps_are_taken_at_the_moments_of_the_frames(write_video: WriteVideo) -> None:
    # The frames are shown from 0, 0.1, 0.2 and 0.9 s on, the last for 0.7 s like the one before:
    # 1.6 s, so that the moments are 0.2, 0.6, 1.0 and 1.4 s. A map comes every 0.4 s.
    video = write_video("a.mp4", grey(0, 40, 80, 120), stamps=[0, 1, 2, 9])
    maps = write_video("map.mp4", grey(10, 60, 110, 160), stamps=[0, 4, 8, 12])
    both = read_frames(video, 4, SIZE, saliency=maps)
    np.testing.assert_allclose(levels(both[..., 0]), [80, 80, 120, 120], atol=3)
    np.testing.assert_allclose(levels(both[..., 3]), [10, 60, 110, 160], atol=3)


def test_a_coloured_map_counts_by_its_brightness(write_video: WriteVideo) -> None:
    colour = np.zeros((3, *SIZE, 3), np.uint8)
    colour[..., 1] = 180
    both = read_frames(
        write_video("a.mp4", grey(0, 0, 0)), 3, SIZE, saliency=write_video("map.mp4", colour)
    )
    np.testing.assert_allclose(levels(both[..., 3]), [60, 60, 60], atol=4)


def test_maps_of_another_length_are_refused(write_video: WriteVideo) -> None:
    video, maps = write_video("a.mp4", grey(*range(20))), write_video("map.mp4", grey(*range(10)))
    with pytest.raises(MediaError, match=r"lasts 2\.00 s, its saliency maps 'map\.mp4' 1\.00 s"):
        read_frames(video, 4, SIZE, saliency=maps)


def test_maps_that_cannot_be_read_are_named(write_video: WriteVideo, tmp_path: Path) -> None:
    (tmp_path / "map.mp4").touch()
    with pytest.raises(MediaError, match=r"has unusable saliency maps: 'map\.mp4' is empty"):
        read_frames(write_video("a.mp4", grey(1, 2)), 2, SIZE, saliency=tmp_path / "map.mp4")


@pytest.fixture()
def corpus(write_video: WriteVideo) -> Corpus:
    """Two speakers, two emotions, a video and its maps each."""
    clips = []
    for number, (speaker, label) in enumerate(
        (s, e) for s in ("ann", "bob") for e in ("glad", "sad")
    ):
        name = f"{speaker}-{label}"
        clips.append(
            ClipRecord(
                clip=name,
                speaker=speaker,
                label=label,
                video=write_video(f"m/{name}.mp4", grey(10 * number, 20, 30)),
                saliency=write_video(f"m/{name}-map.mp4", grey(200, 200, 20 * number)),
            )
        )
    return Corpus(name="maps", labels=("glad", "sad"), clips=tuple(clips))


def test_maps_go_with_the_frames_into_shards_and_cache(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ShardSettings(frames=3, frame_size=SIZE, clips_per_shard=2)
    index = prepare(corpus, tmp_path / "out", settings)
    assert index.saliency_maps
    assert index.frame_shape == (*SIZE, 4)
    assert read_index(tmp_path / "out") == index
    by_name = {sample["clip"]: sample["video"] for sample in stream_clips(index)}
    batch = open_cache(index, tmp_path / "cache").batch(np.asarray([3, 0]), ["video"])
    assert batch["video"].shape == (2, 3, *SIZE, 4)
    np.testing.assert_array_equal(batch["video"][0], by_name["bob-sad"])
    np.testing.assert_allclose(levels(by_name["bob-sad"][..., 3]), [200, 200, 60], atol=4)
    assert verify(index).violations == []
    assert verify_main([index.root]) == 0
    assert "; video with saliency maps; skipped" in capsys.readouterr().out


def test_without_maps_frames_have_three_channels(corpus: Corpus, tmp_path: Path) -> None:
    blind = replace(corpus, clips=tuple(replace(r, saliency=None) for r in corpus.clips))
    index = prepare(blind, tmp_path / "out", ShardSettings(frames=3, frame_size=SIZE))
    assert (index.saliency_maps, index.frame_shape) == (False, (*SIZE, 3))
    assert next(iter(stream_clips(index)))["video"].shape == (3, *SIZE, 3)


def test_every_clip_with_video_has_a_map_or_none_has(corpus: Corpus) -> None:
    clips = [replace(r, saliency=None) if r.speaker == "bob" else r for r in corpus.clips]
    with pytest.raises(DataError, match=r"or none: 2 lack one: bob-glad, bob-sad\."):
        replace(corpus, clips=tuple(clips))
    # A clip without video needs none.
    deaf = replace(corpus.clips[3], video=None, saliency=None, features=np.ones(1, np.float32))
    assert replace(corpus, clips=(*corpus.clips[:3], deaf)).saliency_maps


def test_a_map_needs_its_video(corpus: Corpus) -> None:
    blind = (replace(corpus.clips[0], video=None), *corpus.clips[1:])
    with pytest.raises(DataError, match=r"'ann-glad' has a saliency map, but no video"):
        replace(corpus, clips=blind)


def test_a_clip_whose_maps_cannot_be_read_is_left_out_and_named(
    corpus: Corpus, tmp_path: Path
) -> None:
    assert corpus.clips[1].saliency is not None
    corpus.clips[1].saliency.write_bytes(b"")
    index = prepare(corpus, tmp_path / "out", ShardSettings(frames=3, frame_size=SIZE))
    assert [(s.clip, s.reason) for s in index.skipped] == [
        ("ann-sad", "'ann-sad.mp4' has unusable saliency maps: 'ann-sad-map.mp4' is empty")
    ]
    assert index.saliency_maps


def test_a_manifest_names_the_maps(tmp_path: Path) -> None:
    for name in ("a.mp4", "map.mp4", "a.wav"):
        (tmp_path / name).touch()
    head = "clip,speaker,label,audio,video,saliency\n"
    (tmp_path / "manifest.csv").write_text(
        head + "c1,ann,sad,a.wav,a.mp4, map.mp4\nc2,bob,sad,a.wav,,\n"
    )
    first, second = load_manifest(tmp_path).clips
    assert (first.saliency, second.saliency) == (tmp_path / "map.mp4", None)
    assert first.attributes == {}
    (tmp_path / "manifest.csv").write_text(
        head + "c1,ann,sad,a.wav,a.mp4,none.mp4\nc2,ann,sad,a.wav,,map.mp4\n"
    )
    with pytest.raises(DataError) as failure:
        load_manifest(tmp_path)
    assert [line.strip() for line in str(failure.value).splitlines()[1:]] == [
        "row 2: no such file 'none.mp4'",
        "row 3: a saliency map without video",
    ]
