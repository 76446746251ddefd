"""The command as a user meets it: a whole search, and every mistake in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.run import main


@pytest.fixture(autouse=True)
def _own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(cache_folder))


def one_line(capsys: pytest.CaptureFixture[str], arguments: list[object]) -> str:
    """Runs the command in this process; it must end with exit code 2 and one line."""
    assert main([str(a) for a in arguments]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(err) == 1
    return err[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "No index.json in 'nowhere'. Make shards with: python -m datasets.prepare"),
        (["--preset", "fast"], "Unknown preset 'fast'. Known: quick, standard, thorough."),
        (["--protocol", "fair"], "Unknown protocol 'fair'. Known: ravdess-luna5, ravdess-emobox6, iemocap"),
        (["--protocol", "random", "--outer"], "outer holds speakers out: --protocol random does not"),
        (["--protocol", "speaker-kfold:9"], "needs 9 speakers or more, the corpus has 4"),
        (["--protocol", "ravdess-luna5"], "knows Actor_01 to Actor_24, not 'speaker_00'"),
        (["--classes", "happy,joyful"], "Unknown class 'joyful'. Known: neutral, happy, sad"),
        (["--classes", "happy"], "two or more different classes"),
        (["--only", "resnet999"], "Unknown architecture 'resnet999'. Known: alexnet"),
        (["--resume", "nothing"], "No run 'nothing'"),
        (["--resume", "nothing", "--seed", "4"], "No run 'nothing'"),
        (["--cache-gb", "0.000001"], "Raise --cache-gb"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "--cache-gb" in arguments:
        monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "small"))
    data = [] if "--data" in arguments else ["--data", tiny_shards]
    assert message in one_line(capsys, [*data, "--runs-dir", tmp_path / "runs", *arguments])
    assert not (tmp_path / "runs").exists(), "a mistake must leave no run behind"


def test_cuda_without_a_gpu_is_said(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = ["--data", tiny_shards, "--protocol", "speaker-kfold:2", "--device", "cuda"]
    line = one_line(capsys, [*arguments, "--runs-dir", tmp_path])
    assert "torch finds no GPU" in line


def test_a_dry_run_says_what_would_be_searched_and_leaves_nothing(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tiny_shards), "--protocol", "speaker-kfold:2", "--dry-run"]
    arguments += ["--only", "functionals,frame_cnn,action_units,concatenation,bilinear"]
    assert main([*arguments, "--runs-dir", str(tmp_path / "runs")]) == 0
    err = capsys.readouterr().err
    assert "functionals: about" in err
    assert "early concatenation, bilinear" in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow()
def test_a_whole_search_writes_what_it_says_and_refuses_what_it_must(
    launch: Any, small_search: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "search.yaml"
    config.write_text("metric: uar\nconfirm_seeds: 1\n")
    process = launch(
        *small_search, "--config", config, "--name", "whole", "--trials", 6, "--page=true"
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    run = tmp_path / "runs" / "whole"
    for name in ("fused", "best audio", "best video", "best early"):
        assert name in out
    assert "fresh training seeds 1003" in " ".join(out.split())

    assert f"To read and to show: {run / 'report.html'}" in out
    assert "is left out. It could not be drawn" not in (run / "report.html").read_text()

    summary = json.loads((run / "summary.json").read_text())
    assert summary["metric"] == "uar"
    assert summary["protocol"] == "speaker-kfold:2"
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
    assert len(rows) == 2 * 24  # the search's seed and the fresh one
    assert {row["seed"] for row in rows} == {"3", "1003"}
    for row in rows:
        probabilities = [float(row[label]) for label in summary["classes"]]
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-4)

    # A clip by clip count of the file gives the number that was printed.
    ours = [row for row in rows if row["seed"] == "3"]
    scores = []
    for fold in ("0", "1"):
        recalls = []
        for label in summary["classes"]:
            clips = [r for r in ours if r["fold"] == fold and r["label"] == label]
            hits = [max(summary["classes"], key=lambda c: float(r[c])) == label for r in clips]
            recalls.append(sum(hits) / len(hits))
        scores.append(sum(recalls) / len(recalls))
    assert summary["headline"]["fused"]["honest_score"] == pytest.approx(sum(scores) / 2)

    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 3
    weights = sorted(p.name for p in (run / "weights" / "audio-0000").iterdir())
    assert weights == ["fold-0.safetensors", "fold-1.safetensors", "plan.json"]
    assert "100 %" in (run / "logs" / "audio-0000.log").read_text()

    # What it must refuse afterwards.
    assert "already exists. Continue it with --resume whole" in one_line(
        capsys, [*small_search, "--name", "whole"]
    )
    assert "seed cannot change" in one_line(
        capsys, ["--resume", "whole", "--seed", 5, "--runs-dir", tmp_path / "runs"]
    )
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("format_version: 1", "format_version: 99"))
    assert "format version 99" in one_line(
        capsys, ["--resume", "whole", "--runs-dir", tmp_path / "runs"]
    )
    (run / "config.yaml").write_text(text)

    # A finished run can be given more trials.
    process = launch("--resume", "whole", "--runs-dir", tmp_path / "runs", "--trials", 8)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert sum(json.loads((run / "summary.json").read_text())["trials"].values()) == 8


@pytest.mark.slow()
def test_a_corrupt_shard_is_named_and_its_intact_clips_can_be_used(
    launch: Any, small_search: list[object], tiny_shards: Path, tmp_path: Path
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_shards, broken)
    shard = broken / "shard-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    arguments = [broken if a == tiny_shards else a for a in small_search]
    arguments += ["--cache-dir", tmp_path / "cache", "--only", "action_units", "--trials", 2]
    process = launch(*arguments, "--name", "refused")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "shard-00001.tar" in err
    assert "Traceback" not in err
    process = launch(*arguments, "--name", "used", "--skip-corrupt")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "corrupt clips are left out" in err
    summary = json.loads((tmp_path / "runs" / "used" / "summary.json").read_text())
    assert 18 <= summary["clips"] < 24


@pytest.mark.slow()
def test_a_time_budget_too_short_for_any_trial_says_how_to_go_on(
    launch: Any, small_search: list[object]
) -> None:
    process = launch(*small_search, "--name", "hasty", "--time-budget", "0.01s")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "No trial finished: the time was over before." in err
    assert "--resume hasty --runs-dir" in err and "--time-budget 30m" in err
    assert "Traceback" not in err


@pytest.mark.slow()
def test_a_random_split_is_told_first_everywhere(
    launch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets.synthetic import load_synthetic
    from ensembles.export import main as export_main
    from search.compare import main as compare_main
    from tests.tiny import make_tiny_shards

    corpus = load_synthetic(tmp_path / "media", speakers=2, repetitions=5, seed=0)
    make_tiny_shards(corpus, tmp_path / "shards")
    runs = tmp_path / "runs"
    process = launch(
        "--data", tmp_path / "shards", "--protocol", "random", "--only", "functionals", "--trials", 2,
        "--epochs", 2, "--workers", 1, "--dashboard=false", "--runs-dir", runs, "--name", "leaky",
    )  # fmt: skip
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    run = runs / "leaky"
    assert out.startswith("LEAK, as asked (--protocol random)")
    page = (run / "report.html").read_text()
    assert page.index("LEAK, as asked") < page.index("<h1>")
    assert "never heard" not in page
    for table in ("scores.md", "scores.tex"):
        assert "LEAK, as asked" in (run / "tables" / table).read_text().split("clips")[0]
    assert export_main([str(run), "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "model-card.md").read_text().startswith("**LEAK, as asked")
    capsys.readouterr()
    assert compare_main([str(run), str(run)]) == 0
    assert capsys.readouterr().out.startswith("leaky: LEAK, as asked")
