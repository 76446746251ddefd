"""The folder's own program: the project's answers, without the project."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datasets.media import audio as sounds
from datasets.media.containers import MediaError
from datasets.media.resampling import windowed_sinc
from ensembles.artifact import standalone
from ensembles.artifact.manifest import SCRIPT, SOURCES, manifest_sha256, read_artifact
from ensembles.exporting.program import program_files
from ensembles.inference.predictor import Predictor

BARE = """
import runpy, sys

ABSENT = {"torch", "torchaudio", "scipy", "sklearn", "cv2", "ray", "models", "search"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in {"datasets", "ensembles"}:
            assert module.__file__.startswith(sys.argv[0].removesuffix("predict.py")), name
"""
"""Runs a program where the packages that it must not need, and this project, cannot be imported."""


def run_alone(folder: Path, where: Path, *arguments: object, bare: bool = True) -> Any:
    """Runs the folder's program from an empty directory, with nothing of ours on the path."""
    where.mkdir(exist_ok=True)
    program = [str(folder / "predict.py"), *(str(a) for a in arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *(["-I", "-c", BARE] if bare else []), *program],
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
    here = standalone.Ensemble(exported, None)  # in this process, where torchaudio resamples
    for path, line in zip((film, sound, other, mute), lines, strict=True):
        assert here.predict(path).probabilities == pytest.approx(line["probabilities"], abs=1e-5)
    with pytest.raises(MediaError, match="no such file"):
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


def test_its_modules_are_the_projects_and_are_signed(exported: Path) -> None:
    files = program_files()
    assert {SCRIPT, f"{SOURCES}/ensembles/fusion/rules.py"} < files.keys()
    written = {path.relative_to(exported).as_posix() for path in exported.rglob("*.py")}
    assert written == files.keys()
    assert written < json.loads((exported / "ensemble.json").read_text())["files"].keys()
    for name, source in files.items():
        assert (exported / name).read_bytes() == source.read_bytes()


def test_its_modules_import_four_packages_and_one_for_faces() -> None:
    names = {
        name.partition(".")[0]
        for path in program_files().values()
        for top in ast.parse(path.read_text()).body
        for node in (top.body if isinstance(top, ast.Try) else [top])
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    needed = {"av", "numpy", "onnxruntime", "soundfile", "cv2", "datasets", "ensembles"}
    assert names - sys.stdlib_module_names == needed


def test_nothing_beside_it_is_imported(changeable: Path, small_run: Any, tmp_path: Path) -> None:
    for name in (
        "numpy",
        "argparse",
        "pathlib",
        "onnxruntime",
        f"{SOURCES}/numpy",
        f"{SOURCES}/av",
    ):
        (changeable / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    clip = small_run.media["s01-sad-00"]
    found = run_alone(changeable, tmp_path / "empty", clip, bare=False)
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
        f"error: '{graph}' is truncated or changed: it does not match its checksum. "
        "Export the run again.\n"
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
    found = windowed_sinc(sound, source_hz, 16_000)
    np.testing.assert_allclose(found, sounds._resample(sound, source_hz, 16_000), atol=3e-6)
