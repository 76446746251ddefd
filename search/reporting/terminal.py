"""Print a run's results to the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich import table as rich_table
from rich.console import Console

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.trace_table import TraceTable
from ensembles.evaluation.assessment import Assessment, Scored
from ensembles.evaluation.bias_correction import MIN_GROUPS
from ensembles.evaluation.breakdown import Detail, detail
from ensembles.evaluation.leaderboard import LEGEND, assessment_rows, leaderboard
from ensembles.evaluation.paired_comparison import Difference, fusion_gains
from ensembles.metrics import get_metric, metrics_of_classes
from search.reporting.html import PAGE
from search.reporting.results import is_over_time
from search.reporting.traces import print_traces, trace_legend

_FUSIONS_SHOWN = 8

_UNKNOWN = "unknown"
"""Value of an attribute that a corpus does not give of a speaker; shown in the files alone."""


def print_report(
    console: Console,
    run: Path,
    assessment: Assessment,
    confirmed: dict[int, dict[str, Scored]],
    facts: dict[str, Any],
) -> None:
    """The leaderboard, and what one should know about its numbers."""
    if leak := facts.get("leak"):
        console.print(f"{leak}.", style="bold", highlight=False, markup=False)
    _print_leaderboard(console, assessment, facts)
    found: Detail | None = None
    if isinstance(assessment.table, TraceTable):
        print_traces(console, facts)
    else:
        found = detail(assessment.table, assessment.fused.log_posteriors, facts.get("people"))
        console.print(_headline(assessment, found), highlight=False, soft_wrap=True)
        if gains := _gains(assessment):
            console.print(gains)
    if confirmed:
        console.print(_confirmation(assessment, confirmed))
    else:
        console.print(_NOT_CONFIRMED, style="dim", highlight=False)
    _print_further(console, assessment, found, facts)
    _print_end(console, run, facts)


_NOT_CONFIRMED = """\
Not confirmed: these are of the one training seed that the search chose by.
--confirm-seeds 3 trains the chosen experts afresh."""


def _print_leaderboard(console: Console, assessment: Assessment, facts: dict[str, Any]) -> None:
    table = assessment.table
    what = f"{len(table.labels)} clips"
    if is_over_time(table):
        what = f"{len(table.spans)} recordings"
    title = (
        f"{facts['corpus']}: {assessment.metric}, {facts['protocol']}, {what}, "
        f"{len(set(table.speakers))} speakers, "
        + (", ".join(table.classes) if facts.get("traces") else f"{len(table.classes)} classes")
    )
    rows = assessment_rows(assessment)
    best = list(assessment.singles.values())
    singles = [row for row in rows if row in best]
    alone = list(assessment.alone.values())
    fusions = [row for row in rows[1:] if row not in singles and row not in alone]
    shown = [rows[0], *alone, *singles, *fusions[:_FUSIONS_SHOWN]]
    console.print(leaderboard(shown, assessment.metric, title))
    if len(fusions) > _FUSIONS_SHOWN:
        console.print(
            f"… and {len(fusions) - _FUSIONS_SHOWN} more fusions in leaderboard.csv",
            style="dim",
            highlight=False,
        )
    legend = LEGEND if isinstance(table, ClipTable) else trace_legend(LEGEND)
    console.print(legend, style="dim", highlight=False)


def _print_further(
    console: Console, assessment: Assessment, found: Detail | None, facts: dict[str, Any]
) -> None:
    """Few speakers one by one, enrolment, test speakers, failures, what guessing gives."""
    table, metric = assessment.table, assessment.metric
    if names := facts.get("fold_names"):
        scores = assessment.fused.fold_scores
        show = get_metric(metric).format
        each = ", ".join(f"{name} {show(value)}" for name, value in zip(names, scores, strict=True))
        console.print(
            f"fused, {metric} on each corpus, by networks trained on the others: {each}",
            highlight=False,
        )
    if found and len(set(table.speakers)) < MIN_GROUPS and metric == "accuracy":
        shown_speakers = ", ".join(f"{n} {100 * v:.0f}" for n, v in found.speakers.items())
        console.print(f"fused, by speaker: {shown_speakers}", style="dim", highlight=False)
    if facts["enrolment"]:
        console.print(_enrolment(metric, facts["enrolment"]), highlight=False)
    if facts["test_speakers"]:
        console.print(
            _test_speakers(metric, facts["test_speakers"], facts.get("test_corpus")),
            highlight=False,
        )
    for name, reason in facts["failures"].items():
        console.print(f"failed: {name}: {reason}", highlight=False)
    if metric == "accuracy":
        majority = max(float((table.labels == k).mean()) for k in range(len(table.classes)))
        console.print(
            f"Always guessing the largest class: {100 * majority:.1f} %.",
            style="dim",
            highlight=False,
        )


def _print_end(console: Console, run: Path, facts: dict[str, Any]) -> None:
    counts, weights = facts["trials"], facts["weights"]
    console.print(
        f"{counts['complete']} trials finished, {counts['pruned']} stopped early, {counts['failed']} failed, "
        f"{counts['unfinished']} unfinished; {facts['seconds']['total']:.0f} s. Networks of "
        f"{weights['experts']} experts kept, {weights['bytes'] / 2**20:.0f} MiB. "
        f"Everything is in {run}",
        highlight=False,
    )
    if (page := run / PAGE).exists():
        console.print(f"To read and to show: {page}", highlight=False, soft_wrap=True)
    else:
        console.print(f"To read and to show: python -m search.report {run}", highlight=False)


def _headline(assessment: Assessment, found: Detail) -> str:
    """The chosen ensemble's score, corrected and from other sides."""
    fused, metric = assessment.fused, get_metric(assessment.metric)
    lines = []
    if corrected := fused.corrected:
        lines.append(
            f"fused, corrected for the choice among {corrected.candidates} recipes: "
            f"{metric.format(corrected.score)} "
            f"({metric.format_interval(corrected.low, corrected.high)})"
        )
    each = ", ".join(
        f"{one.title} {one.format(found.metrics[one.name])}"
        for one in metrics_of_classes().values()
    )
    error = found.metrics["calibration_error"]
    lines.append(f"fused, all clips: {each}, calibration error {100 * error:.1f}")
    weakest = min(found.recall, key=lambda name: found.recall[name])
    speakers = sorted(found.speakers.values())
    sides = [
        f"speakers {100 * speakers[0]:.0f} to {100 * speakers[-1]:.0f}",
        f"weakest class {weakest} {100 * found.recall[weakest]:.0f}",
    ]
    for values in found.groups.values():
        sides += [f"{name} {100 * value:.1f}" for name, value in values.items() if name != _UNKNOWN]
    return "\n".join([*lines, f"fused, accuracy of: {', '.join(sides)}"])


def _gains(assessment: Assessment) -> rich_table.Table | None:
    """Gains of fusion over the best expert of each modality; None where there is one alone."""
    gains = fusion_gains(assessment)
    if len(gains) < 2:
        return None

    def show(metric: str, found: Difference) -> str:
        scale = get_metric(metric)
        value, low, high = scale.format_difference(found.value), found.low, found.high
        return f"{value} ({scale.format(low)} … {scale.format(high)})"

    table = rich_table.Table(
        title="what fusion adds: all clips, and recall of each class, in points (95 %)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("")
    for gain in gains.values():
        table.add_column(f"over {gain.over}", justify="right", no_wrap=True)
    metric = assessment.metric
    table.add_row(metric, *(show(metric, gain.all) for gain in gains.values()))
    for name in next(iter(gains.values())).classes:
        table.add_row(name, *(show("accuracy", g.classes[name]) for g in gains.values()))
    return table


def _enrolment(metric: str, rows: dict[str, Any]) -> str:
    show = get_metric(metric).format
    scores = ", ".join(f"{clips} clips {show(row['honest_score'])}" for clips, row in rows.items())
    return (
        f"Speaker enrolment (inputs normalised by unlabelled clips of the new speaker; all scored "
        f"on the clips that enrol nobody): {scores}"
    )


def _test_speakers(metric: str, found: dict[str, Any], corpus: str | None = None) -> str:
    scored = f"{get_metric(metric).format(found['score'])} by the averaged ensemble on {found['clips']} clips of "
    lines = [f"Test speakers (in no fold): {scored}{', '.join(found['speakers'])}"]
    if corpus:
        also = ", ".join(
            f"{one.title} {one.format(found['metrics'][one.name])}"
            for one in metrics_of_classes().values()
            if one.percent
        )
        lines = [
            f"Test corpus {corpus} (in no fold): {scored}{len(found['speakers'])} speakers; {also}"
        ]
    for values in found.get("groups", {}).values():
        known = [f"{name} {100 * value:.1f}" for name, value in values.items() if name != _UNKNOWN]
        lines.append(f"  accuracy of: {', '.join(known)}")
    if found["scored_before"]:
        lines.append(
            f"  They were scored {found['scored_before']} times before (test-speakers.jsonl): "
            "whoever chose by those scores makes this one optimistic."
        )
    return "\n".join(lines)


def _confirmation(assessment: Assessment, confirmed: dict[int, dict[str, Scored]]) -> str:
    show = get_metric(assessment.metric).format
    lines = [
        f"With fresh training seeds {', '.join(map(str, confirmed))} (same choices, none of these was chosen by):"
    ]
    names = list(dict.fromkeys(name for rows in confirmed.values() for name in rows))
    for name in names:
        values = [rows[name].honest_score for rows in confirmed.values() if name in rows]
        lines.append(
            f"  {name}: {show(float(np.mean(values)))} ({', '.join(show(v) for v in values)})"
        )
    return "\n".join(lines)
