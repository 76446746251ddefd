"""What networks were trained on is what they are given: the same frames of the same crop."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus
from datasets.media import faces
from datasets.media.crop import CENTRE, Crop
from datasets.media.faces import open_finder
from datasets.media.video import read_frames
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import ShardIndex, read_index
from datasets.sharding.stream import stream_clips
from datasets.sharding.writer import ShardSettings, prepare
from ensembles import EnsembleError, serve
from ensembles.artifact import standalone
from ensembles.artifact.manifest import Artifact, read_artifact
from ensembles.export import main as export_main
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.writer import export
from ensembles.inference.predictor import Answer, Clip, Predictor
from ensembles.inference.sliding_windows import timeline
from ensembles.serving.decode import _decode
from ensembles.serving.limits import Limits
from models import build_expert
from models.registry import ClipShape
from search.data.training_data import clip_shape
from tests.faces import square, write_yunet

Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]
Prepared = Callable[[str, float], ShardIndex]
SIZE = (60, 100)


@pytest.fixture(scope="module")
def yunet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yunet(tmp_path_factory.mktemp("model") / "bright-squares.onnx")


@pytest.fixture(scope="module")
def by_yunet(yunet: Path) -> Crop:
    digest = hashlib.sha256(yunet.read_bytes()).hexdigest()
    return Crop(kind="face", detector="yunet", model_sha256=digest)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four films; a bright square moves every second in all but the last."""
    folder, clips = tmp_path_factory.mktemp("films"), []
    for number, seconds in enumerate((1, 2, 3, 2)):
        path = folder / f"film{number}.mp4"
        frames = [
            square(128 + 64 * number, 192 + 64 * (t // 10), side=64 * (number < 3), size=(640, 960))
            for t in range(10 * seconds)
        ]
        _write(path, frames)
        clips.append(
            ClipRecord(
                clip=path.stem, speaker=f"s{number % 2}", label="ab"[number // 2], video=path
            )
        )
    return Corpus(name="films", labels=("a", "b"), clips=tuple(clips))


@pytest.fixture(scope="module")
def prepared(
    films: Corpus, by_yunet: Crop, yunet: Path, tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    """The films in shards, by crop and frame rate, each made once; to be read."""

    @cache
    def prepare_films(kind: str, rate: float) -> ShardIndex:
        crop = {"centre": CENTRE, "haar": Crop(kind="face"), "yunet": by_yunet}[kind]
        settings = ShardSettings(frames=8, frame_rate=rate, crop=crop, face_model=yunet)
        return prepare(films, tmp_path_factory.mktemp("shards") / "films", settings)

    return prepare_films


def _write(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for position, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = position
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def artifact_like(
    exported_video: Path, folder: Path, edit: Edit, index: ShardIndex, yunet: Path
) -> Artifact:
    """The exported ensemble, as if its networks had been trained on the corpus of `index`."""
    shutil.copytree(exported_video, folder)
    shutil.copyfile(yunet, folder / "face-model.onnx")

    def change(document: dict[str, Any]) -> None:
        document["crop"], document["frame_rate"] = index.crop.to_json(), index.frame_rate
        digest = hashlib.sha256(yunet.read_bytes()).hexdigest()
        document["files"]["face-model.onnx"] = digest

    edit(folder, change)
    return read_artifact(folder)


@pytest.mark.parametrize("rate", [0.0, 4.0])
@pytest.mark.parametrize("kind", ["centre", "haar", "yunet"])
def test_prediction_sees_the_frames_of_the_shards(
    kind: str, rate: float, films: Corpus, prepared: Prepared, yunet: Path, exported_video: Path,
    edit_manifest: Edit, tmp_path: Path,
) -> None:  # fmt: skip
    index = prepared(kind, rate)
    artifact = artifact_like(exported_video, tmp_path / "ensemble", edit_manifest, index, yunet)
    assert (artifact.crop, artifact.frame_rate) == (index.crop, rate)
    assert index.crop.kind == ("centre" if kind == "centre" else "face")
    predictor, alone = Predictor(artifact), standalone.Ensemble(artifact.folder)
    videos = {record.clip: record.video for record in films.clips}
    lengths = set()
    for sample in stream_clips(index):
        path = videos[sample["clip"]]
        assert path is not None
        found = predictor.load(path).arrays["video"]
        np.testing.assert_array_equal(found, sample["video"])
        np.testing.assert_array_equal(alone._load(path)[0]["video"], found)
        lengths.add(len(found))
    assert lengths == ({8} if not rate else {4, 8, 12})
    if kind == "yunet":
        assert index.faceless == ("film3",)
        plain = read_frames(films.clips[0].video, 8, SIZE, rate_hz=rate)  # type: ignore[arg-type]
        assert (plain != predictor.load(films.clips[0].video).arrays["video"]).any()  # type: ignore[arg-type]


def test_real_recordings_are_cropped_alike_everywhere(
    corpora: Path, exported_video: Path, edit_manifest: Edit, yunet: Path, tmp_path: Path
) -> None:
    paths = [
        next((corpora / "grid").glob("*.mpg")),
        next((corpora / "crema_d").glob("*.flv")),
        next((corpora / "ravdess_video").glob("*.mp4")),
    ]
    clips = tuple(
        ClipRecord(clip=path.stem, speaker=str(n), label="a", video=path)
        for n, path in enumerate(paths)
    )
    corpus = Corpus(name="real", labels=("a",), clips=clips)
    index = prepare(corpus, tmp_path / "shards", ShardSettings(frames=8, crop=Crop(kind="face")))
    assert index.faceless == ()
    artifact = artifact_like(exported_video, tmp_path / "ensemble", edit_manifest, index, yunet)
    predictor, alone = Predictor(artifact), standalone.Ensemble(artifact.folder)
    for sample in stream_clips(index):
        (path,) = (path for path in paths if path.stem == sample["clip"])
        np.testing.assert_array_equal(predictor.load(path).arrays["video"], sample["video"])
        np.testing.assert_array_equal(alone._load(path)[0]["video"], sample["video"])


def test_windows_and_uploads_are_cropped_to_the_face_too(
    films: Corpus, prepared: Prepared, yunet: Path, exported_video: Path, edit_manifest: Edit,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    index = prepared("yunet", 0.0)
    predictor = Predictor(
        artifact_like(exported_video, tmp_path / "ensemble", edit_manifest, index, yunet)
    )
    path = films.clips[2].video  # of 3 s, the square a little above the middle
    assert path is not None
    seen: list[Clip] = []
    predict = predictor.clips

    def record(clips: list[Clip], **how: Any) -> list[Answer]:
        seen.extend(clips)
        return predict(clips, **how)

    monkeypatch.setattr(predictor, "clips", record)
    moments = list(timeline(predictor, path, 1.0, 1.0))
    assert len(seen) == len(moments) == 3
    assert [moment.reason for moment in moments] == [None] * 3
    request = {
        "path": str(path),
        "out": str(tmp_path / "decoded.npz"),
        "limits": vars(Limits(window_seconds=1.0, hop_seconds=1.0)),
    }
    assert len(_decode(predictor, request)["windows"]) == 3
    with np.load(tmp_path / "decoded.npz") as decoded:
        uploaded = dict(decoded)
    np.testing.assert_array_equal(uploaded["video"], predictor.load(path).arrays["video"])
    for number, clip in enumerate(seen):
        np.testing.assert_array_equal(uploaded[f"{number} video"], clip.arrays["video"])
        # A face of 96 pixels around a square of 32, and 0.3 of it on every side: the square is in its middle.
        bright = (clip.arrays["video"].min(axis=3) > 150).mean(axis=(1, 2))
        assert np.allclose(bright, (1 / 4.8) ** 2 * 60 / 100, atol=0.012)


def test_the_server_refuses_long_windows_of_faces(
    exported_video: Path, edit_manifest: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(exported_video, tmp_path / "ensemble"))
    edit_manifest(folder, lambda document: document.update(crop=Crop(kind="face").to_json()))
    assert serve.main([str(folder), "--window", "31"]) == 2
    assert "cropped to a face last 30 s at most, got --window 31" in capsys.readouterr().err


def test_a_recording_without_a_face_says_nothing_wrong(
    films: Corpus, prepared: Prepared, yunet: Path, exported_video: Path, edit_manifest: Edit,
    tmp_path: Path,
) -> None:  # fmt: skip
    index = prepared("yunet", 0.0)
    artifact = artifact_like(exported_video, tmp_path / "ensemble", edit_manifest, index, yunet)
    answers = list(Predictor(artifact).files([r.video for r in films.clips if r.video]))
    assert [answer.error for answer in answers] == [None] * 4


def test_an_artifact_without_its_face_model_is_refused(
    exported_video: Path, edit_manifest: Edit, by_yunet: Crop, yunet: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported_video, tmp_path / "ensemble"))
    edit_manifest(folder, lambda document: document.update(crop=by_yunet.to_json()))
    with pytest.raises(EnsembleError, match=r"no checksum of face-model.onnx"):
        read_artifact(folder)
    shutil.copyfile(yunet, folder / "face-model.onnx")
    edit_manifest(folder, lambda document: document["files"].update({"face-model.onnx": "0" * 64}))
    with pytest.raises(EnsembleError, match=r"face-model\.onnx' is truncated or changed"):
        read_artifact(folder)


def test_exports_carry_the_crop_and_its_model(
    video_run: Path, by_yunet: Crop, yunet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_run(video_run)
    assert run.summary["inputs"]["crop"] == {"kind": "centre"}
    assert run.summary["inputs"]["frame_rate"] == 0.0
    inputs = {**run.summary["inputs"], "crop": by_yunet.to_json(), "frame_rate": 12.5}
    faced = replace(run, summary={**run.summary, "inputs": inputs})
    with pytest.raises(EnsembleError, match=f"SHA-256 {by_yunet.model_sha256}. Name that file"):
        export(faced, tmp_path / "without")
    assert not (tmp_path / "without").exists()
    export(faced, tmp_path / "with", face_model=yunet)
    artifact = read_artifact(tmp_path / "with")
    assert (artifact.crop, artifact.frame_rate) == (by_yunet, 12.5)
    assert (tmp_path / "with" / "face-model.onnx").read_bytes() == yunet.read_bytes()
    assert Predictor(artifact).faces is open_finder(by_yunet, tmp_path / "with" / "face-model.onnx")
    card = " ".join((tmp_path / "with" / "model-card.md").read_text().split())
    assert (
        "(clips, frames, 60, 100, 3) uint8 RGB, 12.5 frames of every second, of the face that"
        in card
    )
    assert "YuNet finds, with a margin of 0.3 of its size" in card
    out = tmp_path / "needless"
    arguments = [str(video_run), "--out", str(out), "--face-model", str(yunet)]
    assert export_main(arguments) == 2
    assert "show the centre; leave out --face-model" in capsys.readouterr().err


def test_a_run_of_before_there_was_a_choice_exports_the_centre(
    video_run: Path, tmp_path: Path
) -> None:
    run = read_run(video_run)
    inputs = {k: v for k, v in run.summary["inputs"].items() if k not in ("crop", "frame_rate")}
    export(replace(run, summary={**run.summary, "inputs": inputs}), tmp_path / "out")
    document = json.loads((tmp_path / "out" / "ensemble.json").read_text())
    assert not {"crop", "frame_rate"} & set(document)
    artifact = read_artifact(tmp_path / "out")
    assert (artifact.crop, artifact.frame_rate) == (CENTRE, 0.0)
    assert (
        "8, 60, 100, 3) uint8 RGB, frames evenly spread, of the centre"
        in (tmp_path / "out" / "model-card.md").read_text()
    )


def test_the_folders_own_program_needs_opencv_for_faces_alone(
    exported_video: Path, edit_manifest: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(exported_video, tmp_path / "ensemble"))
    monkeypatch.setattr(faces, "cv2", None)
    open_finder.cache_clear()
    standalone.Ensemble(folder)
    edit_manifest(folder, lambda document: document.update(crop=Crop(kind="face").to_json()))
    with pytest.raises(EnsembleError, match=r"opencv-python-headless 4.x is needed"):
        standalone.Ensemble(folder)


def test_networks_take_clips_of_different_numbers_of_frames(films: Corpus, tmp_path: Path) -> None:
    index = prepare(films, tmp_path / "shards", ShardSettings(frame_rate=5.0))
    assert sorted({entry.frames for entry in index.clips}) == [5, 10, 15]
    shape = clip_shape(read_index(tmp_path / "shards"))
    assert shape.frames == 10, "of a typical clip"
    opened = open_cache(index, tmp_path / "cache")
    batch = opened.batch(np.arange(4), ["video"])
    assert batch["video"].shape[1] == 15
    assert isinstance(shape, ClipShape)
    for architecture in ("frame_cnn", "cnn3d"):
        expert = build_expert(architecture, {}, shape).eval()
        with torch.inference_mode():
            together = expert(batch)
            each = [expert(opened.batch(np.asarray([row]), ["video"])) for row in range(4)]
        torch.testing.assert_close(together, torch.cat(each), atol=1e-5, rtol=1e-4)
