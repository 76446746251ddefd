"""What a run says of itself: the headline from every side, in the terminal and in files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from datasets.sharding.index import ClipEntry
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import assess
from ensembles.evaluation.breakdown import detail
from ensembles.metrics import log_softmax
from search.data.bank_tables import people
from search.reporting.results import write_reports
from search.reporting.terminal import print_report

FACTS: dict[str, Any] = {
    "corpus": "invented",
    "protocol": "speaker-kfold:3",
    "seed": 0,
    "trials": {"complete": 4, "pruned": 0, "failed": 0, "unfinished": 0},
    "failures": {},
    "seconds": {"search": 1.0, "total": 2.0},
    "weights": {"experts": 4, "bytes": 0},
    "enrolment": {},
    "test_speakers": None,
    "people": {"gender": {f"s{s:02d}": "female" if s % 2 else "male" for s in range(12)}},
}


@pytest.fixture(scope="module")
def experts() -> Experts:
    """Two of each modality, 12 speakers in three folds; of class c nobody is ever sure."""
    speaker = np.repeat(np.arange(12), 9)
    labels = (np.arange(108) % 3).astype(np.int64)
    logits = np.random.default_rng(0).normal(size=(4, 108, 3))
    logits[:, np.arange(108), labels] += np.array([2.0, 2.0, -0.5])[labels]
    table = ClipTable(
        clips=tuple(f"clip{n}" for n in range(108)),
        speakers=tuple(f"s{s:02d}" for s in speaker),
        folds=(speaker % 3).astype(np.int64),
        labels=labels,
        classes=("a", "b", "c"),
    )
    kinds = ("audio", "audio", "video", "video")
    return Experts(table, tuple(f"e{m}" for m in range(4)), kinds, log_softmax(logits))


def test_a_detail_says_what_a_score_is_made_of(experts: Experts) -> None:
    table, values = experts.table, experts.log_posteriors[0]
    found = detail(table, values, FACTS["people"])
    right = values.argmax(axis=1) == table.labels
    odd = np.array([int(name[1:]) % 2 for name in table.speakers], bool)
    assert found.groups["gender"] == {
        "female": pytest.approx(right[odd].mean()),
        "male": pytest.approx(right[~odd].mean()),
    }
    assert found.metrics["accuracy"] == pytest.approx(right.mean())
    assert found.metrics["uar"] == pytest.approx(np.mean(list(found.recall.values())))
    assert found.speakers["s03"] == pytest.approx(right[27:36].mean())
    assert np.sum(found.confusion) == 108
    assert 0 < found.metrics["calibration_error"] < 1
    without = detail(table, values)
    assert replace(found, groups={}) == without


def test_the_headline_is_told_from_every_side(experts: Experts, tmp_path: Any) -> None:
    assessment = assess(experts, "accuracy")
    write_reports(tmp_path, assessment, {}, FACTS)
    out = StringIO()
    print_report(Console(file=out, width=120), tmp_path, assessment, {}, FACTS)
    text = out.getvalue()
    summary = json.loads((tmp_path / "summary.json").read_text())
    fused, sides = summary["headline"]["fused"], summary["detail"]["fused"]
    corrected = fused["corrected"]
    assert corrected["candidates"] == len(summary["fusions"])
    assert (
        f"corrected for the choice among {corrected['candidates']} recipes: "
        f"{100 * corrected['score']:.1f}" in text
    )
    assert f"macro-F1 {100 * sides['metrics']['macro_f1']:.1f}" in text
    assert f"weakest class c {100 * sides['recall']['c']:.0f}" in text
    assert f"female {100 * sides['groups']['gender']['female']:.1f}" in text
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["name"] == "fused"
    assert float(first["corrected_score"]) == corrected["score"]


def test_what_does_not_change_from_clip_to_clip_is_known_of_people() -> None:
    def entry(speaker: str, **attributes: str) -> ClipEntry:
        return ClipEntry(
            clip=f"{speaker}{attributes}",
            speaker=speaker,
            label="a",
            shard="",
            samples=0,
            frames=0,
            features=0,
            content_hash="",
            audio_hash="",
            attributes=attributes,
        )

    class Index:
        clips = (
            entry("one", gender="male", language="en", age="30", session="1"),
            entry("one", gender="male", language="de", session="1"),
            entry("two", gender="female", language="en", session="1"),
            entry("three", gender="female", intensity="strong", session="1"),
        )

    # A language changes, an age is of one alone, all are of one session, intensity is no kind of person.
    assert people(Index) == {  # type: ignore[arg-type]
        "gender": {"one": "male", "two": "female", "three": "female"}
    }
