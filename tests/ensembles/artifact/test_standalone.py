"""The folder's own program: the project's answers, without the project."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile

from datasets.media import audio as sounds
from ensembles.artifact import standalone
from ensembles.artifact.manifest import manifest_sha256, read_artifact
from ensembles.fusion.rules import (
    _READERS,
    Calibrated,
    Inputs,
    LinearMap,
    Pooling,
    Rule,
    Space,
    Stacked,
    Tempered,
)
from ensembles.inference.predictor import Predictor
from ensembles.metrics import log_softmax


def run_alone(folder: Path, where: Path, *arguments: object, isolated: bool = True) -> Any:
    """Runs the folder's program from an empty directory, with nothing of ours on the path."""
    where.mkdir(exist_ok=True)
    program = [str(folder / "predict.py"), *(str(a) for a in arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *(["-I"] if isolated else []), *program],
        cwd=where, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_it_answers_as_the_project_does(
    exported: Path, small_run: Any, tiny_corpus: Any, tmp_path: Path
) -> None:
    film = Path(shutil.copy(small_run.media["s01-sad-00"], tmp_path / "film.mkv"))
    sound, other = tmp_path / "sound.flac", tmp_path / "at 44 kHz.wav"
    soundfile.write(sound, sounds.read_audio(film, 16_000), 16_000)
    stereo = np.random.default_rng(0).normal(0, 0.1, (60_000, 2))
    soundfile.write(other, stereo, 44_100)
    mute = tiny_corpus.clips[7].video
    found = run_alone(exported, tmp_path / "empty", film, sound, other, mute, "--json")
    assert (found.returncode, found.stderr) == (0, "")
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    expected = list(Predictor(read_artifact(exported)).files([film, sound, other, mute]))
    here = standalone.Ensemble(exported, None)  # the same program, in this process
    for path, line in zip((film, sound, other, mute), lines, strict=True):
        assert here.predict(path).probabilities == pytest.approx(line["probabilities"])
    with pytest.raises(standalone.Failed, match="no such file"):
        here.predict(tmp_path / "none.wav")
    assert [set(answer.experts) for answer in expected] == [
        {"audio-0000", "video-0000"}, {"audio-0000"}, {"audio-0000"}, {"video-0000"}
    ]  # fmt: skip
    for line, answer in zip(lines, expected, strict=True):
        assert line["file"] == answer.name
        assert line["label"] == answer.label
        assert line["probabilities"] == pytest.approx(answer.probabilities, abs=1e-4)
        assert line["experts"] == list(answer.experts)
        assert [note.partition(":")[0] for note in line["notes"]] == [
            note.partition(":")[0] for note in answer.notes
        ]
    assert np.ptp([list(line["probabilities"].values()) for line in lines], axis=0).max() > 0.05


def test_it_imports_four_packages_and_one_for_faces(exported: Path) -> None:
    source = (exported / "predict.py").read_text()
    assert source == Path(standalone.__file__).read_text()
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    needed = {"av", "numpy", "onnxruntime", "soundfile"}
    assert names - sys.stdlib_module_names == {*needed, "cv2"}, "the last for faces alone"


def test_nothing_beside_it_is_imported(changeable: Path, small_run: Any, tmp_path: Path) -> None:
    for name in ("numpy", "argparse", "pathlib", "onnxruntime"):
        (changeable / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    clip = small_run.media["s01-sad-00"]
    found = run_alone(changeable, tmp_path / "empty", clip, isolated=False)
    assert found.returncode == 0, found.stderr
    assert not (tmp_path / "trace").exists()
    assert str(clip) in found.stdout


def test_a_folder_that_was_changed_is_refused(
    changeable: Path, small_run: Any, tmp_path: Path
) -> None:
    clip, sha256 = small_run.media["s01-sad-00"], manifest_sha256(changeable)
    assert run_alone(changeable, tmp_path / "empty", clip, "--verify", sha256).returncode == 0
    found = run_alone(changeable, tmp_path / "empty", clip, "--verify", "0" * 64)
    assert found.returncode == 2
    assert f"is not what was asked for: its SHA-256 is {sha256}" in found.stderr
    graph = changeable / "experts" / "video-0000.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    found = run_alone(changeable, tmp_path / "empty", clip)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == (
        f"error: '{graph}' is truncated or changed: it does not match its checksum.\n"
    )


def test_bad_files_are_one_line_and_the_good_ones_go_on(
    exported: Path, small_run: Any, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    good = small_run.media["s01-sad-00"]
    files = [tmp_path / "text.mp4", tmp_path / "silent.wav", tmp_path / "none.wav", good]
    found = run_alone(exported, tmp_path / "empty", *files)
    assert found.returncode == 2
    first, second, third = found.stderr.splitlines()
    assert first.startswith(f"error: '{files[0]}' cannot be decoded: ")
    assert second == f"error: '{files[1]}' is silent; is a sound file"
    assert third == f"error: '{files[2]}' no such file"
    assert found.stdout.startswith(str(good))


@pytest.mark.parametrize("source_hz", [44_100, 48_000, 8_000, 11_025, 22_050, 44_101])
def test_sound_is_resampled_as_in_training(source_hz: int) -> None:
    sound = np.random.default_rng(0).normal(0, 0.2, 9_001).astype(np.float32)
    found = standalone.resample(sound, source_hz, 16_000)
    np.testing.assert_allclose(found, sounds._resample(sound, source_hz, 16_000), atol=3e-6)


def rules() -> dict[str, Rule]:
    """Every kind, of three experts and four classes, and one of all in all."""
    generator = np.random.default_rng(0)
    weights = np.asarray([0.5, 0.0, 1.2])
    pooling = Pooling(weights, "log", -3.0)
    mixture = Pooling(weights, "arithmetic")
    coefficients, intercept = generator.normal(size=(4, 12)), generator.normal(size=4)
    linear = LinearMap(coefficients, intercept, "logits")
    tempered = Tempered(mixture, np.asarray([0.5, 2.0, 1.0]))
    return {
        "log": Pooling(weights), "floored": pooling, "arithmetic": mixture, "logits": linear,
        "probabilities": LinearMap(coefficients, intercept, "probabilities"),
        "tempered": tempered,
        "calibrated": Calibrated(linear, np.asarray([1.0, 0.5, 2.0, 0.0]), intercept),
        "stacked": Stacked((pooling, linear, Calibrated(tempered, np.ones(4), intercept)), tempered),
    }  # fmt: skip


def kinds_of(document: Any) -> set[str]:
    """The kinds of a rule and of the rules in it."""
    if isinstance(document, list):
        return set().union(*map(kinds_of, document))
    if not isinstance(document, dict):
        return set()
    own = {document["kind"]} if "kind" in document else set()
    return own.union(*map(kinds_of, document.values()))


def test_they_are_all_the_kinds_that_a_manifest_may_hold() -> None:
    # The folder's own program predicts classes, not traces.
    documents = [rule.to_json() for rule in rules().values()]
    assert kinds_of(documents) == _READERS.keys() - {"traces"}
    pooled = [document for document in documents if document["kind"] == "pooling"]
    assert {document["space"] for document in pooled} == set(get_args(Space))
    linear = [document for document in documents if document["kind"] == "linear"]
    assert {document["inputs"] for document in linear} == set(get_args(Inputs))


@pytest.mark.parametrize("name", rules())
def test_every_kind_of_fusion_gives_the_same(name: str) -> None:
    rule = rules()[name]
    each = log_softmax(np.random.default_rng(1).normal(scale=9.0, size=(3, 20, 4)))
    document = json.loads(json.dumps(rule.to_json()))
    np.testing.assert_allclose(
        np.exp(standalone.apply_rule(document, each)), np.exp(rule.apply(each)), atol=1e-12
    )


def test_an_unknown_kind_of_fusion_is_refused() -> None:
    with pytest.raises(standalone.Failed, match="unknown kind of fusion 'pickle'"):
        standalone.apply_rule({"kind": "pickle"}, np.zeros((1, 1, 2)))
