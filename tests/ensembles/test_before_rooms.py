"""An export that the program made before its modules moved into rooms is read, and answers as it did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datasets.features import read_features
from ensembles.artifact.manifest import read_artifact
from ensembles.inference.predictor import Backend, Predictor
from tests.ensembles.artifact.test_standalone import run_alone

FIXTURE = Path(__file__).parents[1] / "fixtures" / "before_rooms"
FEATURES = "clip,AU1,AU2,AU4\nlow,0.5,-1.0,0.25\nhigh,-0.75,0.5,2.0\n"
POSTERIORS = json.loads((FIXTURE / "posteriors.json").read_text())
"""Case → clip → (K,), as the program that made the export predicted with ONNX."""


@pytest.fixture()
def clips(tmp_path: Path) -> list[Path]:
    """A mono clip of one tone, and a stereo clip of several at a rate that is resampled."""
    low, high = tmp_path / "low.wav", tmp_path / "high.wav"
    seconds = np.arange(3_200) / 4_000
    soundfile.write(low, 0.4 * np.sin(900 * seconds), 4_000, subtype="PCM_16")
    seconds = np.arange(9_000)[:, None] / 11_025
    tones = np.sin(seconds * [2_100, 2_900]) + np.sin(seconds * [700, 500]) ** 3
    soundfile.write(high, 0.3 * tones, 11_025, subtype="PCM_16")
    return [low, high]


@pytest.mark.parametrize(("backend", "within"), [("onnx", 2e-5), ("torch", 1e-4)])
@pytest.mark.parametrize("case", POSTERIORS)
def test_its_posteriors_are_what_they_were(
    case: str, backend: Backend, within: float, clips: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "features.csv").write_text(FEATURES)
    features = None if case == "audio alone" else read_features(tmp_path / "features.csv")
    fold = int(case[-1]) if case.startswith("fold") else None
    predictor = Predictor(read_artifact(FIXTURE / "export"), backend)
    for answer in predictor.files(clips, features=features, fold=fold):
        expected = POSTERIORS[case][Path(answer.name).stem]
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=within)


def test_its_own_program_answers_as_it_did(clips: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURE / "export", tmp_path / "export"))
    found: Any = run_alone(folder, tmp_path / "empty", *clips, "--json")
    assert found.returncode == 0, found.stderr
    for line, clip in zip(map(json.loads, found.stdout.splitlines()), clips, strict=True):
        expected = POSTERIORS["audio alone"][clip.stem]
        assert list(line["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
