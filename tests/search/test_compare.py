"""`python -m search.compare`: what runs left, and every reason not to compare."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.compare import main
from search.reporting.predictions import predictions_of_run

Edit = Callable[[list[dict[str, str]]], object]


@pytest.fixture()
def other(small_run: Any, tmp_path: Path) -> Callable[..., Path]:
    """Copies the small run's results, changed."""

    def copy(name: str, edit: Edit = list, file: str = "predictions.csv") -> Path:
        run = tmp_path / name
        run.mkdir()
        for path in small_run.path.glob("*.*"):
            if path.suffix in {".csv", ".json"}:
                shutil.copy(path, run)
        with (run / file).open(newline="") as source:
            reader = csv.DictReader(source)
            fields, rows = list(reader.fieldnames or ()), list(reader)
        edit(rows)
        with (run / file).open("w", newline="") as target:
            writer = csv.DictWriter(target, fields)
            writer.writeheader()
            writer.writerows(rows)
        return run

    return copy


def always_right(rows: list[dict[str, str]]) -> None:
    for row in rows:
        for name in list(row)[5:]:
            row[name] = "1.0" if name == row["label"] else "0.0"


def test_a_run_that_is_always_right_is_better_by_what_the_first_lacks(
    small_run: Any, other: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def shuffled_and_right(rows: list[dict[str, str]]) -> None:
        always_right(rows)
        rows.reverse()  # the order of rows means nothing

    run = other("right", shuffled_and_right)
    assert main([str(small_run.path), str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    score = small_run.assessment.fused.honest_score
    assert found["first"] == small_run.path.name
    assert found["others"]["right"]["all"]["value"] == pytest.approx(1 - score, abs=1e-6)
    table = predictions_of_run(small_run.path).table
    assert set(found["others"]["right"]["classes"]) == set(table.classes)
    assert main([str(small_run.path), str(run)]) == 0
    text = capsys.readouterr().out
    assert f"{100 * score:.1f}" in text
    assert "100.0" in text


def test_other_rows_and_metrics_can_be_compared(
    small_run: Any, other: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = other("right", always_right, "predictions_audio.csv")
    arguments = [str(small_run.path), str(run), "--row", "audio", "--metric", "uar"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "uar"
    assert found["others"]["right"]["all"]["value"] > 0.1
    # The headline is the same in both.
    assert main([str(small_run.path), str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["others"]["right"]["all"]["verdict"] == "comparable"


def test_fresh_seeds_are_not_compared(small_run: Any, other: Any) -> None:
    def add_seed(rows: list[dict[str, str]]) -> None:
        rows += [{**row, "seed": "1005"} for row in list(rows)]

    run = other("seeds", add_seed)
    one, two = predictions_of_run(small_run.path), predictions_of_run(run)
    np.testing.assert_array_equal(one.log_posteriors, two.log_posteriors)


def test_other_folds_are_compared_over_all_clips_and_said(
    small_run: Any, other: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def refold(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["fold"] = str((int(row["fold"]) + 1) % 2)

    run = other("refolded", refold)
    assert main([str(small_run.path), str(run)]) == 0
    assert "split into different folds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows.pop(), "1 clips are not in both"),
        (lambda rows: rows[0].update(speaker="nobody"), "differ in speaker or label of clip"),
        (lambda rows: [row.update(happy="nan") for row in rows], "is damaged"),
        (lambda rows: rows.clear(), "is damaged"),
    ],
    ids=["clips", "speaker", "nan", "empty"],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    edit: Edit,
    message: str,
    small_run: Any,
    other: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(small_run.path), str(other("odd", edit))]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_run_that_is_not_there_or_alone_is_refused(
    small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(small_run.path), str(tmp_path / "nowhere")]) == 2
    assert "has no summary.json" in capsys.readouterr().err
    assert main([str(small_run.path)]) == 2
    assert "two runs or more" in capsys.readouterr().err
    assert main([str(small_run.path), str(small_run.path), "--metric", "f1"]) == 2
    assert "Unknown metric 'f1'" in capsys.readouterr().err
