"""One search a fold that has never met it, beside the ordinary one: begun later, and taken up where it ended."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from tests.runs.conftest import Launcher


def test_nested_searches_are_added_to_a_finished_run_one_after_the_other(
    launch: Launcher, tmp_path: Path
) -> None:
    """And leave no look at test speakers beside other runs."""
    launch.search(
        name="whole", protocol="speaker-kfold:4", only="functionals,action_units", trials=2
    ).finish()
    run = tmp_path / "runs" / "whole"
    out = launch.go_on(resume="whole", outer=True, outer_folds=1).finish()
    assert "Nested search, 1 outer folds, 6 clips: accuracy" in out
    first = json.loads((run / "outer.json").read_text())
    assert (first["folds"], first["of_folds"], first["trials"]) == (1, 4, 2)

    untouched = (run / "outer" / "fold-0" / "summary.json").stat().st_mtime_ns
    out = launch.go_on(resume="whole", outer=True, outer_folds=2).finish()
    assert "Nested search, 2 outer folds, 12 clips: accuracy" in out
    assert (run / "outer" / "fold-0" / "summary.json").stat().st_mtime_ns == untouched
    both = json.loads((run / "outer.json").read_text())
    assert (both["folds"], both["of_folds"], both["trials"]) == (2, 4, 2)
    assert not (tmp_path / "runs" / "test-speakers.jsonl").exists()
    assert len((run / "outer" / "test-speakers.jsonl").read_text().splitlines()) == 2
    for fold in (0, 1):
        inner = json.loads((run / "outer" / f"fold-{fold}" / "summary.json").read_text())
        assert inner["protocol"] == "speaker-kfold:3"
        held_out = inner["test_speakers"]["speakers"]
        with (run / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert held_out == sorted({row["speaker"] for row in rows if row["fold"] == str(fold)})

    shutil.rmtree(run / "outer" / "fold-1")
    (run / "outer.json").unlink()
    launch.go_on(resume="whole", outer=True, outer_folds=2).finish()
    assert (run / "outer" / "fold-0" / "summary.json").stat().st_mtime_ns == untouched
    assert json.loads((run / "outer.json").read_text()) == both, "a repetition gives the same"
