"""Tables of predictions: written, read again, and those of earlier versions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensembles import EnsembleError
from ensembles.bank.prediction_tables import FLOOR, join, read_predictions, write_predictions

BEFORE = Path(__file__).parents[2] / "fixtures" / "before_rooms" / "predictions.csv"
"""Twelve clips of a run of commit ceec14a."""


def test_a_table_that_an_earlier_version_wrote_is_read() -> None:
    with BEFORE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = read_predictions(BEFORE, seed=1)
    assert found.classes == ("neutral", "happy", "sad", "angry", "fearful", "surprised")
    assert list(found.held_out) == [row["clip"] for row in rows]
    assert found.labels == {row["clip"]: row["label"] for row in rows}
    table = found.clip_table(found.held_out, [str(fold) for fold in range(5)])
    assert table.folds.tolist() == [int(row["fold"]) for row in rows]
    assert list(table.speakers) == [row["speaker"] for row in rows]
    expected = [[float(row[name]) for name in table.classes] for row in rows]
    got = np.exp(found.log_posteriors(table.clips, table.classes))
    np.testing.assert_allclose(got, expected, atol=4e-6)
    assert join([found]).table.folds.tolist() == table.folds.tolist()


def test_what_is_written_is_read_again(make_experts: Any, tmp_path: Path) -> None:
    experts = make_experts(skills=(0.5, 0.9), folds=3)
    table, (one, other) = experts.table, experts.log_posteriors
    write_predictions(tmp_path / "one.csv", table, [(5, one), (1005, other)])
    for seed, values in ((5, one), (1005, other)):
        found = read_predictions(tmp_path / "one.csv", seed=seed)
        assert found.clip_table(table.clips, ["0", "1", "2"]).fingerprint == table.fingerprint
        got = found.log_posteriors(table.clips, table.classes)
        np.testing.assert_allclose(np.exp(got), np.exp(values), atol=2e-6)
    with pytest.raises(EnsembleError, match="no row of held-out clips"):
        read_predictions(tmp_path / "one.csv", seed=2)


def test_a_written_zero_is_half_a_unit_of_the_last_digit(tmp_path: Path) -> None:
    file = tmp_path / "sure.csv"
    file.write_text("clip,speaker,fold,label,x,y\na,s,0,x,1.000000,0.000000\n")
    (values,) = read_predictions(file).held_out.values()
    np.testing.assert_allclose(values, np.log([1.0, FLOOR]), atol=1e-6)


def test_columns_are_put_in_the_order_that_is_given(tmp_path: Path) -> None:
    file = tmp_path / "turned.csv"
    file.write_text("clip,speaker,fold,label,y,x\na,s,0,x,0.25,0.75\n")
    values = read_predictions(file).log_posteriors(["a"], ("x", "y"))
    np.testing.assert_allclose(np.exp(values), [[0.75, 0.25]])
