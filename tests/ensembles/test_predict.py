"""Files in, probabilities out: what the run predicted comes back, and bad files are named."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch

from datasets.features import FeatureTable, read_features
from ensembles.artifact.manifest import read_artifact
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.writer import export
from ensembles.inference.predictor import Answer, Backend, Clip, Predictor, collate
from ensembles.predict import find_media, main

ALL = ("audio-0000", "video-0000", "early-0000")
both_backends = pytest.mark.parametrize("backend", ["onnx", "torch"])


@pytest.fixture(scope="module")
def predictors(exported: Path) -> dict[str, Predictor]:
    artifact = read_artifact(exported)
    return {backend: Predictor(artifact, backend) for backend in ("onnx", "torch")}


@pytest.fixture(scope="module")
def features(small_run: Any) -> FeatureTable:
    return read_features(small_run.features)


def published(path: Path, labels: tuple[str, ...]) -> dict[str, tuple[int, list[float]]]:
    """Clip → its fold and posterior, from a file of predictions."""
    with path.open() as file:
        return {
            row["clip"]: (int(row["fold"]), [float(row[label]) for label in labels])
            for row in csv.DictReader(file)
        }


def values(answer: Answer) -> list[float]:
    assert answer.error is None
    return list(answer.probabilities.values())


@both_backends
def test_each_fold_predicts_its_own_clips_as_the_run_did(
    predictors: dict[str, Predictor], small_run: Any, features: FeatureTable, backend: Backend
) -> None:
    predictor = predictors[backend]
    expected = published(small_run.path / "predictions.csv", predictor.artifact.labels)
    assert len(expected) == 18
    for fold in range(3):
        clips = [clip for clip, (held_out, _) in expected.items() if held_out == fold]
        paths = [small_run.media[clip] for clip in clips]
        found = list(predictor.files(paths, features=features, fold=fold))
        assert [answer.name for answer in found] == [str(path) for path in paths]
        assert all(set(a.experts) == set(predictor.artifact.by_fold[fold].experts) for a in found)
        np.testing.assert_allclose(
            [values(answer) for answer in found], [expected[clip][1] for clip in clips], atol=1e-4
        )
        # Another fold's networks trained on these speakers, and say something else.
        other = list(predictor.files(paths, features=features, fold=(fold + 1) % 3))
        difference = np.abs(np.subtract([values(a) for a in found], [values(a) for a in other]))
        assert difference.max() > 0.05


@both_backends
def test_the_test_speakers_are_predicted_as_the_run_did(
    predictors: dict[str, Predictor], small_run: Any, features: FeatureTable, backend: Backend
) -> None:
    predictor = predictors[backend]
    expected = published(small_run.path / "predictions_test.csv", predictor.artifact.labels)
    assert len(expected) == 6
    assert {fold for fold, _ in expected.values()} == {-1}
    paths = [small_run.media[clip] for clip in expected]
    found = list(predictor.files(paths, features=features))
    assert all(set(answer.experts) == set(ALL) for answer in found)
    table = [posterior for _, posterior in expected.values()]
    np.testing.assert_allclose([values(answer) for answer in found], table, atol=1e-4)
    assert np.ptp(table, axis=0).max() > 0.05, "the clips are not told apart"


@both_backends
def test_a_clips_answer_does_not_depend_on_the_others(
    predictors: dict[str, Predictor], small_run: Any, features: FeatureTable, backend: Backend
) -> None:
    predictor, paths = predictors[backend], list(small_run.media.values())[::3]
    together = list(predictor.files(paths, features=features))
    backwards = list(predictor.files(paths[::-1], features=features))[::-1]
    for path, one, other in zip(paths, together, backwards, strict=True):
        np.testing.assert_allclose(values(one), values(other), atol=1e-5)
        (alone,) = predictor.files([path], features=features)
        np.testing.assert_allclose(values(one), values(alone), atol=1e-5)
        assert sum(values(one)) == pytest.approx(1.0)


@both_backends
def test_a_clip_that_lacks_an_input_changes_no_other(
    predictors: dict[str, Predictor],
    small_run: Any,
    features: FeatureTable,
    tiny_corpus: Any,
    backend: Backend,
) -> None:
    predictor = predictors[backend]
    sound, pictures = tiny_corpus.clips[7].audio, tiny_corpus.clips[8].video
    whole = small_run.media["s00-sad-00"]
    mixed = list(predictor.files([sound, whole, pictures, whole], features=features))
    assert [set(answer.experts) for answer in mixed] == [
        {"audio-0000", "early-0000"}, set(ALL), {"video-0000"}, set(ALL)
    ]  # fmt: skip
    (alone,) = predictor.files([whole], features=features)
    np.testing.assert_allclose(values(mixed[1]), values(alone), atol=1e-5)
    assert mixed[0].notes == ("no video: is a sound file",)
    assert mixed[2].notes == ("no audio: has no sound",)


def test_sound_alone_is_predicted_by_the_audio_expert_alone(
    predictors: dict[str, Predictor], tiny_corpus: Any
) -> None:
    (answer,) = predictors["onnx"].files([tiny_corpus.clips[0].audio])
    assert answer.experts == ("audio-0000",)
    assert answer.notes == ("no video: is a sound file", "no features: came without any")
    # One expert pooled with itself is that expert.
    clip = predictors["onnx"].load(tiny_corpus.clips[0].audio)
    fused = predictors["onnx"].artifact.substitutes[frozenset({"audio"})]
    (expected,) = np.exp(predictors["torch"].log_posteriors(collate([clip]), fused))
    np.testing.assert_allclose(values(answer), expected, atol=1e-4)


def test_the_columns_of_features_are_found_by_name(
    predictors: dict[str, Predictor], small_run: Any, features: FeatureTable
) -> None:
    path = small_run.media["s01-angry-00"]
    swapped = FeatureTable(
        features.names[::-1], {clip: row[::-1] for clip, row in features.rows.items()}
    )
    (one,), (other,) = (
        list(predictors["onnx"].files([path], features=table)) for table in (features, swapped)
    )
    assert values(one) == values(other)
    wrong = FeatureTable(features.names, {clip: row[::-1] for clip, row in features.rows.items()})
    (third,) = predictors["onnx"].files([path], features=wrong)
    assert values(one) != values(third)


def test_tensors_can_be_predicted_without_files(predictors: dict[str, Predictor]) -> None:
    generator = np.random.default_rng(0)
    clip = Clip("noise", {"audio": generator.normal(0, 0.1, 9000).astype(np.float32)})
    answers = predictors["onnx"].clips([clip, Clip("nothing", {}), clip])
    assert answers[0].experts == ("audio-0000",)
    assert values(answers[0]) == pytest.approx(values(answers[2]), abs=1e-6)
    assert answers[1].error is not None


def test_files_are_padded_together_with_zeros() -> None:
    clips = [
        Clip("a", {"audio": np.ones(3, np.float32)}),
        Clip("b", {"audio": np.ones(5, np.float32)}),
    ]
    batch = collate(clips)
    assert batch["audio"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert torch.equal(batch["audio_lengths"], torch.tensor([3, 5]))


def run_command(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr."""
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def test_json_has_one_object_a_line_and_file(
    exported: Path, small_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [small_run.media["s02-sad-00"], small_run.media["s02-angry-00"]]
    arguments = [exported, *paths, "--json", "--features", small_run.features]
    code, out, err = run_command(capsys, *arguments)
    assert (code, err) == (0, [])
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in paths]
    for line in lines:
        assert set(line) == {"file", "label", "probabilities", "experts", "notes"}
        assert sum(line["probabilities"].values()) == pytest.approx(1.0)
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)
        assert (set(line["experts"]), line["notes"]) == (set(ALL), [])


def test_csv_has_a_header_and_one_row_a_file(
    exported: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Path(shutil.copy(small_run.media["s02-sad-00"], tmp_path / 'a, "b".mkv'))
    paths = [odd, tmp_path / "none.wav", small_run.media["s02-angry-00"]]
    code, out, err = run_command(capsys, exported, *paths, "--csv")
    assert code == 2
    assert err[0] == f"error: '{paths[1]}' no such file"
    labels = read_artifact(exported).labels
    assert out.splitlines()[0] == ",".join(["file", "label", *labels, "experts", "notes", "reason"])
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert (rows[1]["label"], rows[1]["reason"]) == ("", "no such file")
    _, out, _ = run_command(capsys, exported, *paths, "--json")
    for row, text in list(zip(rows, out.splitlines(), strict=True))[::2]:
        document = json.loads(text)
        assert (row["label"], row["reason"]) == (document["label"], "")
        assert row["experts"].split() == document["experts"]
        for label, value in document["probabilities"].items():
            assert float(row[label]) == pytest.approx(value, abs=1e-6)


def test_a_table_names_each_file_as_it_is_called(
    exported: Path, tiny_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "150")
    names = ["[red] take.flac", "take [1].flac", "ä b.flac"]
    for name in names:
        shutil.copy(tiny_corpus.clips[0].audio, tmp_path / name)
    code, out, err = run_command(capsys, exported, *(tmp_path / name for name in names))
    assert code == 0
    for name in names:
        assert name in out
    assert err == [
        "note: 3 of 3 files: no video: is a sound file; predicted by experts that need none",
        "note: 3 of 3 files: no features: came without any; predicted by experts that need none",
    ]


def test_a_folder_stands_for_the_media_below_it(
    exported: Path, tiny_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "media" / "b").mkdir(parents=True)
    (tmp_path / "media" / "folder.mp4").mkdir()
    (tmp_path / "media" / "notes.txt").write_text("no media")
    for name in ("b/2.FLAC", "1.flac"):
        shutil.copy(tiny_corpus.clips[0].audio, tmp_path / "media" / name)
    code, out, _ = run_command(capsys, exported, tmp_path / "media", "--json")
    assert code == 0
    files = [Path(json.loads(line)["file"]) for line in out.splitlines()]
    assert files == [tmp_path / "media" / "1.flac", tmp_path / "media" / "b" / "2.FLAC"]
    given = [tmp_path / "x.wav", tmp_path / "media"]
    assert find_media(given) == ([tmp_path / "x.wav", *files], [])


def test_an_empty_folder_is_named_and_the_others_go_on(
    exported: Path, tiny_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    clip = tiny_corpus.clips[0].audio
    code, out, err = run_command(capsys, exported, tmp_path / "folder.mp4", clip, "--json")
    assert code == 2
    assert json.loads(out)["file"] == str(clip)
    assert f"error: No sound or video files in '{tmp_path / 'folder.mp4'}'." in err


def missing(path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.touch()


def a_folder_of_that_name(path: Path) -> None:
    path.mkdir()
    (path / "readme.txt").touch()


def text(path: Path) -> None:
    path.write_text("this is no recording\n" * 50)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def silent_wav(path: Path) -> None:
    soundfile.write(path, np.zeros(16_000), 16_000)


def nearly_silent_wav(path: Path) -> None:
    soundfile.write(path, 3e-4 * np.sin(np.arange(16_000)), 16_000)


def long_wav(path: Path) -> None:
    soundfile.write(path, np.ones(60_100), 100)  # 601 s


def truncated_wav(path: Path) -> None:
    soundfile.write(path, 0.1 * np.sin(np.arange(16_000)), 16_000)
    halve(path)


def truncated_flac(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    halve(path)


def write_mp4(path: Path, *, seconds: int = 1, rate: int = 10, **options: str) -> None:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(10):
            image = np.full((64, 96, 3), 20 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index * seconds * rate // 10
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def truncated_mp4(path: Path) -> None:
    write_mp4(path)
    halve(path)


def truncated_mp4_for_the_web(path: Path) -> None:
    write_mp4(path, movflags="faststart")
    path.write_bytes(path.read_bytes()[:-40])


def long_mp4(path: Path) -> None:
    write_mp4(path, seconds=700)


BAD: list[tuple[str, Callable[[Path], None], str]] = [
    ("clip.wav", missing, "no such file"),
    ("clip.mp4", missing, "no such file"),
    ("clip.wav", empty, "is empty"),
    ("clip.mp4", empty, "is empty"),
    ("clip.wav", text, "cannot be decoded: "),
    ("clip.mkv", text, "cannot be decoded: "),
    ("clip.txt", text, "cannot be decoded: "),
    ("clip.wav", silent_wav, "is silent"),
    ("clip.wav", nearly_silent_wav, "is silent"),
    ("clip.wav", long_wav, "is longer than 600 s; cut it into utterances"),
    ("clip.wav", truncated_wav, "is truncated: 16022 bytes are missing"),
    ("clip.flac", truncated_flac, "cannot be decoded: "),
    ("clip.mp4", truncated_mp4, "is truncated: "),
    ("clip.mp4", truncated_mp4_for_the_web, "is truncated: 40 bytes are missing"),
    ("clip.mp4", long_mp4, "has no sound; is longer than 600 s; cut it into utterances"),
]


def test_each_bad_file_is_one_line_and_the_good_ones_go_on(
    exported: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = [], small_run.media["s00-sad-00"]
    for number, (name, make, _) in enumerate(BAD):
        bad.append(tmp_path / f"{number}-{make.__name__}" / name)
        bad[-1].parent.mkdir()
        make(bad[-1])
    # One alone among good ones, and all of them together.
    for files in (bad[:1], bad):
        arguments = [exported, good, *files, good, "--json", "--features", small_run.features]
        code, out, err = run_command(capsys, *arguments)
        assert code == 2
        first, *between, last = (json.loads(line) for line in out.splitlines())
        assert len(err) == len(between) == len(files)
        for path, line, found, (_, _, reason) in zip(files, err, between, BAD, strict=False):
            assert line.startswith(f"error: '{path}' {reason}")
            assert found == {"file": str(path), "error": line.removeprefix(f"error: '{path}' ")}
        assert first["label"] == last["label"]
        assert first["probabilities"] == pytest.approx(last["probabilities"], abs=1e-5)


def test_a_row_of_features_does_not_excuse_a_bad_file(
    exported: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "s00-sad-00.mp4"  # which has a row
    bad.write_text("broken")
    code, _, err = run_command(capsys, exported, bad, "--features", small_run.features)
    assert code == 2
    assert len(err) == 1
    assert err[0].startswith(f"error: '{bad}' cannot be decoded")


def test_a_missing_file_is_missed_by_an_ensemble_of_features_alone_too(
    exported: Path, tmp_path: Path, features: FeatureTable
) -> None:
    artifact = replace(read_artifact(exported), sample_rate_hz=0, frames=0)
    path = tmp_path / "s00-sad-00.mp4"  # which has a row
    (answer,) = Predictor(artifact).files([path], features=features)
    assert answer.error == "no such file"


def test_silence_in_a_video_leaves_its_pictures(
    predictors: dict[str, Predictor], tmp_path: Path
) -> None:
    write_mp4(tmp_path / "clip.mp4")
    (answer,) = predictors["onnx"].files([tmp_path / "clip.mp4"])
    assert answer.experts == ("video-0000",)


@pytest.fixture(scope="module")
def pictures_only(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported ensemble of the video expert alone, with nothing to take over."""
    home = tmp_path_factory.mktemp("pictures")
    run = Path(shutil.copytree(small_run.path, home / "run"))
    summary = json.loads((run / "summary.json").read_text())
    summary["chosen_recipe"] = "best video"
    for choice in summary["headline"]["fused"]["per_fold"]:
        choice["recipe"] = "best video"
    (run / "summary.json").write_text(json.dumps(summary))
    for name in ("audio-0000", "early-0000"):
        shutil.rmtree(run / "weights" / name)
    export(read_run(run), home / "ensemble")
    return home / "ensemble"


def test_a_file_without_what_the_ensemble_reads_is_named(
    pictures_only: Path, tiny_corpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, pictures = tiny_corpus.clips[0].audio, tiny_corpus.clips[0].video
    code, out, err = run_command(capsys, pictures_only, sound, pictures, "--json")
    assert code == 2
    assert err == [f"error: '{sound}' is a sound file"]
    assert "label" in json.loads(out.splitlines()[1])


def test_a_fold_that_needs_more_than_the_file_has_says_so(
    exported: Path, tiny_corpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tiny_corpus.clips[0].audio
    code, _, err = run_command(capsys, exported, sound, "--fold", 0)
    assert code == 2
    assert err == [
        f"error: '{sound}' has no features and no video, which the ensemble needs "
        "(video: is a sound file; features: came without any)"
    ]


@pytest.mark.parametrize("fold", [3, 99, -1])
def test_a_fold_that_is_none_is_told_once(
    exported: Path, tiny_corpus: Any, capsys: pytest.CaptureFixture[str], fold: int
) -> None:
    sounds = [record.audio for record in tiny_corpus.clips[:3]]
    code, out, err = run_command(capsys, exported, *sounds, "--fold", fold)
    assert (code, out) == (2, "")
    assert err == [f"error: There is no fold {fold}; this ensemble has 0 to 2 (--fold)."]


def change(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("AU2", "AU99", "The features lack the column 'AU2', which the ensemble reads."),
        ("clip,", "name,", "must have a header 'clip,<feature>,…'"),
        ("s00-sad-00,0,", "s00-sad-00,zero,", "has 1 bad rows: row 4 ('zero' is no number)."),
        ("s00-sad-00,", "s00-happy-00,", "row 4 (clip 's00-happy-00' a second time)"),
    ],
)
def test_bad_features_are_one_line(
    exported: Path,
    small_run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
) -> None:
    (tmp_path / "features.csv").write_text(change(small_run.features, old, new))
    clip = small_run.media["s00-sad-00"]
    arguments = [exported, clip, clip, "--features", tmp_path / "features.csv"]
    code, out, err = run_command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err) == 1
    assert message in err[0]


def test_missing_features_are_one_line(
    exported: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = small_run.media["s00-sad-00"]
    code, _, err = run_command(capsys, exported, clip, "--features", tmp_path / "none.csv")
    assert (code, err) == (2, [f"error: No such file: '{tmp_path / 'none.csv'}' (--features)."])


def test_a_clip_without_a_row_of_features_is_predicted_without(
    exported: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "features.csv").write_text(change(small_run.features, "s00-sad-00", "someone"))
    clip = small_run.media["s00-sad-00"]
    arguments = [exported, clip, "--json", "--features", tmp_path / "features.csv"]
    code, out, err = run_command(capsys, *arguments)
    assert code == 0
    assert json.loads(out)["experts"] == ["audio-0000", "video-0000"]
    assert "no features: has no row 's00-sad-00' in the features" in err[0]
