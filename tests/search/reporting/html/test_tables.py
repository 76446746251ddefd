"""The scores to paste: every number with what it saw."""

from __future__ import annotations

from pathlib import Path

from search.papers.published import published_on
from search.reporting.html.run_results import read_evidence
from search.reporting.html.tables import latex, markdown, score_lines


def test_every_number_of_the_headline_says_what_it_saw(run: Path) -> None:
    evidence = read_evidence(run)
    lines = {(line.row, line.number): line for line in score_lines(evidence)}
    fused = evidence.summary["headline"]["fused"]
    assert lines["fused", "honest score"].value == fused["honest_score"]
    assert lines["fused", "search score"].saw.endswith("optimistic")
    assert lines["fused", "fresh seeds"].each == (
        evidence.summary["confirmed"]["1000"]["fused"]["honest_score"],
    )
    assert "looked at 2 times before" in lines["exported ensemble", "test speakers"].saw
    assert lines["always the largest class", "guess"].value == 1 / 3
    assert ("early alone", "honest score") in lines
    assert all(line.saw for line in lines.values())


def test_both_tables_have_a_row_for_every_number(run: Path) -> None:
    evidence = read_evidence(run)
    lines = score_lines(evidence)
    for row in markdown(evidence).splitlines()[2:]:
        assert row.count("|") == 6
    assert markdown(evidence).count("\n") == len(lines) + 4
    rows = [row for row in latex(evidence).splitlines() if row.endswith(r"\\")]
    assert len(rows) == len(lines) + 1
    assert all(row.count(" & ") == 4 for row in rows)
    assert r"95 \%" in rows[0]


def test_signs_of_markup_are_shown_as_they_are(run: Path) -> None:
    evidence = read_evidence(run)
    evidence.summary["headline"]["fused"]["name"] = r"$\frac{1}{2}$ <b> a|b_c"
    assert (
        r"\$\textbackslash{}frac\{1\}\{2\}\$ \textless{}b\textgreater{} a\textbar{}b\_c"
        in latex(evidence)
    )
    assert r"\<b\> a\|b\_c | honest score" in markdown(evidence)


def test_published_figures_are_of_the_same_task() -> None:
    assert {one.value for one in published_on("ravdess", 8, "accuracy")} >= {0.8008, 0.7658}
    assert all("random" in one.protocol for one in published_on("iemocap", 4, "accuracy"))
    assert not published_on("ravdess", 8, "uar")
    assert not published_on("ravdess", 6, "accuracy")
    assert not published_on("invented", 8, "accuracy")
