"""Recordings cut into windows: each is what a clip cut to that time would be."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from datasets.clips import DataError
from datasets.media.audio import read_audio
from datasets.media.containers import MediaError
from datasets.media.windows import Windows, read_windows


@pytest.fixture()
def noise(tmp_path: Path) -> Path:
    """3.7 s of sound at 22.05 kHz in two channels."""
    path = tmp_path / "noise.wav"
    samples = np.random.default_rng(0).normal(0, 0.1, (round(3.7 * 22_050), 2))
    soundfile.write(path, samples, 22_050, subtype="FLOAT")
    return path


def times(path: Path, seconds: float, hop: float) -> list[tuple[float, float]]:
    cut = read_windows(path, Windows(seconds, hop), sample_rate_hz=16_000)
    return [(round(w.start, 3), round(w.end, 3)) for w in cut]


def test_the_last_window_ends_with_the_recording(noise: Path) -> None:
    assert times(noise, 2.0, 1.0) == [(0, 2), (1, 3), (1.7, 3.7)]
    assert times(noise, 1.7, 1.0) == [(0, 1.7), (1, 2.7), (2, 3.7)]
    assert times(noise, 1.0, 1.0) == [(0, 1), (1, 2), (2, 3), (2.7, 3.7)]
    assert times(noise, 1.65, 1.0) == [(0, 1.65), (1, 2.65), (2, 3.65)], "0.05 s are no window"
    assert times(noise, 10.0, 1.0) == [(0, 3.7)], "shorter than a window"


def test_a_window_sounds_like_a_file_of_that_part_alone(noise: Path, tmp_path: Path) -> None:
    samples, rate = soundfile.read(noise)
    for window in read_windows(noise, Windows(1.3, 0.4), sample_rate_hz=16_000):
        part = samples[round(window.start * rate) : round(window.end * rate)]
        soundfile.write(tmp_path / "part.wav", part, rate, subtype="FLOAT")
        np.testing.assert_array_equal(window.audio, read_audio(tmp_path / "part.wav", 16_000))


def write_grey(path: Path, seconds: int, *, sound_seconds: float = 0.0) -> None:
    """Pictures 10 a second, grey as their time says (20 a second); a tone beside them."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=10)
        video.height, video.width, video.pix_fmt = 16, 16, "gray"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for index in range(seconds * 10):
            image = np.full((16, 16), 2 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="gray")
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound_seconds:
            tone = np.sin(np.arange(round(sound_seconds * 8000))) * 8000
            frame = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], layout="mono")
            frame.rate, frame.pts = 8000, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def test_pictures_are_those_of_the_windows_time(tmp_path: Path) -> None:
    write_grey(tmp_path / "film.mkv", 6)
    cut = read_windows(tmp_path / "film.mkv", Windows(2.0, 1.5), frames=4, frame_size=(8, 8))
    seen = {}
    for window in cut:
        assert window.video is not None
        assert window.video.shape == (4, 8, 8, 3)
        seen[round(window.start, 6), round(window.end, 6)] = window.video[:, 0, 0, 0].tolist()
    # Shown a quarter, three quarters … of a second after the start: 20 grey values a second.
    assert list(seen) == [(0, 2), (1.5, 3.5), (3, 5), (4, 6)]
    for (start, _), greys in seen.items():
        wanted = [20 * start + 2 * frame for frame in (2, 7, 12, 17)]
        np.testing.assert_allclose(greys, wanted, atol=1)


def test_where_one_of_them_ends_early_the_other_goes_on(tmp_path: Path) -> None:
    write_grey(tmp_path / "film.mkv", 6, sound_seconds=3.4)
    found = list(
        read_windows(
            tmp_path / "film.mkv",
            Windows(2.0, 2.0),
            sample_rate_hz=8000,
            frames=2,
            frame_size=(8, 8),
        )
    )
    assert [len(w.audio) if w.audio is not None else 0 for w in found] == [16_000, 11_200, 0]
    assert found[2].lacking == {"audio": "its sound ends at 3.4 s"}
    assert all(w.video is not None for w in found)


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(40):  # 2000 s, three times what a clip may last
            file.write(0.1 * np.sin(np.arange(400_000)))
    tracemalloc.start()
    count = sum(1 for _ in read_windows(path, Windows(20, 20), sample_rate_hz=8000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100
    assert peak < 30 * 2**20, "64 MB if it were held whole"


@pytest.mark.parametrize(
    ("seconds", "hop", "message"),
    [
        (0.0, 1.0, "0.25 to 600 s, not 0.0 s"),
        (-3.0, 1.0, "not -3.0 s"),
        (float("nan"), 1.0, "not nan s"),
        (601.0, 1.0, "not 601.0 s"),
        (3.0, 0.0, "0.0 s would not do"),
        (3.0, float("nan"), "nan s would not do"),
        (3.0, 3.5, "at most the window .3.0 s.: 3.5 s would not do"),
    ],
)
def test_impossible_windows_are_told(seconds: float, hop: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Windows(seconds, hop)


def test_a_recording_that_breaks_off_says_so_after_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "broken.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 200 * 16_000), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = read_windows(path, Windows(10, 10), sample_rate_hz=16_000)
    assert next(found).end == 10
    with pytest.raises(MediaError, match="cannot be decoded"):
        list(found)
