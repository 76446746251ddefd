"""The road that everybody takes: a search by either runner, a kill and its resumption, an export and its answers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.faults.injection import injection
from tests.runs.conftest import Launcher, Searched
from tests.runs.process import assert_same_entries, bank, happened, journal, words
from tests.runs.serving import Server
from tests.small_run import JointCorpus

pytestmark = pytest.mark.road


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def test_a_whole_search_writes_what_it_promises(searched: Searched) -> None:
    run, out = searched.run, searched.out
    for name in ("fused", "best audio", "best video", "best early", "Test speakers (in no fold): "):
        assert name in out
    assert "fresh training seeds 1003" in words(out)
    assert f"To read and to show: {run / 'report.html'}" in words(out)
    assert "is left out. It could not be drawn" not in (run / "report.html").read_text()

    summary = summary_of(run)
    assert (summary["metric"], summary["protocol"]) == ("uar", "speaker-kfold:3")
    assert summary["trials"] == {"complete": 6, "pruned": 0, "failed": 0, "unfinished": 0}
    alone = {"audio_alone", "video_alone", "early_alone"}
    assert set(summary["headline"]) == {"audio", "video", "early", "fused"} | alone
    for row in summary["headline"].values():
        assert 0 <= row["honest_score"] <= 1
        assert row["search_score"] is not None
    confirmed = set(summary["confirmed"]["1003"])
    assert confirmed >= {"fused", "audio alone", "video alone", "early alone"}
    assert {"command", "commit", "versions", "seed", "seconds"} <= set(summary)

    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 18  # the search's seed and the fresh one
    assert {row["seed"] for row in rows} == {"3", "1003"}
    assert "speaker_03" not in {row["speaker"] for row in rows}
    for row in rows:
        probabilities = [float(row[label]) for label in summary["classes"]]
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-4)

    # Counting the file's clips one by one gives the number that was printed.
    ours = [row for row in rows if row["seed"] == "3"]
    scores = []
    for fold in ("0", "1", "2"):
        recalls = []
        for label in summary["classes"]:
            clips = [r for r in ours if r["fold"] == fold and r["label"] == label]
            hits = [max(summary["classes"], key=lambda c: float(r[c])) == label for r in clips]
            recalls.append(sum(hits) / len(hits))
        scores.append(sum(recalls) / len(recalls))
    assert summary["headline"]["fused"]["honest_score"] == pytest.approx(sum(scores) / 3)

    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 3
    kept = {path.name for path in (run / "weights").iterdir()}
    needed = {
        name for choice in summary["headline"]["fused"]["per_fold"] for name in choice["experts"]
    }
    assert needed <= kept <= set(summary["experts"])
    for name in kept:
        files = sorted(path.name for path in (run / "weights" / name).iterdir())
        assert files == [*(f"fold-{fold}.safetensors" for fold in range(3)), "plan.json"]
    assert "100 %" in (run / "logs" / "audio-0000.log").read_text()
    assert not list((run / "checkpoints").glob("*")), "of trials that have ended"


def test_ray_train_workers_give_the_same_numbers(
    searched: Searched, searched_by_train: Searched
) -> None:
    assert summary_of(searched_by_train.run)["runner"] == "train"
    assert summary_of(searched.run)["runner"] == "actor"
    trained, expected = journal(searched_by_train.run), journal(searched.run)
    assert {name.partition("-")[0] for name in trained} == {"audio", "video", "early"}
    assert trained == {name: expected[name] for name in trained}
    entries = bank(searched.run)
    assert_same_entries(
        bank(searched_by_train.run),
        {key: logits for key, logits in entries.items() if key[0] in trained},
    )


def test_a_run_killed_in_the_middle_ends_as_the_undisturbed_one(
    launch_joint: Launcher, searched: Searched, tmp_path: Path
) -> None:
    run, file = tmp_path / "runs" / "killed", tmp_path / "held"
    hold = {"kind": "hold", "trial": "video-0000", "step": 8, "file": str(file)}
    quickly = {"name": "killed", "confirm_seeds": 0, "keep_weights": "all"}
    command = launch_joint.search(**quickly, env=injection(hold))
    command.until(happened(file))
    command.kill()
    assert "video-0000" in {t for t, found in journal(run).items() if found["state"] == "RUNNING"}

    launch_joint.go_on(resume="killed").finish()
    assert journal(run) == journal(searched.run)
    expected = {key: logits for key, logits in bank(searched.run).items() if "+" not in key[0]}
    assert_same_entries(bank(run), expected)
    headline = summary_of(run)["headline"]
    assert headline == summary_of(searched.run)["headline"]


@pytest.fixture(scope="module")
def ensemble(searched: Searched, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search's ensemble, as the command exports it."""
    out = tmp_path_factory.mktemp("exported") / "ensemble"
    command = [sys.executable, "-m", "ensembles.export", str(searched.run), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("table", "folds"), [("predictions.csv", (0, 1, 2)), ("predictions_test.csv", (-1,))]
)
def test_the_export_predicts_what_the_run_published(
    ensemble: Path, searched: Searched, joint: JointCorpus, table: str, folds: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from ensembles.predict import main as predict

    classes = summary_of(searched.run)["classes"]
    with (searched.run / table).open() as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "3"]
    assert len(rows) == 6 * len(folds)
    for fold in folds:
        held_out = [row for row in rows if int(row["fold"]) == fold]
        given = [str(joint.media[row["clip"]]) for row in held_out]
        given += ["--json", "--features", str(joint.features)]
        given += ["--fold", str(fold)] if fold >= 0 else []
        assert predict([str(ensemble), *given]) == 0
        lines = capsys.readouterr().out.splitlines()
        found = [list(json.loads(line)["probabilities"].values()) for line in lines]
        expected = [[float(row[label]) for label in classes] for row in held_out]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_command_the_folders_own_script_and_the_server_give_one_answer(
    ensemble: Path, joint: JointCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a clip whose features nobody has; the script runs elsewhere, with nothing of this repository."""
    from ensembles.predict import main as predict

    clip = joint.media["s03-sad-00"]
    assert predict([str(ensemble), str(clip), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["probabilities"]
    script = [sys.executable, "-I", str(ensemble / "predict.py"), str(clip), "--json"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["probabilities"] == pytest.approx(expected, abs=1e-4)
    with Server(ensemble) as server:
        status, answer = server.predict(clip)
    assert status == 200
    assert answer["probabilities"] == pytest.approx(expected, abs=1e-4)
