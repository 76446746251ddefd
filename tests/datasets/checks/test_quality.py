"""What is suspicious about clips, and what their sources say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.checks.published_counts import compare_counts
from datasets.checks.quality import Suspects, drifting, durations, is_black, is_frozen, source_rates
from datasets.clips import ClipRecord, Part
from datasets.media.probe import measure_sources
from datasets.sharding.index import ShardIndex

MakeIndex = Callable[..., ShardIndex]
WriteSound = Callable[..., Path]
WriteVideo = Callable[..., Path]


def noise(seed: int = 0, frames: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (frames, 4, 6, 3), dtype=np.uint8)


def test_one_picture_all_along_is_frozen_and_a_moving_one_is_not() -> None:
    still = np.repeat(noise(frames=1), 5, axis=0)
    assert is_frozen(still)
    assert not is_frozen(noise())
    assert not is_frozen(still[:1]), "of one frame nobody can say"
    late = still.copy()
    late[-1] += 40
    assert not is_frozen(late)
    trembling = still.copy()
    trembling[1:, 0, 0] ^= 1  # as compression leaves it
    assert is_frozen(trembling)


def test_saliency_maps_do_not_make_a_still_picture_move() -> None:
    still = np.repeat(noise(frames=1), 3, axis=0)
    maps = np.arange(3, dtype=np.uint8)[:, None, None, None] * 80
    with_maps = np.concatenate([still, np.broadcast_to(maps, (3, 4, 6, 1))], axis=-1)
    assert is_frozen(with_maps)
    assert is_black(np.concatenate([still * 0, with_maps[..., 3:]], axis=-1))


def test_black_is_black_in_every_frame() -> None:
    black = np.full((3, 4, 6, 3), 3, np.uint8)
    assert is_black(black)
    black[1] = 120
    assert not is_black(black)


def test_suspects_are_named_once_each() -> None:
    suspects = Suspects()
    loud = np.full(100, -32768, np.int16)
    for clip, audio, video in (
        ("silent", loud * 0 + 32, noise()),
        ("clipped", loud, noise()),
        ("black", loud // 4, noise() * 0),
        ("frozen", loud // 4, np.repeat(noise(frames=1), 3, axis=0)),
        ("fine", loud // 4, noise()),
    ):
        suspects.look_at({"clip": clip, "audio": audio, "video": video})
    assert suspects == Suspects(["silent"], ["clipped"], ["frozen"], ["black"])


def of_lengths(make_index: MakeIndex, *seconds: tuple[float, float]) -> ShardIndex:
    """Clips c0, c1 … of so many seconds of sound and of pictures."""
    index = make_index([(f"c{n}", "ann", "sad") for n in range(len(seconds))])
    clips = tuple(
        replace(entry, samples=round(audio * 16_000), video_seconds=video)
        for entry, (audio, video) in zip(index.clips, seconds, strict=True)
    )
    return replace(index, clips=clips)


def test_clips_of_unusual_length_are_named_longest_first(make_index: MakeIndex) -> None:
    usual = [(2 + 0.1 * n, 0.0) for n in range(20)]
    found = durations(of_lengths(make_index, *usual, (0.05, 0.0), (60.0, 0.0), (90.0, 0.0)))
    assert list(found) == ["audio"], "the pictures' length is not known"
    assert found["audio"]["outliers"] == {"c22": 90.0, "c21": 60.0, "c20": 0.05}
    assert (found["audio"]["min"], found["audio"]["max"]) == (0.05, 90.0)
    assert found["audio"]["median"] == 3.0


def test_clips_of_like_length_have_no_outliers(make_index: MakeIndex) -> None:
    index = of_lengths(make_index, *[(2.0, 2.0)] * 20, (2.4, 2.4))
    assert [spread["outliers"] for spread in durations(index).values()] == [{}, {}]


def test_sound_and_pictures_may_differ_a_little(make_index: MakeIndex) -> None:
    index = of_lengths(
        make_index, (2.0, 2.19), (2.0, 2.5), (10.0, 10.4), (10.0, 8.0), (2.0, 0.0), (0.0, 2.0)
    )
    assert drifting(index) == {
        "c3": {"audio": 10.0, "video": 8.0},
        "c1": {"audio": 2.0, "video": 2.5},
    }


def test_rates_of_the_sources_are_counted_where_they_are_known(make_index: MakeIndex) -> None:
    index = make_index([(f"c{n}", "ann", "sad") for n in range(4)])
    rates = (48_000, 8_000, 48_000, 0)
    clips = [replace(e, source_rate_hz=r) for e, r in zip(index.clips, rates, strict=True)]
    assert source_rates(clips) == {8_000: 1, 48_000: 2}


def test_sources_say_their_rate_and_length(
    write_sound: WriteSound,
    write_video: WriteVideo,
    grey_frames: Callable[[int], NDArray[np.uint8]],
) -> None:
    sound = write_sound("a.wav", samples=8_000, rate_hz=8_000)
    stamps = (5, 6, 9, 20)  # tenths of a second: a variable rate, and a start that is not 0
    film = write_video("a.mkv", grey_frames(4), stamps=stamps)
    both = write_video("b.mkv", grey_frames(10), sound=np.zeros(16_000, np.int16))

    def measured(**files: object) -> dict[str, float]:
        record = ClipRecord(clip="a", speaker="ann", label="sad", **files)  # type: ignore[arg-type]
        return measure_sources(record)

    assert measured(audio=sound) == {"video_seconds": 0.0, "source_rate_hz": 8_000}
    # From 0.5 s to 2.0 s, where the last frame lasts as long as the one before.
    assert measured(audio=sound, video=film) == {
        "video_seconds": pytest.approx(2.6), "source_rate_hz": 8_000,
    }  # fmt: skip
    assert measured(audio=both, video=both) == {
        "video_seconds": pytest.approx(1.0), "source_rate_hz": 16_000,
    }  # fmt: skip
    part = Part(start_s=0.25, end_s=0.75)
    assert measured(video=both, video_part=part)["video_seconds"] == pytest.approx(0.5)
    assert measured(video=sound.with_name("gone.mkv"))["video_seconds"] == 0.0


def published(make_index: MakeIndex, corpus: str, rows: list[tuple[str, str, str]]) -> ShardIndex:
    return make_index(rows, corpus=corpus)


def test_spoken_and_sung_ravdess_have_counts_of_their_own(make_index: MakeIndex) -> None:
    sung = [
        (f"03-02-{n:04d}-{actor}", f"Actor_{actor:02d}", label)
        for actor in range(1, 24)
        for n, label in enumerate(
            ["neutral"] * 4 + ["calm", "happy", "sad", "angry", "fearful"] * 8
        )
    ]
    assert compare_counts(published(make_index, "ravdess", sung)) == {}
    assert compare_counts(published(make_index, "ravdess", sung[1:])) == {
        "class 'neutral'": {"found": 91, "published": 92},
        "speaker 'Actor_01'": {"found": 43, "published": 44},
    }
    spoken = [(clip.replace("03-02", "03-01"), *rest) for clip, *rest in sung]
    differs = compare_counts(published(make_index, "ravdess", spoken))  # type: ignore[arg-type]
    assert differs["class 'calm'"] == {"found": 184, "published": 192}
    assert differs["speaker 'Actor_23'"] == {"found": 44, "published": 60}


def test_iemocaps_four_classes_are_counted_by_session(make_index: MakeIndex) -> None:
    counts = {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
    labels = [label for label, count in counts.items() for _ in range(count)]
    sessions = [
        f"Ses0{n}F"
        for n, count in enumerate((1085, 1023, 1151, 1031, 1241), start=1)
        for _ in range(count)
    ]
    rows = [
        (f"c{n}", speaker, label)
        for n, (speaker, label) in enumerate(zip(sessions, labels, strict=True))
    ]
    index = published(make_index, "iemocap", rows)
    clips = [replace(e, attributes={"session": e.speaker[:5]}) for e in index.clips]
    assert compare_counts(replace(index, clips=tuple(clips))) == {}
    assert compare_counts(replace(index, clips=tuple(clips[:-1]))) == {
        "class 'sad'": {"found": 1083, "published": 1084},
        "session 'Ses05'": {"found": 1240, "published": 1241},
    }
