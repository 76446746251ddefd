"""Sections of the page in words and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from html import escape
from typing import Any

from ensembles.bank.posterior_bank import MODALITIES
from ensembles.evaluation.leaderboard import LEGEND
from ensembles.metrics import Metric, get_metric
from search.papers.published import Published, published_on
from search.reporting.html.markup import Cell, code, definitions, paragraph, table
from search.reporting.html.run_results import Evidence
from search.reporting.html.tables import ScoreLine, counted, score_lines, title, told_interval

_MOST_TRIALS = 1000


def headline(evidence: Evidence) -> str:
    """The first thing to read: the honest score, its interval, and the others beside it."""
    lines = score_lines(evidence)
    fused = next(line for line in lines if line.number == "honest score")
    show = evidence.metric.format_with_unit
    beside = [
        f"{line.number} {show(line.value)}"
        for line in lines
        if line.row in (fused.row, "exported ensemble") and line is not fused
    ]
    beside += [f"{line.row} {show(line.value)}" for line in lines if line.number == "guess"]
    found = evidence.summary
    leak = found.get("leak")
    known = "clips of speakers it has heard" if leak else "speakers it has never heard"
    said = (
        f"{evidence.metric.name} of the best fusion on {known} (the honest score: "
        f"{fused.saw}). {counted(evidence)}, {found['protocol']}."
    )
    warning = paragraph(f"{leak}.", "warning") if leak else ""
    return (
        f"{warning}<h1>{escape(str(found['corpus']))}: {escape(evidence.run.name)}</h1>"
        f'<div class="headline"><div><span class="number">{show(fused.value)}</span> '
        f'<span class="interval">({told_interval(evidence, fused)}, 95 %)</span></div>'
        f"{paragraph(said)}"
        f"{paragraph('Beside it: ' + '; '.join(beside) + '.')}</div>"
    )


def about_scores(evidence: Evidence) -> str:
    """How to read the numbers."""
    if leak := evidence.summary.get("leak"):
        return paragraph(f"{leak}. None of them says what to expect of new speakers.")
    confirmed = evidence.summary.get("confirmed")
    seeds = (
        " Not confirmed: these are of the one training seed that the search chose by; "
        "--confirm-seeds 3 trains the chosen experts afresh."
    )
    return paragraph(
        "Every number is of held-out predictions: a clip is predicted by networks that were not trained "
        "on its speaker. They differ in what chose the networks and the fusion. Only the honest, "
        "corrected, fresh-seed and test-speaker scores say what to expect of new speakers."
        + ("" if confirmed else seeds)
    )


def score_table(evidence: Evidence) -> str:
    """Every number, and what it saw; a column for each that several rows have."""
    lines = [line for line in score_lines(evidence) if line.number != "published"]
    found = {(line.row, line.number): line for line in lines}
    lone = [line for line in lines if line.kind in ("test speakers", "one corpus", "guess")]
    kinds = list(dict.fromkeys(line.number for line in lines if line not in lone))
    rows = []
    for row in dict.fromkeys(line.row for line in lines if line not in lone):
        mine = (found.get((row, kind)) for kind in kinds)
        rows.append([Cell(row), *(_with_interval(evidence, line) for line in mine)])
    saw = {line.number: line.saw for line in reversed(lines)}
    entries = [(kind, saw[kind]) for kind in kinds]
    entries += [
        (f"{line.number}: {evidence.metric.format(line.value)}", f"{line.row}; {line.saw}")
        for line in lone
    ]
    return (
        paragraph(title(evidence), "soft")
        + table(("", *kinds), rows, numbers=kinds, stacked=True)
        + "<h3>What each saw</h3>"
        + definitions(entries)
        + paragraph(
            "To paste: tables/scores.md, tables/scores.tex; figures/ as PNG and SVG.", "soft"
        )
    )


def _with_interval(evidence: Evidence, line: ScoreLine | None) -> Cell:
    if line is None:
        return Cell("")
    beside = told_interval(evidence, line)
    value = evidence.metric.format(line.value)
    return Cell(f"{value} ({_unbroken(beside)})" if beside else value, line.value)


def _unbroken(interval: str) -> str:
    """Return an interval that stays in one line."""
    return interval.replace(" – ", "\u00a0–\u2060\u00a0")


def about_published(evidence: Evidence) -> str:
    """Whether there is anything to compare with."""
    if not _published(evidence):
        return paragraph(
            "No published figures are known here for this corpus, number of classes and metric."
        )
    return paragraph(
        f"This run's protocol is {evidence.summary['protocol']}. A figure of another split, or of "
        "networks pretrained on other corpora, is not like for like."
    )


def published_table(evidence: Evidence) -> str:
    """Tabulate what papers report on this corpus, with what it saw; a paper that was reproduced, with ours."""
    reproduced = _reproduced(evidence)
    rows = [
        (
            one.paper,
            one.what,
            Cell(evidence.metric.format_published(one.value), one.value),
            one.protocol,
            one.saw,
        )
        for one in _published(evidence)
    ]
    headings = ("paper", "what", "score", "held out", "what else it saw")
    figures = table(headings, rows, numbers=("score",), stacked=True) if rows else ""
    return reproduced + figures


def _reproduced(evidence: Evidence) -> str:
    """A paper's own networks, trained here: its flaw, then its figures beside ours."""
    found = evidence.summary.get("reproduced")
    if not found:
        return ""

    def cell(form: Callable[[float], str], value: float | None) -> Cell:
        return Cell("–") if value is None else Cell(form(value), value)

    rows, metric = [], get_metric(found.get("metric", "accuracy"))
    for row in found["rows"]:
        interval = metric.format_interval(*row["interval"]) if row["interval"] else ""
        figures = cell(metric.format_published, row["published"]), cell(metric.format, row["here"])
        rows.append((row["what"], *figures, Cell(_unbroken(interval)), row["note"]))
    headings = ("what", "published", "here", "95 %", "differs")
    said = f"Reproduced here, from {found['authors']}: {found['flaw']}."
    return paragraph(said) + table(headings, rows, numbers=headings[1:4], stacked=True)


def _published(evidence: Evidence) -> tuple[Published, ...]:
    found = evidence.summary
    return published_on(str(found["corpus"]), len(found["classes"]), evidence.metric.name)


def about_gains(evidence: Evidence) -> str:
    """The comparison in words."""
    found = evidence.summary.get("gains") or {}
    said = [
        f"over {gain['over']} {_difference(evidence.metric, gain['all'])}, {gain['all']['verdict']}"
        for gain in found.values()
    ]
    lone = len(evidence.modalities) < 2
    why = "There is one modality alone, so that its own trials are what is fused. " if lone else ""
    unit = f"{evidence.metric.difference_unit} of {evidence.metric.name}"
    return paragraph(f"{why}In {unit}: {'; '.join(said)}." if said else why)


def _difference(metric: Metric, found: dict[str, Any]) -> str:
    return metric.format_differences(found["value"], found["low"], found["high"])


def gain_table(evidence: Evidence) -> str:
    """The same gains as numbers."""
    found = evidence.summary.get("gains") or {}
    if not found:
        return ""
    classes = list(next(iter(found.values()))["classes"])
    metric, recall = evidence.metric, get_metric("accuracy")
    rows = [(f"all: {metric.name}", *(_difference(metric, gain["all"]) for gain in found.values()))]
    for name in classes:
        cells = (_difference(recall, gain["classes"][name]) for gain in found.values())
        rows.append((f"recall of {name}", *cells))
    headings = ("gain (95 %)", *(f"over {gain['over']}" for gain in found.values()))
    shown = table(headings, rows, stacked=True)
    return f"<details><summary>The same as numbers</summary>{shown}</details>"


_COLUMNS = {
    "honest_score": "honest",
    "interval_low": "low",
    "interval_high": "high",
    "corrected_score": "BBC",
    "search_score": "search",
    "honest_score_pooled": "pooled",
}


def about_leaderboard(evidence: Evidence) -> str:
    """Explain its columns."""
    return f"<details><summary>What the columns mean</summary>{code(LEGEND)}</details>"


def leaderboard_table(evidence: Evidence) -> str:
    """Every fusion and best expert; its headings sort it."""
    if not evidence.leaderboard:
        return paragraph(
            evidence.missing.get("leaderboard.csv", "leaderboard.csv is empty."), "left-out"
        )
    known = {key: told for key, told in _COLUMNS.items() if key in evidence.leaderboard[0]}
    rows = []
    for row in evidence.leaderboard:
        experts = (row.get("experts") or "").split()
        cells = [_score(evidence, row[key]) for key in known]
        rows.append([Cell(row["name"]), *cells, Cell(str(len(experts)), len(experts))])
    headings = ("name", *known.values(), "experts")
    return table(headings, rows, numbers=headings[1:], sortable=True)


def _score(evidence: Evidence, text: str | None) -> Cell:
    try:
        value = float(text or "")
    except ValueError:
        return Cell(text or "")
    return Cell(evidence.metric.format(value), value)


def about_speakers(evidence: Evidence) -> str:
    """The worst and the best."""
    found = evidence.summary.get("detail", {}).get("fused", {}).get("speakers") or {}
    if not found:
        return ""
    worst, best = min(found, key=lambda n: found[n]), max(found, key=lambda n: found[n])
    return paragraph(
        f"From {100 * found[worst]:.0f} % ({worst}) to {100 * found[best]:.0f} % ({best}). "
        "The interval of the headline is over speakers, because clips of one resemble each other."
    )


def group_table(evidence: Evidence) -> str:
    """Accuracy by what the corpus says of its speakers."""
    groups = evidence.summary.get("detail", {}).get("fused", {}).get("groups") or {}
    if not groups:
        return paragraph("The corpus says nothing of its speakers by which to group them.", "soft")
    people = evidence.summary.get("people") or {}
    speakers = evidence.summary["detail"]["fused"].get("speakers") or {}
    rows = []
    for attribute, values in groups.items():
        kinds = Counter(people.get(attribute, {}).get(name, "unknown") for name in speakers)
        rows += [
            (attribute, kind, str(kinds[kind]), Cell(f"{100 * value:.1f}", value))
            for kind, value in values.items()
        ]
    headings = ("of speakers", "group", "speakers", "accuracy, %")
    return table(headings, rows, numbers=("speakers", "accuracy, %"))


def about_calibration(evidence: Evidence) -> str:
    """The expected calibration error of each."""
    detail = evidence.summary.get("detail", {})
    said = [
        f"{name if name == 'fused' else f'best {name}'} {100 * detail[name]['metrics']['calibration_error']:.1f}"
        for name in ("fused", *MODALITIES)
        if "calibration_error" in detail.get(name, {}).get("metrics", {})
    ]
    if not said:
        return ""
    return paragraph(
        f"Expected calibration error, in points: {', '.join(said)}. It is the mean distance between how "
        "sure the answer is and how often such answers are right (15 bins in these numbers)."
    )


def about_space(evidence: Evidence) -> str:
    """Describe what was searched and what was not."""
    scope = evidence.summary.get("scope") or {}
    offered = [
        f"{side}: {', '.join(names)}"
        for side, names in (scope.get("single") or {}).items()
        if names
    ]
    if fusions := scope.get("fusions"):
        offered.append(f"early fusion: {', '.join(fusions)}")
    out = ""
    if why_not := scope.get("why_not"):
        lines = "".join(f"<li>{escape(n)}: {escape(str(w))}</li>" for n, w in why_not.items())
        out = f"<details><summary>Left out of the search: {len(why_not)}</summary><ul>{lines}</ul></details>"
    said = f"Searched: {'; '.join(offered)}. " if offered else ""
    return (
        paragraph(
            f"{said}Settings are shown of the architecture of each modality that has most finished trials."
        )
        + out
    )


def about_curves(evidence: Evidence) -> str:
    """Describe which trials are stopped, and where."""
    stopped = Counter(
        max(t.rungs) for t in evidence.trials if t.ended == "stopped early" and t.rungs
    )
    told = ", ".join(f"{count} at {percent} %" for percent, count in sorted(stopped.items()))
    return paragraph(
        f"Stopped early: {told or 'none'}. From half of its own schedule on, a trial must be in the better "
        "half of its modality. These scores are of single trials over all folds; the search chooses by them."
    )


def about_trials(evidence: Evidence) -> str:
    """How many ended how, and how long it took."""
    counts, seconds = evidence.summary.get("trials") or {}, evidence.summary.get("seconds") or {}
    said = [
        f"{counts.get('complete', 0)} finished, {counts.get('pruned', 0)} stopped early, "
        f"{counts.get('failed', 0)} failed, {counts.get('unfinished', 0)} unfinished"
    ]
    if seconds:
        said.append(
            f"{_duration(seconds['search'])} of search, {_duration(seconds['total'])} in all"
        )
    return paragraph("; ".join(said) + ".")


def _duration(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def failure_table(evidence: Evidence) -> str:
    """Tabulate the trials that failed, and why."""
    failures: dict[str, Any] = evidence.summary.get("failures") or {}
    if not failures:
        return paragraph("No trial failed.", "soft")
    rows = [(name, str(reason)) for name, reason in failures.items()]
    return f"<h3>Failures</h3>{table(('trial', 'why'), rows, stacked=True)}"


def trial_table(evidence: Evidence) -> str:
    """Every trial with its settings."""
    if not evidence.trials:
        return paragraph(
            evidence.missing.get("journal.log", "The journal holds no trial."), "left-out"
        )
    rows = []
    for trial in evidence.trials[:_MOST_TRIALS]:
        last = trial.rungs.get(max(trial.rungs)) if trial.rungs else None
        value = None if last is None else evidence.metric.sign * last
        settings = ", ".join(f"{k} {_plain(v)}" for k, v in trial.settings.items())
        rows.append(
            (
                trial.name,
                trial.architecture,
                trial.ended,
                Cell("" if value is None else evidence.metric.format(value), value),
                Cell(f"{max(trial.rungs, default=0)}", max(trial.rungs, default=0)),
                Cell("" if trial.seconds is None else f"{trial.seconds:.0f}", trial.seconds),
                settings,
            )
        )
    headings = ("trial", "architecture", "end", "last score", "at %", "seconds", "settings")
    shown = table(headings, rows, numbers=("last score", "at %", "seconds"), sortable=True)
    more = len(evidence.trials) - _MOST_TRIALS
    rest = paragraph(f"… and {more} more in journal.log.", "soft") if more > 0 else ""
    return f"<details><summary>Every trial: {len(evidence.trials)}</summary>{shown}{rest}</details>"


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
