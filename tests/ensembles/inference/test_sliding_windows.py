"""Long recordings: every window is answered like a clip of that time."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datasets.media.audio import read_audio
from ensembles.artifact.manifest import read_artifact
from ensembles.inference.predictor import Answer, Predictor
from ensembles.inference.sliding_windows import timeline
from ensembles.predict import main

RATE = 16_000


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor(read_artifact(exported))


@pytest.fixture(scope="module")
def recording(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips' sound, five silent seconds, and one more clip."""
    sounds = [read_audio(record.audio, RATE) for record in tiny_corpus.clips[:4]]
    path = tmp_path_factory.mktemp("long") / "long.wav"
    parts = [*sounds[:3], np.zeros(5 * RATE, np.int16), sounds[3]]
    soundfile.write(path, np.concatenate(parts), RATE)
    return path


def values(answer: Answer) -> list[float]:
    assert answer.error is None
    return list(answer.probabilities.values())


def test_a_window_is_answered_like_a_clip_of_that_part(
    predictor: Predictor, recording: Path, tmp_path: Path
) -> None:
    moments = list(timeline(predictor, recording, 2.0, 0.75))
    samples, _ = soundfile.read(recording, dtype="int16")
    assert moments[-1].end == pytest.approx(len(samples) / RATE, abs=0.1)
    heard = [moment for moment in moments if not moment.silent]
    assert 5 < len(heard) < len(moments)
    for moment in heard:
        part = tmp_path / "part.wav"
        soundfile.write(part, samples[round(moment.start * RATE) : round(moment.end * RATE)], RATE)
        (alone,) = predictor.files([part])
        np.testing.assert_allclose(values(moment.answer), values(alone), atol=1e-5)
        assert moment.answer.experts == ("audio-0000",)
        assert moment.answer.notes == (
            "no video: is a sound file",
            "no features: features are of whole clips, not of windows",
        )
    assert np.ptp([values(m.answer) for m in heard], axis=0).max() > 0.05


def test_a_film_is_answered_by_sound_and_pictures(predictor: Predictor, small_run: Any) -> None:
    path = small_run.media["s00-sad-00"]
    (whole,) = predictor.files([path])
    (moment,) = timeline(predictor, path, 60.0)
    assert set(moment.answer.experts) == {"audio-0000", "video-0000"}
    np.testing.assert_allclose(values(moment.answer), values(whole), atol=1e-4)
    several = list(timeline(predictor, path, 0.5))
    assert len(several) > 3
    assert all(set(m.answer.experts) == {"audio-0000", "video-0000"} for m in several)


def run_command(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, list[str]]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def test_silent_windows_are_named_and_no_error(
    exported: Path, recording: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "150")
    arguments = [exported, recording, "--window", 2, "--hop", 1]
    code, out, err = run_command(capsys, *arguments, "--json")
    assert code == 0
    document = json.loads(out)
    silent = [w for w in document["windows"] if "reason" in w]
    assert [set(w) for w in silent] == [{"start", "end", "reason"}] * len(silent)
    assert {w["reason"] for w in silent} == {"is silent"}
    assert {w["end"] - w["start"] for w in silent} == {2.0}
    assert len(silent) in (3, 4), "five silent seconds"
    told = len(document["windows"]) - len(silent)
    assert f"note: {told} of {told + len(silent)} windows: no video: is a sound file" in err[0]
    code, out, _ = run_command(capsys, *arguments)
    assert code == 0
    assert out.count("(is silent)") == len(silent)
    assert "long.wav" in out
    code, out, _ = run_command(capsys, *arguments, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert len(rows) == len(document["windows"])
    for row, window in zip(rows, document["windows"], strict=True):
        assert float(row["start"]) == pytest.approx(window["start"], abs=1e-3)
        assert row["label"] == window.get("label", "")
        assert row["reason"] == window.get("reason", "")
        for label, value in window.get("probabilities", {}).items():
            assert float(row[label]) == pytest.approx(value, abs=1e-6)


def test_a_recording_longer_than_a_clip_may_be_needs_windows(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hour.flac"
    samples = np.zeros(610 * 2000)
    samples[580 * 2000 :] = np.random.default_rng(0).normal(0, 0.1, 30 * 2000)
    soundfile.write(path, samples, 2000)
    assert run_command(capsys, exported, path)[0] == 2
    code, out, _ = run_command(
        capsys, exported, path, "--window", 30, "--hop", 30, "--json", "--features", tmp_path / "x"
    )
    assert code == 2, "features that are not there are an error with windows too"
    code, out, _ = run_command(capsys, exported, path, "--window", 30, "--hop", 30, "--json")
    assert code == 0
    windows = json.loads(out)["windows"]
    assert [w["start"] for w in windows[-2:]] == [570.0, 580.0]
    assert ["label" in w for w in windows[-3:]] == [False, True, True]


def test_features_cannot_follow_a_window(
    exported: Path, small_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_run.media["s00-sad-00"]
    code, _, err = run_command(
        capsys, exported, path, "--window", 1, "--csv", "--features", small_run.features
    )
    assert code == 0
    assert err[0].startswith("note: --features are left out: ")


def test_a_bad_recording_is_one_line_and_the_good_ones_go_on(
    exported: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    bad, gone = tmp_path / "bad.wav", tmp_path / "gone.wav"
    code, out, err = run_command(capsys, exported, bad, gone, recording, "--window", 3, "--json")
    assert code == 2
    first, second, third = (json.loads(line) for line in out.splitlines())
    assert first["windows"] == []
    assert first["error"].startswith("cannot be decoded")
    assert second["error"] == "no such file"
    assert len(third["windows"]) > 5
    assert err[0] == f"error: '{bad}' {first['error']}"
    assert err[1] == f"error: '{gone}' no such file"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "0"], "A window lasts 0.25 to 600 s, not 0.0 s (--window)."),
        (["--window", "3", "--hop", "4"], "4.0 s would not do (--hop)."),
        (["--window", "3", "--hop", "0"], "0.0 s would not do (--hop)."),
        (["--hop", "1"], "--hop goes with --window."),
    ],
)
def test_impossible_windows_are_one_line(
    exported: Path, recording: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    code, out, err = run_command(capsys, exported, recording, *options)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].endswith(message)
