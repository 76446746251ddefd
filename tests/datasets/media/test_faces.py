"""Frames of the face: found, chosen, cut out; and what happens where there is none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from datasets import verify
from datasets.clips import ClipRecord, Corpus, DataError, Part
from datasets.media import video
from datasets.media.crop import Crop
from datasets.media.faces import (
    Box,
    CascadeDetector,
    FaceFinder,
    Spread,
    YunetDetector,
    centre,
    crop_by,
    cut_out,
    fitting,
    open_finder,
    steadiest,
)
from datasets.media.preview import _some, write_preview
from datasets.media.video import read_frames, take_frames
from datasets.media.windows import Windows, read_windows
from datasets.prepare import main
from datasets.sharding import writer as module
from datasets.sharding.index import read_index
from datasets.sharding.stream import stream_clips
from datasets.sharding.writer import ShardSettings, prepare
from tests.faces import FACE, square, write_yunet

Frames = NDArray[np.uint8]
WriteVideo = Callable[..., Path]
HAAR = Crop(kind="face")


class Bright:
    """Takes what is bright for one face, of just that size."""

    short_side = 10_000

    def detect(self, picture: Frames) -> list[Box]:
        rows, columns = np.nonzero(picture.min(axis=2) > 150)
        if not len(rows):
            return []
        left, top = int(columns.min()), int(rows.min())
        return [Box(left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top)]


def finder(margin: float = 0.0) -> FaceFinder:
    return FaceFinder(Bright(), margin)


def film(*places: tuple[int, int], side: int = 64, size: tuple[int, int] = (240, 320)) -> Frames:
    return np.stack([square(left, top, side=side, size=size) for left, top in places])


def yunet(path: Path) -> Crop:
    return Crop(
        kind="face",
        detector="yunet",
        model_sha256=hashlib.sha256(write_yunet(path).read_bytes()).hexdigest(),
    )


# Which box


@pytest.mark.parametrize("size", [(60, 100), (96, 96), (48, 48), (112, 112), (100, 60)])
@pytest.mark.parametrize("middle", [(0, 0), (160, 120), (319, 10), (5, 239)])
@pytest.mark.parametrize("side", [10.0, 90.0, 500.0])
def test_a_box_has_the_frames_aspect_and_lies_in_the_picture(
    size: tuple[int, int], middle: tuple[int, int], side: float
) -> None:
    box = fitting(middle, side, (240, 320), size)
    width, height = box.width * 320, box.height * 240
    assert width / height == pytest.approx(size[1] / size[0])
    assert box.left >= 0
    assert box.top >= 0
    assert box.left + box.width <= 1 + 1e-9
    assert box.top + box.height <= 1 + 1e-9
    most = min(240 / size[0], 320 / size[1]) * min(size)
    assert min(width, height) == pytest.approx(min(side, most)), "no larger than it must be"


def test_a_box_is_around_its_middle_unless_the_edge_moves_it() -> None:
    box = fitting((100, 80), 40, (240, 320), (60, 120))
    assert np.allclose(box, (60 / 320, 60 / 240, 80 / 320, 40 / 240))
    assert np.allclose(fitting((0, 239), 40, (240, 320), (60, 60)), (0, 200 / 240, 0.125, 40 / 240))
    assert np.allclose(centre((240, 320), (60, 60)), (40 / 320, 0, 240 / 320, 1))


def test_the_margin_is_added_on_every_side() -> None:
    face = Box(100, 100, 40, 20)
    box = finder(0.5).around(face, (240, 320), (96, 96))
    assert np.allclose(box, (80 / 320, 70 / 240, 80 / 320, 80 / 240))


def test_a_few_false_detections_do_not_move_the_box() -> None:
    right, wrong = Box(100, 100, 50, 50), Box(10, 10, 80, 80)
    assert steadiest([[right]] * 5 + [[wrong]] * 2) == right
    assert steadiest([[right]] * 6 + [[Box(103, 96, 70, 70)]]) == right
    assert steadiest([[], [], [], [right]]) == right, "a quarter of the pictures is enough"
    assert steadiest([[], [], [], [], [right]]) is None
    assert steadiest([[], []]) is None


def test_of_two_faces_the_larger_is_taken_throughout() -> None:
    large, small = Box(10, 10, 60, 60), Box(200, 20, 30, 30)
    assert steadiest([[large, small]] * 7) == large
    assert steadiest([[small]] + [[large, small]] * 6) == large
    # A large one that is there in two of seven pictures is a passer-by.
    assert steadiest([[large, small]] * 2 + [[small]] * 5) == small


@pytest.mark.parametrize("count", [1, 5, 7, 8, 14, 15, 28, 29, 1000])
def test_pictures_are_spread_over_a_stream_of_unknown_length(count: int) -> None:
    made: list[int] = []
    some: Spread[int] = Spread(7)
    for number in range(count):
        some.offer(lambda number=number: made.append(number) or number)  # type: ignore[func-returns-value,misc]
    taken = some.taken()
    assert len(taken) == min(count, 7)
    assert taken == sorted(set(taken))
    assert np.diff([0, *taken, count - 1]).max() <= max(1, count / 3)
    assert len(made) <= 14 + 7 * max(0, np.log2(count / 7)), "hardly more than are held"


# What is cut out


def test_a_face_is_cut_out_and_scaled(write_video: WriteVideo) -> None:
    path = write_video("a.mp4", film(*[(40, 120)] * 6))
    taken = take_frames(path, 4, (32, 32), faces=finder())
    assert taken.face is True
    assert taken.frames.shape == (4, 32, 32, 3)
    assert taken.frames[:, 2:-2, 2:-2].mean() > 240, "bright alone"
    wide = take_frames(path, 4, (32, 64), faces=finder()).frames
    assert wide[:, 2:-2, 18:-18].mean() > 240
    assert wide[:, :, :12].mean() < 80
    assert wide[:, :, -12:].mean() < 80
    with_margin = take_frames(path, 4, (32, 32), faces=finder(0.5)).frames
    assert with_margin[:, 10:22, 10:22].mean() > 240
    assert with_margin[:, :6].mean() < 80


@pytest.mark.parametrize("place", [(0, 0), (256, 176), (0, 176), (256, 0)])
def test_a_face_at_the_pictures_edge_stays_whole(
    write_video: WriteVideo, place: tuple[int, int]
) -> None:
    path = write_video("a.mp4", film(*[place] * 3))
    taken = take_frames(path, 2, (32, 32), faces=finder(0.5))
    assert taken.face is True
    # A 64-pixel square in a crop of 128: a quarter of it, in the corner that it is in.
    bright = (taken.frames[0].min(axis=2) > 150).mean()
    assert bright == pytest.approx(0.25, abs=0.03)


def test_without_a_face_the_centre_is_taken(write_video: WriteVideo) -> None:
    dark = np.zeros((3, 240, 320, 3), np.uint8)
    dark[:, :, 40:280] = 120
    path = write_video("a.mp4", dark)
    taken = take_frames(path, 2, (60, 60), faces=finder())
    assert taken.face is False
    assert taken.frames.min() > 100, "the middle 240 of 320 columns"


def test_the_box_is_one_for_the_clip_and_a_stray_detection_does_not_move_it(
    write_video: WriteVideo,
) -> None:
    path = write_video("a.mp4", film(*[(100, 80)] * 6, (220, 10)))
    box = take_frames(path, 7, (32, 32), faces=finder()).box
    assert box is not None
    assert np.allclose(box, (100 / 320, 80 / 240, 64 / 320, 64 / 240), atol=0.01)


def test_a_long_clip_is_decoded_twice_to_the_same_frames(
    write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video("a.mp4", film(*[(3 * n, 100) for n in range(40)], size=(480, 640)))
    faces = finder(0.3)
    for part in (None, Part(start_s=0.95, end_s=3.05), Part(start_s=0.5, end_s=2.0, half="left")):
        given = {"part": part, "faces": faces}
        held = take_frames(path, 9, (48, 48), **given)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(video, "_HELD_BYTES", 1_000_000)
            again = take_frames(path, 9, (48, 48), **given)  # type: ignore[arg-type]
        np.testing.assert_array_equal(held.frames, again.frames)
        assert held.box == again.box


def test_the_frames_of_a_face_are_those_of_the_centres_moments(write_video: WriteVideo) -> None:
    frames = film(*[(100, 80)] * 10)
    for number, frame in enumerate(frames):
        frame[80:144, 100:164] = 155 + 10 * number
    path = write_video("a.mp4", frames, stamps=[0, 1, 2, 3, 4, 10, 20, 30, 40, 50])
    plain = read_frames(path, 6, (240, 320))[:, 112, 132].mean(axis=1)
    faces = read_frames(path, 6, (16, 16), faces=finder())[:, 8, 8].mean(axis=1)
    np.testing.assert_allclose(faces, plain, atol=3)
    assert len({round(value / 10) for value in plain}) > 3


@pytest.mark.parametrize("half", ["left", "right"])
def test_a_face_is_looked_for_in_its_half_alone(write_video: WriteVideo, half: str) -> None:
    frames = film(*[(40, 100)] * 10, side=32)
    frames[:, 20:120, 200:300] = 255  # a larger one in the right half
    path = write_video("a.mp4", frames)
    part = Part(start_s=0.2, end_s=0.8, half=half)  # type: ignore[arg-type]
    taken = take_frames(path, 3, (32, 32), part=part, faces=finder())
    expected = {"left": (40, 100, 32, 32), "right": (40, 20, 100, 100)}[half]
    assert taken.box is not None
    shares = np.asarray(expected) / (160, 240, 160, 240)
    np.testing.assert_allclose(taken.box, shares, atol=0.015)
    assert taken.frames[:, 2:-2, 2:-2].mean() > 240


def test_a_half_without_a_face_falls_back_though_the_other_has_one(write_video: WriteVideo) -> None:
    path = write_video("a.mp4", film(*[(40, 100)] * 10))
    part = Part(start_s=0.2, end_s=0.8, half="right")
    assert take_frames(path, 3, (32, 32), part=part, faces=finder()).face is False


def test_saliency_maps_are_cut_by_the_faces_box(write_video: WriteVideo) -> None:
    path = write_video("a.mp4", film(*[(100, 80)] * 5))
    maps = np.zeros((5, 120, 160, 3), np.uint8)  # of half the size
    maps[:, 40:72, 50:82] = 200
    both = read_frames(path, 3, (32, 32), saliency=write_video("map.mp4", maps), faces=finder())
    assert both.shape == (3, 32, 32, 4)
    assert both[:, 3:-3, 3:-3, 3].min() > 180
    np.testing.assert_array_equal(both[..., :3], read_frames(path, 3, (32, 32), faces=finder()))


def test_shrinking_takes_the_mean_of_what_a_pixel_covers() -> None:
    fine = np.indices((64, 64)).sum(axis=0) % 2 * 255
    picture = np.repeat(fine[..., None], 3, axis=2).astype(np.uint8)
    small = cut_out(picture, Box(0, 0, 1, 1), (16, 16))
    assert np.abs(small.astype(int) - 127).max() <= 1, "no checks are left of a chessboard"


def test_tiny_pictures_do_no_harm(write_video: WriteVideo) -> None:
    path = write_video("a.mp4", np.zeros((3, 16, 16, 3), np.uint8))
    faces = open_finder(HAAR)
    assert take_frames(path, 2, (60, 100), faces=faces).frames.shape == (2, 60, 100, 3)


# Over time


def test_the_box_follows_a_moving_face_from_window_to_window(
    write_video: WriteVideo,
) -> None:
    path = write_video("a.mp4", film(*[(4 * n, 80) for n in range(60)]))  # 40 pixels a second
    cut = list(
        read_windows(path, Windows(2.0, 0.5), frames=8, frame_size=(32, 64), faces=finder(0.5))
    )
    assert len(cut) == 9
    for window in cut:
        assert window.video is not None
        bright = (window.video.min(axis=3) > 150).mean(axis=(1, 2))
        assert bright.min() > 0.06, "in every frame of every window the face is there"
        assert bright.max() < 0.14


def test_a_window_without_a_face_shows_the_centre(write_video: WriteVideo) -> None:
    frames = film(*[(10, 10)] * 40)
    frames[20:] = 90
    path = write_video("a.mp4", frames)
    first, last = read_windows(
        path, Windows(2.0, 2.0), frames=4, frame_size=(32, 32), faces=finder()
    )
    assert first.video is not None
    assert last.video is not None
    assert first.video[:, 3:-3, 3:-3].mean() > 240
    assert 80 < last.video.mean() < 100


def test_a_window_that_is_a_whole_clip_shows_what_the_clip_does(write_video: WriteVideo) -> None:
    path = write_video("a.mp4", film(*[(100, 80)] * 30))
    (window,) = read_windows(
        path, Windows(9.0, 3.0), frames=6, frame_size=(32, 32), faces=finder(0.3)
    )
    np.testing.assert_array_equal(window.video, read_frames(path, 6, (32, 32), faces=finder(0.3)))


def test_long_windows_of_faces_are_refused(write_video: WriteVideo) -> None:
    path = write_video("a.mp4", film((0, 0)))
    cut = read_windows(path, Windows(31, 10), frames=4, frame_size=(32, 32), faces=finder())
    with pytest.raises(DataError, match=r"cropped to a face lasts 30 s at most, not 31 s"):
        next(cut)


# At a rate


@pytest.mark.parametrize(("seconds", "rate", "count"), [(1.0, 5, 5), (3.0, 4, 12), (0.1, 2, 1)])
def test_a_rate_takes_so_many_frames_of_every_second(
    write_video: WriteVideo, seconds: float, rate: float, count: int
) -> None:
    frames = np.zeros((round(seconds * 10), 32, 32, 3), np.uint8)
    frames += (8 * np.arange(len(frames), dtype=np.uint8))[:, None, None, None]
    found = read_frames(write_video("a.mp4", frames), 20, (16, 16), rate_hz=rate)
    assert len(found) == count
    shown = [min(int((n + 0.5) / rate * 10), len(frames) - 1) for n in range(count)]
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), [8 * n for n in shown], atol=2)


def test_at_the_videos_own_rate_every_frame_is_taken_once(
    write_video: WriteVideo, grey_frames: Callable[[int], Frames]
) -> None:
    found = read_frames(write_video("a.mp4", grey_frames(12)), 20, (32, 48), rate_hz=10)
    assert [round(float(frame.mean()) / 20) for frame in found] == list(range(12))


def test_frames_at_a_rate_keep_time_with_the_sound_where_the_videos_rate_varies(
    write_video: WriteVideo, grey_frames: Callable[[int], Frames]
) -> None:
    # 0, 0.1, … 0.4 s, then one a second to 4 s: it lasts 5 s. One in the middle of every half second.
    path = write_video("a.mp4", grey_frames(9), stamps=[0, 1, 2, 3, 4, 10, 20, 30, 40])
    found = read_frames(path, 20, (32, 48), rate_hz=2)
    assert [round(float(frame.mean()) / 20) for frame in found] == [2, 4, 5, 5, 6, 6, 7, 7, 8, 8]


def test_windows_at_a_rate_are_those_of_a_clip(
    write_video: WriteVideo, grey_frames: Callable[[int], Frames]
) -> None:
    path = write_video("a.mp4", grey_frames(12))
    (window,) = read_windows(path, Windows(9, 3), frames=20, frame_size=(16, 16), rate_hz=5)
    np.testing.assert_array_equal(window.video, read_frames(path, 20, (16, 16), rate_hz=5))


# What prepares, remembers and verifies


@pytest.fixture(scope="module")
def films(write_film: WriteVideo, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three clips with a bright square, one without, of two speakers; a manifest beside them."""
    folder = tmp_path_factory.mktemp("films")
    places = {"a1": (64, 96), "a2": (256, 128), "b1": (160, 32), "b2": None}
    clips = []
    for name, place in places.items():
        frames = (
            film(*[place] * 8, side=32, size=(320, 480)) if place else film(*[(0, 0)] * 8, side=0)
        )
        path = write_film(
            folder / f"{name}.mp4", frames if place else np.full((8, 320, 480, 3), 40, np.uint8)
        )
        clips.append(
            ClipRecord(
                clip=name, speaker=name[0], label="glad" if "1" in name else "sad", video=path
            )
        )
    rows = [f"{r.clip},{r.speaker},{r.label},{r.video.name}" for r in clips if r.video]
    (folder / "manifest.csv").write_text("\n".join(["clip,speaker,label,video", *rows]))
    return Corpus(name="films", labels=("glad", "sad"), clips=tuple(clips))


def home(films: Corpus) -> Path:
    """The folder with the films and their manifest."""
    assert films.clips[0].video is not None
    return films.clips[0].video.parent


def faced(tmp_path: Path, **given: object) -> ShardSettings:
    model = tmp_path / "model.onnx"
    crop = yunet(model)
    given = {"frames": 3, "frame_size": (48, 48), "clips_per_shard": 2, **given}
    return ShardSettings(crop=crop, face_model=model, **given)  # type: ignore[arg-type]


def test_clips_without_a_face_are_counted_and_named(
    films: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = faced(tmp_path)
    index = prepare(films, tmp_path / "out", settings)
    assert index.faceless == ("b2",)
    assert index.crop == settings.crop
    line = "face found in 3 of 4 clips with video; centre crop: b2"
    assert index.faces_found() == line
    assert verify.main([str(tmp_path / "out"), "--protocol", "speaker-kfold:2"]) == 0
    assert f"note: {line}" in capsys.readouterr().out
    for sample in stream_clips(index):
        bright = (sample["video"].min(axis=3) > 150).mean()
        # The square is a third of its face, which has 0.3 of itself on every side.
        assert bright == pytest.approx(
            (1 / 3 / 1.6) ** 2 if sample["clip"] != "b2" else 0, abs=0.02
        )


def test_many_clips_without_a_face_are_counted_and_ten_named(
    make_index: Callable[..., object],
) -> None:
    index = make_index([(f"c{n:02d}", "ann", "sad") for n in range(14)])
    assert index.faces_found() is None  # type: ignore[attr-defined]
    clips = tuple(replace(e, frames=3) for e in index.clips)  # type: ignore[attr-defined]
    lost = tuple(e.clip for e in clips[1:])
    found = replace(index, clips=clips, crop=HAAR, faceless=lost).faces_found()  # type: ignore[type-var]
    assert found.startswith("face found in 1 of 14 clips with video; centre crop: c01, c02")
    assert found.endswith("c10…")


def test_an_index_says_how_frames_were_taken_and_an_old_one_the_centre(
    films: Corpus, tmp_path: Path
) -> None:
    settings = faced(tmp_path, frame_rate=5.0)
    index = prepare(films, tmp_path / "out", settings)
    assert (index.crop, index.frame_rate) == (settings.crop, 5.0)
    assert {entry.frames for entry in index.clips} == {4}
    path = tmp_path / "out" / "index.json"
    document = json.loads(path.read_text())
    assert document["format_version"] == 1
    for key in ("crop", "frame_rate", "faceless"):
        del document[key]
    path.write_text(json.dumps(document))
    old = read_index(tmp_path / "out")
    assert (old.crop, old.frame_rate, old.faceless) == (Crop(), 0.0, ())
    document["crop"] = {"kind": "mouth"}
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"Unknown crop 'mouth'\. Known: centre, face"):
        read_index(tmp_path / "out")


@pytest.mark.parametrize(
    "other",
    [{"crop": Crop()}, {"frame_rate": 3.0}, {"crop": Crop(kind="face", margin=0.4)}],
)
def test_an_interrupted_preparation_is_taken_up_with_the_same_crop_alone(
    films: Corpus, tmp_path: Path, other: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    some = replace(films, clips=films.clips[:2])
    settings = ShardSettings(crop=HAAR, frame_rate=2.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_merge", stop)
        prepare(some, tmp_path / "out", settings)
    with pytest.raises(DataError, match="another corpus or with other settings"):
        prepare(some, tmp_path / "out", replace(settings, **other))  # type: ignore[arg-type]
    assert prepare(some, tmp_path / "out", settings).crop == HAAR


def test_a_moved_face_model_is_the_same_one(films: Corpus, tmp_path: Path) -> None:
    one = faced(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    other = faced(tmp_path / "elsewhere")
    assert one.face_model != other.face_model
    assert one.identity() == other.identity()
    json.dumps(one.identity())


def test_several_processes_crop_as_one_does(films: Corpus, tmp_path: Path) -> None:
    settings = faced(tmp_path)
    one = prepare(films, tmp_path / "one", settings, workers=1)
    two = prepare(films, tmp_path / "two", settings, workers=2)
    assert [e.content_hash for e in one.clips] == [e.content_hash for e in two.clips]
    assert two.faceless == ("b2",)


# YuNet, by a network of ours with its interface


def test_yunet_finds_boxes_in_the_pictures_pixels(tmp_path: Path) -> None:
    detector = YunetDetector(write_yunet(tmp_path / "model.onnx").read_bytes())
    assert detector.detect(square(96, 128, side=32)) == [
        Box(96 + 16 - FACE / 2, 128 + 16 - FACE / 2, FACE, FACE)
    ]
    assert detector.detect(np.zeros((200, 333, 3), np.uint8)) == [], "any size"
    # A picture twice as large is scaled for it.
    large = np.repeat(np.repeat(square(96, 128, side=32), 2, axis=0), 2, axis=1)
    (box,) = FaceFinder(detector, 0.3).look(large)
    assert np.allclose(box, (128, 192, 2 * FACE, 2 * FACE))


@pytest.mark.parametrize("content", [None, b"", b"no network", "truncated", "another network"])
def test_a_face_model_that_cannot_be_used_is_one_line(
    tmp_path: Path, content: bytes | str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    if content == "truncated":
        path.write_bytes(write_yunet(path).read_bytes()[:-1000])
    elif content == "another network":
        model = onnx.load_from_string(write_yunet(path).read_bytes())
        del model.graph.output[-1]
        path.write_bytes(model.SerializeToString())
    elif isinstance(content, bytes):
        path.write_bytes(content)
    arguments = ["synthetic", "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--crop", "face", "--face-model", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert str(path) in line
    assert "--face-model" in line
    expected = "No such file" if content is None else "is no YuNet that OpenCV"
    assert expected in line
    assert not (tmp_path / "root").exists(), "nothing was rendered before"


def test_a_face_model_without_a_face_crop_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_yunet(tmp_path / "model.onnx")
    assert crop_by("face", 0.2, model).detector == "yunet"
    with pytest.raises(DataError, match="--face-model goes with --crop face"):
        crop_by("centre", 0.3, model)
    with pytest.raises(DataError, match="0 to 2 times its size, not 3"):
        crop_by("face", 3.0, None)


def test_another_model_than_the_corpus_was_cropped_with_is_refused(tmp_path: Path) -> None:
    crop = yunet(tmp_path / "model.onnx")
    with pytest.raises(DataError, match=f"SHA-256 {crop.model_sha256}. Name that file"):
        open_finder(crop, None)
    (tmp_path / "other.onnx").write_bytes(b"other")
    with pytest.raises(DataError, match=r"'.*other.onnx' is another face model"):
        open_finder(crop, tmp_path / "other.onnx")


def test_an_opencv_without_cascades_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "CascadeClassifier")  # as in 5.x
    with pytest.raises(DataError, match=r"Install opencv-python-headless 4\.x, or name a YuNet"):
        CascadeDetector()


# The command line and the contact sheet


def test_the_sheet_shows_picture_and_crop_and_where_there_was_no_face(
    films: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_yunet(tmp_path / "model.onnx")
    root, sheet = home(films), tmp_path / "sheets" / "sheet.png"
    arguments = ["manifest", "--root", str(root), "--crop", "face", "--face-model", str(model)]
    assert main([*arguments, "--preview", str(sheet), "--preview-only"]) == 0
    assert capsys.readouterr().out == f"preview of 4 clips, face found in 3: {sheet}\n"
    picture = cv2.imread(str(sheet))[..., ::-1].astype(int)
    # Three cells in the first row; the fourth has no face: its border is red, the others' green.
    cells = [picture[20:200, 540 * n : 540 * (n + 1)] for n in range(3)] + [picture[236:420, :540]]
    borders = [cell[:, 4:7].mean(axis=(0, 1)) for cell in cells]
    assert [int(np.argmax(border)) for border in borders] == [1, 1, 1, 0]
    assert main([*arguments, "--preview", str(sheet), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "preview of 4 clips, face found in 3" in out
    assert "\nface found in 3 of 4 clips with video; centre crop: b2\n" in out


def test_the_sheet_names_what_cannot_be_read_and_goes_on(films: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a1.mp4").write_bytes(b"no film")
    broken = replace(films.clips[0], video=tmp_path / "a1.mp4")
    films = replace(films, clips=(broken, *films.clips[1:]))
    line = write_preview(films, tmp_path / "sheet.jpg", count=3, size=(48, 48))
    assert line == f"preview of 4 clips, 1 cannot be read: {tmp_path / 'sheet.jpg'}"
    assert (tmp_path / "sheet.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_the_sheet_takes_clips_of_all_speakers() -> None:
    clips = tuple(
        ClipRecord(clip=f"{s:02d}-{n}", speaker=str(s), label="sad", video=Path("x.mp4"))
        for s in range(10)
        for n in range(9 if s else 1)
    )
    some = _some(Corpus(name="x", labels=("sad",), clips=clips))
    assert len(some) == 24
    assert {record.speaker for record in some} == {str(s) for s in range(10)}
    assert len({record.clip for record in some}) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--out", "o", "--preview", "sheet.txt"],
            "The preview is a .png or .jpg, not 'sheet.txt'",
        ),
        (["--out", "o", "--face-margin", "nan"], "expected 0 to 2, got 'nan'"),
        (["--out", "o", "--face-margin", "-1"], "expected 0 to 2, got '-1'"),
        (["--out", "o", "--frame-rate", "0"], "expected up to 100, got '0'"),
        (["--out", "o", "--frame-rate", "25", "--frames", "8"], "not allowed with argument"),
        (["--preview-only"], "--preview-only goes with --preview"),
        ([], "the following arguments are required: --out"),
        (["--out", "o", "--crop", "mouth"], "invalid choice: 'mouth'"),
    ],
)
def test_what_cannot_be_asked_is_told(
    films: Corpus,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["manifest", "--root", str(home(films)), *arguments])
    except SystemExit as end:  # argparse's own
        code = int(end.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_sheet_that_cannot_be_written_is_one_line(
    films: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    sheet = tmp_path / "file" / "sheet.png"
    root = home(films)
    assert main(["manifest", "--root", str(root), "--preview", str(sheet), "--preview-only"]) == 2
    assert f"Cannot write '{sheet}'" in capsys.readouterr().err


# Real recordings


def still(path: Path, picture: Frames) -> Path:
    """A short video of one picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        stream.options = {"crf": "12"}
        for position in range(5):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = position
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_the_cascade_finds_one_face_of_every_ravdess_actor(corpora: Path, tmp_path: Path) -> None:
    detector = CascadeDetector()
    looks, clips = FaceFinder(detector, 0.3), []
    for path in sorted((corpora / "ravdess_frames").glob("*.png")):
        picture = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
        (face,) = looks.look(picture)
        assert 0.25 < face.width / picture.shape[0] < 0.75
        video = still(tmp_path / f"{path.stem}.mp4", picture)
        clips.append(ClipRecord(clip=path.stem, speaker=path.stem, label="calm", video=video))
    assert len(clips) == 24
    for size, count in (((60, 100), 24), ((96, 96), 24), ((48, 48), 3), ((112, 112), 3)):
        corpus = Corpus(name="frames", labels=("calm",), clips=tuple(clips[:count]))
        out = tmp_path / f"{size[0]}"
        index = prepare(corpus, out, ShardSettings(frames=2, frame_size=size, crop=HAAR))
        assert index.faces_found() == f"face found in {count} of {count} clips with video"
        for sample in stream_clips(index):
            assert sample["video"].shape == (2, *size, 3)
            # What was cut out is a face again, large and about in the middle.
            found = looks.look(np.repeat(np.repeat(sample["video"][0], 3, axis=0), 3, axis=1))
            assert len(found) == 1
            middle = found[0].left + found[0].width / 2
            assert middle / (3 * size[1]) == pytest.approx(0.5, abs=0.12)
            assert 0.35 < found[0].width / (3 * size[0]) < 0.95


def test_faces_are_found_in_every_kind_of_container(corpora: Path) -> None:
    faces = open_finder(HAAR)
    paths = [
        *sorted((corpora / "grid").glob("*.mpg")),
        *sorted((corpora / "crema_d").glob("*.flv")),
        *sorted((corpora / "ravdess_video").glob("*.mp4")),
    ]
    assert len(paths) == 8
    for path in paths:
        taken = take_frames(path, 20, (112, 112), faces=faces)
        assert taken.face is True, path.name
        assert taken.frames.shape == (20, 112, 112, 3)


def test_real_containers_give_as_many_frames_as_their_rate_says(corpora: Path) -> None:
    # Of CREMA-D's containers the average rate is wrong; 67 frames in 2.24 s.
    flv = corpora / "crema_d" / "1001_DFA_ANG_XX.flv"
    assert len(read_frames(flv, 20, (16, 16), rate_hz=25)) == 56
    for path in sorted((corpora / "grid").glob("*.mpg")):
        at_rate = read_frames(path, 20, (60, 100), rate_hz=25)
        assert len(at_rate) == 75
        np.testing.assert_array_equal(at_rate, read_frames(path, 75, (60, 100)))
    (mp4,) = (corpora / "ravdess_video").glob("*.mp4")
    assert len(read_frames(mp4, 20, (16, 16), rate_hz=10)) == 33
