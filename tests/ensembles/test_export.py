"""From a run's folder to an exported one; every mistake in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from datasets.media.audio import read_audio
from datasets.media.video import read_frames
from ensembles.artifact.fold_networks import load_folded
from ensembles.artifact.manifest import manifest_sha256, read_artifact
from ensembles.bank.posterior_bank import PosteriorBank
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.export import main
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.fit_fusion import Chooser
from ensembles.exporting.model_card import model_card
from ensembles.exporting.writer import export


@pytest.fixture()
def run(small_run: Any, tmp_path: Path) -> Path:
    """A copy of the small run, to be damaged."""
    return Path(shutil.copytree(small_run.path, tmp_path / "run"))


def one_line(capsys: pytest.CaptureFixture[str], run: Path, out: Path) -> str:
    """Runs the command; it must end with exit code 2 and one line, and leave nothing behind."""
    before = sorted(run.parent.rglob("*"))
    assert main([str(run), "--out", str(out)]) == 2
    assert sorted(run.parent.rglob("*")) == before
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return errors[0]


def test_what_is_exported_is_what_the_run_chose(exported: Path, small_run: Any) -> None:
    artifact, assessment = read_artifact(exported), small_run.assessment
    assert artifact.fused.recipe == assessment.chosen
    assert [(f.recipe, f.experts) for f in artifact.by_fold] == list(assessment.fused.per_fold)
    assert artifact.labels == assessment.table.classes
    assert artifact.sample_rate_hz == 16_000
    assert (artifact.frames, artifact.frame_size) == (8, (60, 100))
    assert artifact.feature_names == ("AU1", "AU2", "AU4")
    inputs = {name: set(member.inputs) for name, member in artifact.members.items()}
    assert inputs == {
        "audio-0000": {"audio"},
        "video-0000": {"video"},
        "early-0000": {"audio", "features"},
    }
    assert {member.folds for member in artifact.members.values()} == {3}


def test_the_exported_networks_are_the_runs_own(exported: Path, small_run: Any) -> None:
    for name in read_artifact(exported).members:
        ours, theirs = exported / "experts" / name, small_run.path / "weights" / name
        assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
        for path in ours.iterdir():
            assert path.read_bytes() == (theirs / path.name).read_bytes()
        counted = sum(p.numel() for p in load_folded(ours).network(0).parameters())
        assert read_artifact(exported).members[name].parameters == counted


def test_the_fusion_of_each_fold_gives_the_runs_own_predictions(
    exported: Path, small_run: Any
) -> None:
    experts = small_run.experts
    for fold, fused in enumerate(read_artifact(exported).by_fold):
        rows = experts.table.folds == fold
        values = dict(zip(experts.names, experts.log_posteriors[:, rows], strict=True))
        np.testing.assert_allclose(
            fused.apply(values), small_run.assessment.fused.log_posteriors[rows], atol=1e-12
        )


def test_a_graph_can_be_used_without_this_project(exported: Path, small_run: Any) -> None:
    # As the model card says: plain waveform, uint8 frames, lengths.
    clip = small_run.media["s00-happy-00"]
    session = onnxruntime.InferenceSession(exported / "experts" / "audio-0000.onnx")
    sound = read_audio(clip, 16_000).astype(np.float32)[None] / 32768
    lengths = np.array([sound.shape[1]])
    average, _ = session.run(None, {"audio": sound, "audio_lengths": lengths})
    assert np.exp(average).sum() == pytest.approx(1.0, abs=1e-5)
    session = onnxruntime.InferenceSession(exported / "experts" / "video-0000.onnx")
    frames = read_frames(clip, 8, (60, 100))[None]
    _, by_fold = session.run(None, {"video": frames, "video_lengths": np.array([8])})
    expert = load_folded(exported / "experts" / "video-0000")
    with torch.inference_mode():
        expected = expert(
            {"video": torch.from_numpy(frames), "video_lengths": torch.tensor([8])}
        ).numpy()
    np.testing.assert_allclose(np.exp(by_fold), np.exp(expected), atol=1e-4)


def test_the_card_says_what_a_user_must_know(exported: Path, small_run: Any) -> None:
    card = " ".join((exported / "model-card.md").read_text().split())
    summary = json.loads((small_run.path / "summary.json").read_text())
    row = summary["headline"]["fused"]
    assert f"{100 * row['honest_score']:.1f} % accuracy" in card
    assert f"{100 * summary['test_speakers']['score']:.1f} % accuracy" in card
    for text in ("speaker_03; 6 clips", "AU1, AU2, AU4", "16000 Hz", "joint", *summary["experts"]):
        assert text in card
    for label in summary["classes"]:
        assert label in card
    found = summary["detail"]["fused"]
    for label, recall in found["recall"].items():
        assert f"| {label} | {sum(found['confusion'][0])} | {100 * recall:.1f} % |" in card
    weakest = min(found["recall"], key=found["recall"].get)
    assert f"The weakest class is {weakest}." in card
    assert "not for decisions about people" in card
    assert "3 experts are here, of which 3 make the ensemble" in card
    assert "not confirmed with fresh training seeds" in card
    assert "not corrected for the luck of choosing" in card
    assert "The licence of joint is not known to this program" in card
    assert "`--verify`" in card
    assert str(Path.home()) not in (exported / "model-card.md").read_text().partition("`python")[0]


def test_the_card_of_a_well_known_corpus_says_whom_it_serves_and_under_which_licence(
    exported: Path, small_run: Any
) -> None:
    summary = json.loads((small_run.path / "summary.json").read_text())
    fused = summary["headline"]["fused"]
    fused["corrected"] = {"score": 0.6123, "interval_95": [0.5, 0.7], "candidates": 40}
    summary["detail"]["fused"]["groups"] = {"gender": {"female": 0.75, "male": 0.5}}
    summary["confirmed"] = {
        str(seed): {"fused": {**fused, "honest_score": score}}
        for seed, score in ((7, 0.5), (8, 0.52))
    }
    for corpus, licence in {
        "ravdess": "CC BY-NC-SA 4.0", "crema_d": "ODbL", "CREMA-D": "ODbL",
        "iemocap": "own end-user licence",
    }.items():  # fmt: skip
        card = model_card(read_artifact(exported), {**summary, "corpus": corpus})
        assert licence in card
        assert "not known to this program" not in card
    assert "Accuracy by gender of the speaker: female 75.0 %, male 50.0 %." in card
    assert "among 40 recipes (BBC-CV): 61.2 % accuracy (95 % interval 50.0 to 70.0)" in card
    assert "fresh seeds: 50.0 (seed 7), 52.0 (seed 8); mean 51.0 % accuracy" in card


def test_the_command_says_what_it_wrote(
    video_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "down" / "ensemble"
    assert main([str(video_run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 1 experts, best video, " in said
    assert f"SHA-256 of ensemble.json, for --verify: {manifest_sha256(out)}\n" in said
    assert [p.name for p in out.parent.iterdir()] == ["ensemble"]
    read_artifact(out)


def test_the_folder_may_be_there_if_it_is_empty(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_alone(run)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(run), "--out", "."]) == 0
    read_artifact(tmp_path / "here")
    assert ".: 1 experts, best video, 2." in capsys.readouterr().out
    line = one_line(capsys, run, tmp_path / "here")
    assert f"'{tmp_path / 'here'}' is not empty. Name another --out." in line


def test_a_folder_that_cannot_be_written_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_alone(run)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in one_line(capsys, run, tmp_path / "file")
    assert str(tmp_path / "file" / "in") in one_line(capsys, run, tmp_path / "file" / "in")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def choose(run: Path, recipe: str) -> None:
    """As though the run had chosen another recipe."""

    def change(summary: dict[str, Any]) -> None:
        summary["chosen_recipe"] = recipe
        for choice in summary["headline"]["fused"]["per_fold"]:
            choice["recipe"] = recipe

    edit(run / "summary.json", change)


def choose_alone(run: Path) -> None:
    """As though there were a video expert and no other."""
    choose(run, "best video")
    for name in ("audio-0000", "early-0000"):  # nothing takes over without their weights
        shutil.rmtree(run / "weights" / name)


def test_what_no_expert_reads_is_not_asked_of_a_clip(run: Path, tmp_path: Path) -> None:
    choose_alone(run)
    artifact = export(read_run(run), tmp_path / "out")
    assert artifact.to_json() == read_artifact(tmp_path / "out").to_json()
    assert (artifact.sample_rate_hz, artifact.feature_names) == (0, ())
    assert artifact.frames == 8
    assert artifact.inputs == {"video"}
    assert artifact.substitutes == {}


def test_every_recipe_of_the_run_can_be_exported(run: Path) -> None:
    finished = read_run(run)
    chooser = Chooser(CrossFitter(finished.experts, "accuracy"))
    rows = json.loads((run / "summary.json").read_text())["fusions"]
    assert {row["name"] for row in rows} == set(chooser.candidates)
    for row in rows:
        assert list(chooser.fit(row["name"]).experts) == row["experts"]


def no_run(run: Path) -> None:
    shutil.rmtree(run)


def no_summary(run: Path) -> None:
    (run / "summary.json").unlink()


def half_a_summary(run: Path) -> None:
    content = (run / "summary.json").read_bytes()
    (run / "summary.json").write_bytes(content[: len(content) // 2])


def no_object(run: Path) -> None:
    (run / "summary.json").write_text("[]")


def another_version(run: Path) -> None:
    edit(run / "summary.json", lambda summary: summary.update(format_version=99))


def no_bank(run: Path) -> None:
    shutil.rmtree(run / "bank")


def half_a_table(run: Path) -> None:
    content = (run / "bank" / "clips.csv").read_bytes()
    (run / "bank" / "clips.csv").write_bytes(content[: len(content) // 2])


def no_posteriors(run: Path) -> None:
    (run / "bank" / "video-0000@100.npz").unlink()


def damaged_posteriors(run: Path) -> None:
    (run / "bank" / "video-0000@100.npz").write_bytes(b"PK")


def unknown_recipe(run: Path) -> None:
    edit(run / "summary.json", lambda summary: summary.update(chosen_recipe="best guess"))


def unknown_metric(run: Path) -> None:
    edit(run / "summary.json", lambda summary: summary.update(metric="beauty"))


def no_weights(run: Path) -> None:
    shutil.rmtree(run / "weights" / "audio-0000")


def a_fold_less(run: Path) -> None:
    (run / "weights" / "audio-0000" / "fold-2.safetensors").unlink()


def no_first_fold(run: Path) -> None:
    (run / "weights" / "audio-0000" / "fold-0.safetensors").unlink()


def half_the_weights(run: Path) -> None:
    path = run / "weights" / "audio-0000" / "fold-1.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_plan(run: Path) -> None:
    (run / "weights" / "audio-0000" / "plan.json").unlink()


def half_a_plan(run: Path) -> None:
    path = run / "weights" / "audio-0000" / "plan.json"
    path.write_bytes(path.read_bytes()[:30])


def a_strange_plan(run: Path) -> None:
    edit(run / "weights" / "audio-0000" / "plan.json", lambda plan: plan.update(architecture="vgg"))


def an_early_plan_without_parts(run: Path) -> None:
    edit(run / "weights" / "early-0000" / "plan.json", lambda plan: plan.update(settings={}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_run, "No run in '{run}'."),
        (no_summary, "no finished expert yet (no summary.json). Continue it with: python -m"),
        (half_a_summary, "'{run}/summary.json' is damaged or of an older program"),
        (no_object, "'{run}/summary.json' is damaged or of an older program"),
        (another_version, "'{run}' is of format version 99; this program reads version 2"),
        (no_bank, "No posterior bank in '{run}/bank'."),
        (half_a_table, "'{run}/bank/clips.csv' is damaged"),
        (no_posteriors, "The bank of '{run}' has lost the posteriors of 'video-0000'."),
        (damaged_posteriors, "The bank of '{run}' has lost the posteriors of 'video-0000'."),
        (unknown_recipe, "recipe 'best guess' does not fit the experts in its bank."),
        (unknown_metric, "Unknown metric 'beauty'."),
        (no_weights, "no weights of 'audio-0000' ('{run}/weights/audio-0000')"),
        (a_fold_less, "'{run}/weights/audio-0000' has 2 of 3 fold networks."),
        (no_first_fold, "'{run}/weights/audio-0000' lacks the weights of a fold."),
        (half_the_weights, "'{run}/weights/audio-0000/fold-1.safetensors' is damaged"),
        (no_plan, "No such file: '{run}/weights/audio-0000/plan.json'."),
        (half_a_plan, "'{run}/weights/audio-0000/plan.json' is damaged"),
        (a_strange_plan, "'{run}/weights/audio-0000/plan.json' is damaged: ModelError(\"Unknown"),
        (an_early_plan_without_parts, "'{run}/weights/early-0000/plan.json' is damaged"),
    ],
)
def test_a_run_that_cannot_be_exported_says_why_in_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(run)
    assert message.format(run=run) in one_line(capsys, run, tmp_path / "out")


def test_a_summary_that_lacks_what_an_export_needs_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_alone(run)
    needed = {
        "format_version", "experts", "metric", "chosen_recipe", "headline", "inputs", "command",
        "run", "corpus", "protocol", "clips", "speakers", "commit", "versions",
    }  # fmt: skip
    whole = json.loads((run / "summary.json").read_text())
    enough = {key: whole[key] for key in needed}
    for key in needed:
        without = {name: value for name, value in enough.items() if name != key}
        (run / "summary.json").write_text(json.dumps(without))
        line = one_line(capsys, run, tmp_path / "out")
        assert f"summary.json' is damaged or of an older program: KeyError('{key}')" in line
    (run / "summary.json").write_text(json.dumps(enough))
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0


def test_a_bank_of_another_run_does_not_pass(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = PosteriorBank.open(run / "bank")
    text = (run / "bank" / "clips.csv").read_text()
    (run / "bank" / "clips.csv").write_text(text.replace(bank.table.clips[0], "another"))
    assert "has lost the posteriors of" in one_line(capsys, run, tmp_path / "out")
