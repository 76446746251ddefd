from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
import torchaudio
from numpy.typing import NDArray

from datasets.clips import Part
from datasets.media import audio, video
from datasets.media.audio import read_audio
from datasets.media.containers import MediaError
from datasets.media.video import read_frames

GreyFrames = Callable[[int], NDArray[np.uint8]]


def brightness(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers of the frames that `grey_frames` made (20 steps of brightness apart)."""
    return [round(float(frame.mean()) / 20) for frame in frames]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_16_bit_samples_at_the_target_rate_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    samples = np.asarray([-32768, -32767, -1, 0, 1, 12345, 32766, 32767], np.int16)
    soundfile.write(tmp_path / f"clip{suffix}", samples, 16_000)
    decoded = read_audio(tmp_path / f"clip{suffix}", 16_000)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, samples)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.tile(np.asarray([[1000, 3000]], np.int16), (100, 1))
    soundfile.write(tmp_path / "clip.wav", stereo, 16_000)
    np.testing.assert_array_equal(read_audio(tmp_path / "clip.wav", 16_000), np.full(100, 2000))


# 44 101 and 16 000 share no factor; 11 025 Hz needs upsampling.
@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100, 44_101, 48_000])
def test_any_rate_is_resampled_to_the_target(tmp_path: Path, rate_hz: int) -> None:
    count = rate_hz // 10 + 1
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(count) / rate_hz)
    soundfile.write(tmp_path / "clip.wav", tone, rate_hz)
    decoded = read_audio(tmp_path / "clip.wav", 16_000)
    assert len(decoded) == -(-count * 16_000 // rate_hz)
    expected = 0.5 * 32768 * np.sin(2 * np.pi * 440 * np.arange(len(decoded)) / 16_000)
    inner = slice(100, -100)  # a filter has no neighbours at the ends
    np.testing.assert_allclose(decoded[inner], expected[inner], atol=100)


def test_a_rate_without_a_common_factor_builds_no_huge_filter_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("torchaudio takes 12 GB for 44 101 Hz to 16 000 Hz")

    monkeypatch.setattr(torchaudio.functional, "resample", refuse)
    soundfile.write(tmp_path / "clip.wav", np.zeros(4410), 44_101)
    assert len(read_audio(tmp_path / "clip.wav", 16_000)) == 1600
    soundfile.write(tmp_path / "plain.wav", np.zeros(4410), 44_100)
    with pytest.raises(AssertionError):  # the usual rates stay with torchaudio
        read_audio(tmp_path / "plain.wav", 16_000)


@pytest.mark.parametrize("suffix", [".mp3", ".ogg"])
def test_lossy_formats_decode_to_the_same_length(tmp_path: Path, suffix: str) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)
    soundfile.write(tmp_path / f"clip{suffix}", tone, 16_000)
    decoded = read_audio(tmp_path / f"clip{suffix}", 16_000)
    assert len(decoded) == 8000
    level = np.sqrt(np.mean((decoded / 32768.0) ** 2))
    assert level == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_samples_beyond_full_scale_are_clipped_not_wrapped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.asarray([1.5, -1.5, 0.5]), 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "clip.wav", 16_000), [32767, -32768, 16384])


def test_non_finite_samples_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.asarray([0.0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="holds non-finite samples"):
        read_audio(tmp_path / "clip.wav", 16_000)


@pytest.mark.parametrize("name", ["clip.wav", "clip.mp4"])
def test_files_that_hold_nothing_to_decode_are_refused(tmp_path: Path, name: str) -> None:
    readers: list[Callable[[Path], object]] = [
        lambda path: read_audio(path, 16_000),
        lambda path: read_frames(path, 2, (8, 8)),
    ]
    path = tmp_path / name
    for read in readers:
        path.unlink(missing_ok=True)
        with pytest.raises(MediaError, match=r"^no such file$"):
            read(path)
        path.touch()
        with pytest.raises(MediaError, match=r"^is empty$"):
            read(path)
        path.write_text("this is no recording\n" * 50)
        with pytest.raises(MediaError, match=r"^cannot be decoded: "):
            read(path)


@pytest.mark.parametrize("suffix", [".txt", ".nfo", ".png", ".m3u8", ".ffconcat", ".srt"])
def test_what_ffmpeg_would_draw_or_follow_is_no_recording(
    tmp_path: Path, write_video: Callable[..., Path], grey_frames: GreyFrames, suffix: str
) -> None:
    write_video("other.mp4", grey_frames(3))
    content = {
        ".m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
        ".ffconcat": b"ffconcat version 1.0\nfile other.mp4\n",
        ".png": cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes(),
        ".srt": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    }.get(suffix, b"this is no recording\n" * 50)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"^cannot be decoded: "):
        read_frames(path, 2, (8, 8))
    with pytest.raises(MediaError, match=r"^cannot be decoded: "):
        read_audio(path, 16_000)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov", ".flv", ".mpg", ".m4v", ".3gp"])
def test_every_usual_container_is_read(
    write_video: Callable[..., Path], grey_frames: GreyFrames, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".mpg":  # MPEG-1 knows no 10 frames a second
        path = tmp_path / "clip.mpg"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg1video", rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for image in grey_frames(10):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    else:
        path = write_video(f"clip{suffix}", grey_frames(10))
    assert brightness(read_frames(path, 4, (16, 24))) == [1, 3, 6, 8]


@pytest.mark.parametrize("suffix", [".wav", ".mp4"])
def test_a_name_that_is_not_utf_8_is_told(
    write_sound: Callable[..., Path], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / os.fsdecode(b"clip\xff" + suffix.encode())
    write_sound("clip.wav").rename(path)
    for read in (lambda: read_audio(path, 16_000), lambda: read_frames(path, 2, (8, 8))):
        with pytest.raises(MediaError, match=r"^has a name that is not UTF-8; rename it$"):
            read()


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").mkdir()
    with pytest.raises(MediaError, match=r"^no such file$"):
        read_audio(tmp_path / "clip.wav", 16_000)


def test_a_wav_of_no_samples_holds_no_sound(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.zeros(0), 16_000)
    with pytest.raises(MediaError, match="holds no sound"):
        read_audio(tmp_path / "clip.wav", 16_000)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_a_truncated_flac_is_refused_not_shortened(
    write_sound: Callable[..., Path], kept: float
) -> None:
    path = write_sound("clip.flac", samples=16_000)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(MediaError, match="cannot be decoded"):
        read_audio(path, 16_000)


@pytest.mark.parametrize("cut", [1, 100, 0.5])
def test_a_truncated_mp4_is_refused(
    write_video: Callable[..., Path], grey_frames: GreyFrames, cut: float
) -> None:
    path = write_video("clip.mp4", grey_frames(10))
    content = path.read_bytes()
    missing = cut if cut >= 1 else len(content) // 2
    path.write_bytes(content[:-missing])
    with pytest.raises(MediaError, match=r"is truncated: \d+ bytes are missing"):
        read_frames(path, 2, (8, 8))


def move_index_to_front(path: Path) -> None:
    """What FFmpeg calls faststart: the index lies before the pictures."""
    with av.open(str(path)) as source:
        out = path.with_name("front.mp4")
        with av.open(str(out), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    container.mux(packet)
    out.replace(path)


@pytest.mark.parametrize("cut", [1, 100])
def test_a_truncated_mp4_with_its_index_in_front_is_refused_not_shortened(
    write_video: Callable[..., Path], grey_frames: GreyFrames, cut: int
) -> None:
    path = write_video("clip.mp4", grey_frames(10))
    move_index_to_front(path)
    assert brightness(read_frames(path, 4, (16, 24))) == [1, 3, 6, 8]
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(MediaError, match=f"^is truncated: {cut} bytes are missing$"):
        read_frames(path, 4, (16, 24))


def test_what_lies_behind_an_mp4_does_not_make_it_truncated(
    write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    path = write_video("clip.mp4", grey_frames(10))
    for tail in (b"\0" * 9, b"\xff" * 40, b"\0\0\xff\xfffree"):
        path.write_bytes(path.read_bytes() + tail)
        assert brightness(read_frames(path, 4, (16, 24))) == [1, 3, 6, 8]


@pytest.mark.parametrize("container", ["avi", "mkv"])
def test_a_truncated_container_is_refused_not_shortened(
    write_video: Callable[..., Path], grey_frames: GreyFrames, container: str
) -> None:
    path = write_video(f"clip.{container}", grey_frames(10))
    assert len(read_frames(path, 4, (16, 24))) == 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(MediaError, match=r"^is truncated: \d+ bytes are missing$"):
        read_frames(path, 4, (16, 24))


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_truncated_wav_is_refused_not_shortened(
    write_sound: Callable[..., Path], kept: float
) -> None:
    path = write_sound("clip.wav", samples=16_000)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    missing = len(content) - int(len(content) * kept)
    with pytest.raises(MediaError, match=f"^is truncated: {missing} bytes are missing$"):
        read_audio(path, 16_000)


@pytest.mark.parametrize("kept", [4, 11, 20, 40])
def test_a_wav_that_ends_in_its_header_is_refused(
    write_sound: Callable[..., Path], kept: int
) -> None:
    path = write_sound("clip.wav")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MediaError, match=r"cannot be decoded|is truncated"):
        read_audio(path, 16_000)


@pytest.mark.parametrize("promised", [0, 0xFFFFFFFF])
def test_a_streamed_wav_that_promises_no_length_is_read(
    write_sound: Callable[..., Path], promised: int
) -> None:
    path = write_sound("clip.wav")
    whole = read_audio(path, 16_000)
    content = bytearray(path.read_bytes())
    content[4:8] = promised.to_bytes(4, "little")
    path.write_bytes(content)
    np.testing.assert_array_equal(read_audio(path, 16_000), whole)


def test_a_wav_without_the_padding_byte_that_it_counts_is_read(
    write_sound: Callable[..., Path],
) -> None:
    path = write_sound("clip.wav")
    content = bytearray(path.read_bytes())
    promised = int.from_bytes(content[4:8], "little") + 1
    content[4:8] = promised.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(read_audio(path, 16_000)) == 800


def test_an_overlong_sound_file_is_refused_before_it_is_decoded(
    write_sound: Callable[..., Path],
) -> None:
    # Three hours, 346 MB of which are a hole in the file: decoded it would take 691 MB.
    path = write_sound("clip.wav")
    size = 44 + 3 * 3600 * 16_000 * 2
    with path.open("r+b") as file:
        file.seek(4)
        file.write((size - 8).to_bytes(4, "little"))
        file.seek(40)
        file.write((size - 44).to_bytes(4, "little"))
        file.truncate(size)
    tracemalloc.start()
    try:
        with pytest.raises(MediaError, match=r"^is longer than 600 s; cut it into utterances$"):
            read_audio(path, 16_000)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_ten_minutes_are_the_longest_clip(tmp_path: Path) -> None:
    for seconds, fits in ((600, True), (601, False)):
        soundfile.write(tmp_path / "clip.wav", np.zeros(100 * seconds), 100)
        if fits:
            assert len(read_audio(tmp_path / "clip.wav", 200)) == 120_000
        else:
            with pytest.raises(MediaError, match="is longer than 600 s"):
                read_audio(tmp_path / "clip.wav", 200)


def test_overlong_sound_in_a_container_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("pcm_u8", rate=1000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.full((1, 601_000), 128, np.uint8), "u8", "mono")
        block.rate = 1000
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match=r"^is longer than 600 s; cut it into utterances$"):
        read_audio(tmp_path / "clip.mkv", 1000)


def test_a_container_without_sound_says_so(
    write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    with pytest.raises(MediaError, match=r"^has no sound$"):
        read_audio(write_video("clip.mp4", grey_frames(3)), 16_000)


def test_a_file_without_pictures_says_so(write_sound: Callable[..., Path]) -> None:
    with pytest.raises(MediaError, match=r"^has no pictures$"):
        read_frames(write_sound("clip.wav"), 2, (8, 8))


def test_a_container_gives_its_sound_in_mono_at_the_target_rate(tmp_path: Path) -> None:
    stereo = np.tile(np.asarray([[1000], [3000]], np.int16), (1, 4800)).T.reshape(1, -1)
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        block = av.AudioFrame.from_ndarray(stereo, format="s16", layout="stereo")
        block.rate = 48_000
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    decoded = read_audio(tmp_path / "clip.mkv", 16_000)
    assert len(decoded) == 1600
    np.testing.assert_allclose(decoded[100:-100], 2000, atol=2)


def test_sound_and_pictures_come_from_one_container(
    write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    sound = np.full(16_000, 3000, np.int16)
    path = write_video("clip.mp4", grey_frames(10), sound=sound)
    assert abs(len(read_audio(path, 16_000)) - 16_000) <= 2048  # AAC pads to whole blocks
    assert read_frames(path, 3, (8, 8)).shape == (3, 8, 8, 3)


def test_frames_are_spread_evenly_over_the_clip(
    write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    frames = read_frames(write_video("clip.mp4", grey_frames(10)), 4, (16, 24))
    assert frames.shape == (4, 16, 24, 3)
    assert frames.dtype == np.uint8
    # The middles of four quarters of a second at 10 frames a second: 0.125, 0.375, …
    assert brightness(frames) == [1, 3, 6, 8]


def test_frames_are_spread_in_time_where_the_frame_rate_varies(
    write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    # Five frames in the first half second, then one a second: 0, 0.1, … 0.4, 1, 2, … 5 s.
    stamps = [0, 1, 2, 3, 4, 10, 20, 30, 40, 50]
    path = write_video("clip.mkv", grey_frames(10), stamps=stamps)
    # The middles of four parts of 6 s: 0.75, 2.25, 3.75, 5.25.
    assert brightness(read_frames(path, 4, (16, 24))) == [4, 6, 7, 9]


def test_a_video_with_fewer_frames_than_asked_repeats_them(
    write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    path = write_video("clip.mp4", grey_frames(3))
    assert brightness(read_frames(path, 6, (16, 24))) == [0, 0, 1, 1, 2, 2]


def test_a_video_of_one_frame_fills_every_place(
    write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    path = write_video("clip.mp4", grey_frames(6)[5:])
    assert brightness(read_frames(path, 3, (16, 24))) == [5, 5, 5]


@pytest.mark.parametrize(("axis", "shape"), [(2, (32, 96)), (1, (96, 32))])
def test_the_centre_is_cropped_after_scaling(
    write_video: Callable[..., Path], axis: int, shape: tuple[int, int]
) -> None:
    # Black, white, black thirds along the long side: the square in the middle is white.
    image = np.zeros((2, *shape, 3), np.uint8)
    middle = [slice(None)] * 4
    middle[axis] = slice(32, 64)
    image[tuple(middle)] = 255
    frames = read_frames(write_video("clip.mp4", image), 1, (16, 16))
    assert frames[0, 2:-2, 2:-2].min() > 240


def test_colours_come_as_red_green_blue(write_video: Callable[..., Path]) -> None:
    image = np.zeros((2, 32, 32, 3), np.uint8)
    image[..., 0] = 220
    red, green, blue = read_frames(write_video("clip.mp4", image), 1, (8, 8))[0].mean(axis=(0, 1))
    assert red > 200
    assert max(green, blue) < 30


def test_clips_beyond_the_longest_allowed_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    write_sound: Callable[..., Path],
    write_video: Callable[..., Path],
    grey_frames: GreyFrames,
) -> None:
    monkeypatch.setattr("datasets.media.containers.MAX_CLIP_SECONDS", 1.0)
    message = "is longer than 1 s; cut it into utterances"
    with pytest.raises(MediaError, match=message):
        read_audio(write_sound("long.wav", samples=16_001), 16_000)
    assert len(read_audio(write_sound("fits.wav", samples=16_000), 16_000)) == 16_000
    with pytest.raises(MediaError, match=message):
        read_frames(write_video("long.mp4", grey_frames(12)), 2, (8, 8))
    assert len(read_frames(write_video("fits.mp4", grey_frames(10)), 2, (8, 8))) == 2


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        (".wav", "PCM_16"), (".wav", "PCM_24"), (".wav", "FLOAT"), (".flac", "PCM_16"), (".aiff", "PCM_16"),
        (".ogg", "VORBIS"), (".wav", "IMA_ADPCM"),
    ],
)  # fmt: skip
def test_a_part_of_a_sound_file_is_the_same_to_the_sample_as_with_all_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, subtype: str
) -> None:
    path = tmp_path / f"long{suffix}"
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (44_100 * 5, 2))
    soundfile.write(path, noise, 44_100, subtype=subtype)
    parts = [(0.0, 1.0), (1.23456, 2.5), (3.9, 5.0), (4.5, 5.1), (4.99, 5.0)]
    found = [read_audio(path, 16_000, Part(start_s=start, end_s=end)) for start, end in parts]
    monkeypatch.setattr(audio, "_seek", lambda *_: None)
    for (start, end), heard in zip(parts, found, strict=True):
        expected = read_audio(path, 16_000, Part(start_s=start, end_s=end))
        np.testing.assert_array_equal(heard, expected)


def test_what_lies_before_a_part_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "long.flac", np.zeros(16_000 * 20), 16_000)
    read: list[int] = []
    real = soundfile.SoundFile.read

    def count(self: soundfile.SoundFile, *arguments: object, **options: object) -> object:
        samples = real(self, *arguments, **options)
        read.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    assert len(read_audio(tmp_path / "long.flac", 16_000, Part(start_s=18.0, end_s=19.0))) == 16_000
    assert sum(read) == 16_000


def test_a_part_behind_the_end_of_a_sound_file_is_told(write_sound: Callable[..., Path]) -> None:
    path = write_sound("clip.wav", samples=16_000)
    with pytest.raises(MediaError, match=r"^lasts 1\.00 s, its part ends at 3\.00 s$"):
        read_audio(path, 16_000, Part(start_s=2.0, end_s=3.0))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MediaError, match="is truncated: 100 bytes are missing"):
        read_audio(path, 16_000, Part(start_s=0.1, end_s=0.2))


@pytest.mark.parametrize("held", [0, 64 * 2**20], ids=["unseen", "seen before"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_only_frames_that_are_taken_are_converted(
    monkeypatch: pytest.MonkeyPatch,
    write_video: Callable[..., Path],
    grey_frames: GreyFrames,
    suffix: str,
    held: int,
) -> None:
    path = write_video(f"clip{suffix}", grey_frames(12))
    converted: list[float] = []
    real = video._scale_and_crop

    def count(frame: av.VideoFrame, *arguments: object) -> NDArray[np.uint8]:
        converted.append(frame.time)
        return real(frame, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(video, "_scale_and_crop", count)
    monkeypatch.setattr(video, "_HELD_PACKET_BYTES", held)
    frames = read_frames(path, 4, (16, 24))
    assert brightness(frames) == [1, 4, 7, 10]
    assert len(converted) == (4 if held else 12)
    part = Part(start_s=0.35, end_s=0.85)
    converted.clear()
    assert brightness(read_frames(path, 2, (16, 24), part=part)) == [4, 7]
    assert len(converted) == (2 if held else 9)  # from the key frame, at the beginning


def test_packets_that_announce_other_moments_change_nothing(
    monkeypatch: pytest.MonkeyPatch, write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    path = write_video("clip.mp4", grey_frames(12))
    right = video._look_ahead

    def wrong(*arguments: object) -> object:
        packets, stamps = right(*arguments)  # type: ignore[arg-type]
        return packets, stamps * 1.7 + 0.01

    monkeypatch.setattr(video, "_look_ahead", wrong)
    assert brightness(read_frames(path, 4, (16, 24))) == [1, 4, 7, 10]


def test_sound_of_an_unknown_kind_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, write_video: Callable[..., Path], grey_frames: GreyFrames
) -> None:
    # Found by mutation: two bytes of the codec's name, or of the sample rate.
    path = write_video("clip.mkv", grey_frames(4), sound=np.zeros(8000, np.int16))
    content = path.read_bytes()
    assert content.count(b"A_AAC") == 1
    path.write_bytes(content.replace(b"A_AAC", b"A_QQQ"))
    with pytest.raises(MediaError, match=r"^cannot be decoded: it has sound of an unknown kind$"):
        read_audio(path, 16_000)
    assert len(read_frames(path, 2, (8, 8))) == 2
    path.write_bytes(content.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XXX"))
    with pytest.raises(MediaError, match="it has pictures of an unknown kind"):
        read_frames(path, 2, (8, 8))


REAL = [
    # (file, seconds of sound, as the sources state it)
    ("grid/bbaf2n.mpg", 2.98),
    ("ravdess_video/01-01-01-01-01-01-01.mp4", 3.3),
    ("crema_d/1001_DFA_HAP_XX.flv", 1.9),
]


@pytest.mark.parametrize(("name", "seconds"), REAL)
def test_real_containers_decode_to_frames_and_sound(
    corpora: Path, name: str, seconds: float
) -> None:
    sound = read_audio(corpora / name, 16_000)
    assert len(sound) / 16_000 == pytest.approx(seconds, abs=0.05)
    assert np.abs(sound.astype(np.int32)).max() > 1000
    frames = read_frames(corpora / name, 5, (60, 100))
    assert frames.shape == (5, 60, 100, 3)
    assert frames.std() > 20  # a picture, not a grey field
    assert (frames[0] != frames[4]).any()


def test_a_real_stereo_recording_becomes_mono(corpora: Path) -> None:
    path = corpora / "ravdess" / "Actor_01" / "03-01-02-01-01-02-01.flac"
    stereo, rate_hz = soundfile.read(path, dtype="int16")
    assert stereo.shape[1] == 2
    decoded = read_audio(path, 16_000)
    assert rate_hz == 16_000
    assert len(decoded) == len(stereo)
    assert np.abs(decoded - stereo.astype(np.int32).mean(axis=1)).max() <= 0.5
