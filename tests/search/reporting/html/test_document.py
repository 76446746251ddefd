"""`report.html`: complete, true to the summary, safe, and in need of nothing but itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.report import draw_report, main
from search.reporting.html import document
from search.reporting.html.document import write_page

from .conftest import make_run

HOSTILE = '<script>alert("x")</script>$\\frac{_}$&amp;'
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """What of a page matters here; fails where an element is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    def ids(self) -> list[str]:
        return [value for _, named in self.tags if (value := named.get("id"))]


@pytest.fixture(scope="module")
def written(run: Path) -> tuple[Page, str, dict[str, Any]]:
    path, wrong = write_page(run)
    assert not wrong
    text = path.read_text()
    return Page(text), text, json.loads((run / "summary.json").read_text())


def test_a_page_needs_nothing_but_itself(written: tuple[Page, str, Any]) -> None:
    page, text, _ = written
    for tag, named in page.tags:
        assert tag not in ("link", "img", "image", "iframe", "object", "base", "form")
        assert "src" not in named
        assert "xmlns" not in named
        for name, value in named.items():
            assert not name.startswith("on")
            if name.endswith("href"):
                assert (value or "").startswith("#")
    assert not re.search(r"https?:|//www|@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_links_within_a_page_lead_to_one_place_each(written: tuple[Page, str, Any]) -> None:
    page, text, _ = written
    ids = page.ids()
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert targets
    assert set(targets) <= set(ids)


def test_numbers_are_those_of_the_summary(written: tuple[Page, str, Any]) -> None:
    page, _, summary = written
    fused = summary["headline"]["fused"]
    low, high = fused["interval_95"]
    assert (
        f"{100 * fused['honest_score']:.1f} % ({100 * low:.1f} – {100 * high:.1f}, 95 %)"
        in page.text
    )
    fresh = summary["confirmed"]["1000"]["fused"]["honest_score"]
    for said in (
        f"corrected score {100 * fused['corrected']['score']:.1f} %",
        f"fresh seeds {100 * fresh:.1f} %",
        f"search score {100 * fused['search_score']:.1f} %",
        "test speakers 62.5 %",
        "always the largest class 33.3 %",
        f"fused {100 * summary['detail']['fused']['metrics']['calibration_error']:.1f}",
    ):
        assert said in page.text
    gain = summary["gains"]["video"]["classes"]["joy"]
    told = "{:+.1f} ({:+.1f} … {:+.1f})".format(*(100 * gain[k] for k in ("value", "low", "high")))
    assert told in page.text


def test_every_section_is_there(written: tuple[Page, str, Any]) -> None:
    page = written[0]
    sections = [named["id"] for tag, named in page.tags if tag == "section"]
    assert sections == [
        "scores", "published", "fusion", "leaderboard", "confusions", "speakers", "calibration",
        "space", "curves", "trials", "repeat",
    ]  # fmt: skip
    assert "is left out" not in page.text
    for said in (
        "out of memory",
        "cnn14: too slow",
        "0123456789ab",
        "torch 2.14.0",
        "python -m search.run --data 'some shards' --preset quick --seed 0",
        "10 finished, 3 stopped early, 1 failed",
    ):
        assert said in page.text


def test_every_figure_is_also_a_png_and_an_svg(written: tuple[Page, str, Any], run: Path) -> None:
    names = {path.stem for path in (run / "figures").iterdir()}
    assert len(names) == [tag for tag, _ in written[0].tags].count("figure") == 21
    for name in names:
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (run / "figures" / f"{name}.svg").read_text()


def test_the_same_run_gives_the_same_page(small: Path) -> None:
    before = (small / "report.html").read_text()
    write_page(small)
    assert (small / "report.html").read_text() == before


def test_what_names_hold_is_shown_and_never_run(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "<b>run", classes=(HOSTILE, "joy"), modalities=("audio",), corpus=HOSTILE,
        failure=HOSTILE, commit=HOSTILE, trials=9,
    )  # fmt: skip
    path, wrong = write_page(run)
    assert not wrong
    page = Page(path.read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert page.text.count(HOSTILE) >= 5
    assert "<b>run" in page.text


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One modality, three trials, none stopped: few figures."""
    folder = tmp_path_factory.mktemp("small") / "run"
    make_run(folder, modalities=("video",), stops=False, failure="", trials=3)
    assert write_page(folder) == (folder / "report.html", [])
    return folder


def test_one_modality_and_no_stopped_trial_is_told_so(small: Path) -> None:
    page = Page((small / "report.html").read_text())
    assert "There is one modality alone" in page.text
    assert "Stopped early: none." in page.text
    assert "No trial failed." in page.text
    why = (
        "It takes 8 finished trials of one video architecture; the most tried, action_units, has 3."
    )
    assert page.text.count(why) == 3
    assert not (small / "figures" / "importances_video.png").exists()
    assert (small / "figures" / "curves_video.png").exists()


def test_log_loss_is_shown_in_nats_and_less_is_better(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", modalities=("audio",), metric="log_loss", trials=3)
    summary = json.loads((run / "summary.json").read_text())
    path, wrong = write_page(run)
    assert not wrong
    assert f"{summary['headline']['fused']['honest_score']:.3f} (" in Page(path.read_text()).text


def break_journal(run: Path) -> None:
    (run / "journal.log").write_text('{"op_code": 0}\nnothing\n' * 3)


def lose_predictions(run: Path) -> None:
    (run / "predictions.csv").unlink()
    (run / "leaderboard.csv").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_journal, "journal.log cannot be read"),
        (lose_predictions, "has no predictions.csv"),
    ],
)
def test_what_a_folder_lacks_leaves_only_its_figures_out(
    small: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    damage(copy)
    path, wrong = write_page(copy)
    assert not wrong
    assert (copy / "figures" / "curves_video.png").exists() == (damage is not break_journal)
    assert said in Page(path.read_text()).text
    assert (copy / "figures" / "headline.png").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no summary.json"),
        ("{", "is damaged"),
        ('{"format_version": 9}', "of format version 9"),
        ('{"format_version": 1, "commit": "abc"}', "Use commit abc, which made it"),
        ('{"format_version": 2}', "no corpus"),
    ],
)
def test_a_run_without_results_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_an_older_summary_is_read(small: Path, tmp_path: Path, capsys: Any) -> None:
    """Before there was a corrected score, gains, people, a command or a machine."""
    copy = tmp_path / "old"
    shutil.copytree(small, copy)
    summary = json.loads((copy / "summary.json").read_text())
    for key in (
        "gains",
        "people",
        "confirmed",
        "machine",
        "command",
        "versions",
        "scope",
        "seconds",
    ):
        del summary[key]
    for row in summary["headline"].values():
        del row["corrected"]
    for found in summary["detail"].values():
        for key in ("speakers", "metrics", "groups"):
            del found[key]
    (copy / "summary.json").write_text(json.dumps(summary))
    assert main([str(copy)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(copy / "report.html")
    assert not said.err
    assert "has no scores of single speakers" in Page((copy / "report.html").read_text()).text


def test_a_figure_that_fails_loses_nothing_else(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    whole = document.save

    def save(figure: Any, name: str, folder: Path) -> str:
        if name == "gains":
            raise RuntimeError("no such font")
        return whole(figure, name, folder)

    monkeypatch.setattr(document, "save", save)
    out = StringIO()
    draw_report(copy, Console(file=out, width=60))
    assert out.getvalue() == "warning: figure 'gains' is left out: RuntimeError('no such font')\n"
    assert not (copy / "figures" / "gains.png").exists()
    assert "It could not be drawn" in (copy / "report.html").read_text()


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    out = StringIO()
    draw_report(tmp_path, Console(file=out, width=60))
    assert out.getvalue().startswith("warning: report.html was not written: ")
    assert out.getvalue().count("\n") == 1
