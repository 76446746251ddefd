"""A paper, reproduced from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets.clips import Corpus
from search.run import main
from tests.runs.conftest import QUICKLY, Launcher
from tests.runs.process import one_error
from tests.tiny import make_tiny_shards


def test_a_paper_is_reproduced_and_resumed(
    launch: Launcher, tiny_corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_shards(tiny_corpus, tmp_path / "shards", name="manifest")
    launch.defaults = {"runs_dir": tmp_path / "runs", **QUICKLY}
    command = launch.search(
        data=tmp_path / "shards", reproduce="luna2022", protocol="speaker-kfold:2", epochs=4,
        name="paper", page=True, seed=None,
    )  # fmt: skip
    out = command.finish()
    assert out.splitlines()[0].startswith(
        "Luna-Jiménez et al. 2022: its checkpoints were chosen on"
    )
    assert "taken for ravdess" in command.err
    assert "MLP(80) on mean action units" in out
    run = tmp_path / "runs" / "paper"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["trials"]["complete"] == 3
    rows = {row["what"]: row for row in summary["reproduced"]["rows"]}
    ours = rows["video: MLP(80) on mean action units"]
    assert 0 <= ours["interval"][0] <= ours["here"] <= ours["interval"][1] <= 1
    assert ours["note"].startswith("4 epochs as asked")
    assert rows["audio: wav2vec2-xlsr, fine-tuned"]["here"] is None
    assert "its checkpoints were chosen on the test fold" in (run / "report.html").read_text()

    launch.go_on(resume="paper").finish()
    again = json.loads((run / "summary.json").read_text())
    assert again["trials"]["complete"] == 3
    assert again["headline"] == summary["headline"]
    assert main(["--extend", "paper", "--runs-dir", str(run.parent), "--trials", "2"]) == 2
    refusal = one_error(capsys.readouterr().err)
    assert "reproduces luna2022: there is nothing to extend" in refusal
