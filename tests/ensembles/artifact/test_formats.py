"""Which files an export holds of an expert, and what is made of those that it lacks."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensembles import EnsembleError
from ensembles.artifact.fold_networks import FoldedExpert
from ensembles.artifact.formats import UnknownLengthsError, parse_formats, to_program
from ensembles.artifact.manifest import read_artifact
from ensembles.artifact.onnx_export import Graph, check_parity, example_batch
from ensembles.export import main
from ensembles.exporting.budget import Budget
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.selection import under_a_budget
from ensembles.inference.predictor import Predictor
from ensembles.predict import main as predict
from models import ClipShape, build_expert
from tests.small import small_settings

SHAPE = ClipShape(
    num_classes=3,
    sample_rate_hz=16_000,
    seconds=1.0,
    frames=8,
    frame_size=(60, 100),
    num_features=5,
    feature_steps=8,
)


@pytest.fixture(scope="module")
def few_recipes(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run that assessed four recipes, so that choosing is quick."""
    path = Path(shutil.copytree(small_run.path, tmp_path_factory.mktemp("few") / "run"))
    summary = json.loads((path / "summary.json").read_text())
    kept = ("best audio", "best video", "best early", "a+v+e: product")
    summary["fusions"] = [row for row in summary["fusions"] if row["name"] in kept]
    assert len(summary["fusions"]) == 4
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def suffixes(folder: Path) -> set[str]:
    return {path.suffix for path in (folder / "experts").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("formats", "held", "other"),
    [("onnx", {".onnx"}, "torch"), ("torch", {".safetensors", ".json"}, "onnx")],
)
def test_one_format_is_written_predicted_with_and_the_other_is_missed(
    video_run: Path,
    small_run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    formats: str,
    held: set[str],
    other: str,
) -> None:
    out, clip = tmp_path / "out", small_run.media["s00-happy-00"]
    assert main([str(video_run), "--out", str(out), "--format", formats]) == 0
    assert suffixes(out) == held
    artifact = read_artifact(out)
    assert artifact.formats == (formats,)
    (answer,) = Predictor(artifact, formats).files([clip])  # type: ignore[arg-type]
    assert answer.error is None
    capsys.readouterr()
    assert predict([str(out), str(clip), "--backend", other]) == 2
    error = (
        f"error: '{out}' was exported without {other} (--format). Predict with --backend {formats}."
    )
    assert capsys.readouterr().err.strip() == error


def test_a_program_comes_on_request_with_a_warning_and_predicts_the_same(
    video_run: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(video_run), "--out", str(out), "--format", "torch,pt2"]) == 0
    assert "loading a .pt2 file can run code" in capsys.readouterr().err
    files = json.loads((out / "ensemble.json").read_text())["files"]
    assert "experts/video-0000.pt2" in files
    clip = Predictor(read_artifact(out), "torch").load(small_run.media["s00-happy-00"])
    frames = torch.from_numpy(np.asarray(clip.arrays["video"]))[None]
    program = torch.export.load(out / "experts" / "video-0000.pt2").module()
    average, _ = program(frames, torch.tensor([frames.shape[1]]))
    (answer,) = Predictor(read_artifact(out), "torch").clips([clip])
    expected = np.asarray(list(answer.probabilities.values()))
    np.testing.assert_allclose(average.detach().exp()[0].numpy(), expected, atol=1e-4)


def test_recurrent_networks_have_no_program() -> None:
    network = build_expert("action_unit_lstm", small_settings("action_unit_lstm"), SHAPE).eval()
    with pytest.raises(UnknownLengthsError):
        to_program(FoldedExpert([network]), SHAPE)


def test_a_program_takes_other_sizes_and_numbers_of_clips() -> None:
    network = build_expert("action_units", small_settings("action_units"), SHAPE).eval()
    expert = FoldedExpert([network])
    content = to_program(expert, SHAPE)
    program, names = torch.export.load(io.BytesIO(content)).module(), Graph(expert).names
    batch = example_batch(expert.kinds, SHAPE, clips=7, share=1.3, seed=2)
    found = program(*(batch[name] for name in names))[1]
    with torch.inference_mode():
        torch.testing.assert_close(found, expert(batch), atol=1e-5, rtol=0)


def test_what_differs_from_its_network_is_refused() -> None:
    network = build_expert("action_units", small_settings("action_units"), SHAPE).eval()
    other = build_expert("action_units", small_settings("action_units"), SHAPE).eval()
    with torch.no_grad():
        other.classifier.bias.add_(torch.tensor([1.0, 0.0, 0.0]))
    with pytest.raises(EnsembleError, match="rebuilt network differs from the network by"):
        check_parity(
            FoldedExpert([network]), SHAPE, lambda b: FoldedExpert([other])(b), "rebuilt network"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnx,tflite", "Unknown format 'tflite' (--format). Known: onnx, torch, pt2."),
        ("pt2", "--format needs onnx or torch, got 'pt2': predict reads nothing else."),
        ("", "--format needs onnx or torch, got ''"),
    ],
)
def test_formats_that_make_no_export_are_refused(
    video_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    assert main([str(video_run), "--out", str(tmp_path / "out"), "--format", text]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert parse_formats(" torch, onnx,torch") == ("torch", "onnx")


def test_a_budget_is_met_and_its_front_lies_in_the_folder(
    few_recipes: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(few_recipes), "--out", str(out), "--max-mb", "2", "--format", "onnx"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "by its cross-fitted score" in printed
    assert "so a search score" in printed
    assert sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) <= 2e6
    assert (out / "front.svg").read_text().startswith("<?xml")
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    with (out / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (chosen,) = [row for row in rows if row["chosen"] == "1"]
    artifact = read_artifact(out)
    assert chosen["recipe"] == artifact.fused.recipe
    assert chosen["experts"].split() == list(artifact.fused.experts)
    assert chosen["fits"] == chosen["on_front"] == "1"
    assert any(row["fits"] == "0" for row in rows)
    card = (out / "model-card.md").read_text()
    assert "## Budget" in card
    assert "not scored yet: speaker_03" in card, "the run's test score is another ensemble's"
    assert f"{100 * artifact.about['honest_score']:.1f} % accuracy" in card
    (answer,) = Predictor(artifact).files([small_run.media["s00-happy-00"]])
    assert answer.error is None


def test_each_fold_within_a_budget_gives_the_honest_scores_own_predictions(
    few_recipes: Path, small_run: Any
) -> None:
    what = under_a_budget(read_run(few_recipes), Budget(max_latency_ms=1e5))
    assert what.choice is not None
    experts = small_run.experts
    assert len(what.by_fold) == 3
    for fold, fused in enumerate(what.by_fold):
        rows = experts.table.folds == fold
        values = dict(zip(experts.names, experts.log_posteriors[:, rows], strict=True))
        np.testing.assert_allclose(
            fused.apply(values), what.choice.row.log_posteriors[rows], atol=1e-12
        )


def test_a_budget_below_everything_is_one_line_and_leaves_nothing(
    video_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(video_run), "--out", str(out), "--max-latency-ms", "0.000001"]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert (
        "Nothing fits --max-latency-ms 1e-06: the cheapest, 'video-0000' alone takes" in errors[0]
    )
    assert captured.out == ""
    assert not out.exists()


def test_the_size_of_a_program_is_not_budgeted(
    video_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        str(video_run),
        "--out",
        str(tmp_path / "out"),
        "--max-mb",
        "5",
        "--format",
        "onnx,pt2",
    ]
    assert main(command) == 2
    assert "error: --max-mb does not count pt2" in capsys.readouterr().err
