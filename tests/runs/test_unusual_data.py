"""Searches of damaged shards, leaky splits and real corpora's trees; and searches without time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from datasets.corpora.synthetic import load_synthetic
from search.run import main
from tests.runs.conftest import Launcher
from tests.runs.process import one_error
from tests.tiny import make_tiny_shards


def test_a_corrupt_shard_is_named_and_its_intact_clips_can_be_used(
    launch: Launcher, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_shards, broken)
    shard = broken / "shard-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    options = ["--data", broken, "--protocol", "speaker-kfold:2", "--only", "action_units"]
    where = ["--cache-dir", tmp_path / "cache", "--runs-dir", tmp_path / "runs"]
    assert main([str(a) for a in [*options, *where]]) == 2
    assert "shard-00001.tar" in one_error(capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()

    command = launch.search(
        data=broken, cache_dir=tmp_path / "cache", only="action_units", trials=2, name="used",
        skip_corrupt=True,
    )  # fmt: skip
    command.finish()
    assert "corrupt clips are left out" in command.err
    summary = json.loads((tmp_path / "runs" / "used" / "summary.json").read_text())
    assert 18 <= summary["clips"] < 24


def test_a_time_budget_too_short_for_any_trial_says_how_to_go_on_and_then_does(
    launch: Launcher, tmp_path: Path
) -> None:
    command = launch.search(name="hasty", time_budget="0.01s", only="action_units", trials=1)
    command.finish(2)
    assert "No trial finished: the time was over before." in command.err
    assert "--resume hasty --runs-dir" in command.err
    assert "--time-budget 30m" in command.err
    launch.go_on(resume="hasty", time_budget="30m").finish()
    summary = json.loads((tmp_path / "runs" / "hasty" / "summary.json").read_text())
    assert summary["trials"]["complete"] == 1


def test_a_random_split_is_told_first_everywhere(
    launch: Launcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ensembles.export import main as export_main
    from search.compare import main as compare_main

    corpus = load_synthetic(tmp_path / "media", speakers=2, repetitions=5, seed=0)
    make_tiny_shards(corpus, tmp_path / "shards")
    out = launch.search(
        data=tmp_path / "shards", protocol="random", only="functionals", trials=2, epochs=2,
        page=True, name="leaky",
    ).finish()  # fmt: skip
    run = tmp_path / "runs" / "leaky"
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
