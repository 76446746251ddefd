"""What a run leaves behind: terminal leaderboard, `summary.json`, `leaderboard.csv`, predictions.

`python -m search.report RUN` writes a run's `report.html` again, with its figures and tables.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from rich import box
from rich import table as rich_table
from rich.console import Console

from datasets.storage.atomic import write_atomically
from ensembles import EnsembleError
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Table, of_clips
from ensembles.bank.trace_table import TraceTable
from ensembles.evaluation.assessment import Assessment, Scored
from ensembles.evaluation.bias_correction import MIN_GROUPS
from ensembles.evaluation.breakdown import Detail, detail
from ensembles.evaluation.leaderboard import LEGEND, assessment_rows, leaderboard
from ensembles.evaluation.paired_comparison import Difference, fusion_gains
from ensembles.metrics import Array, told
from search.pages import PAGE
from search.trace_report import print_traces, trace_legend, write_traces

SUMMARY_VERSION = 1
_FUSIONS_SHOWN = 8
_UNKNOWN = "unknown"
"""Of whom a corpus does not say what another says; in the files."""


def write_reports(
    run: Path,
    assessment: Assessment,
    confirmed: dict[int, dict[str, Scored]],
    facts: dict[str, Any],
) -> None:
    """Writes every machine-readable result; docs/run-folder.md is their schema."""
    write_atomically(
        run / "summary.json", json.dumps(_summary(assessment, confirmed, facts), indent=1).encode()
    )
    _write_leaderboard(run / "leaderboard.csv", assessment)
    search_seed = int(facts["seed"])
    if isinstance(assessment.table, TraceTable):
        write_traces(run / "predictions.csv", assessment.table, assessment.fused.log_posteriors)
        return
    fused = [(search_seed, assessment.fused.log_posteriors)]
    fused += [(seed, rows["fused"].log_posteriors) for seed, rows in confirmed.items()]
    table = of_clips(assessment.table)
    write_predictions(run / "predictions.csv", table, fused)
    for modality in ("audio", "video", "early"):
        row = assessment.row(f"best {modality}")
        if row is not None:
            write_predictions(
                run / f"predictions_{modality}.csv",
                table,
                [(search_seed, row.log_posteriors)],
            )


def write_predictions(path: Path, table: ClipTable, by_seed: list[tuple[int, Array]]) -> None:
    """Held-out posteriors as `ensembles.build --posteriors` reads them."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["clip", "speaker", "fold", "seed", "label", *table.classes])
    for seed, log_posteriors in by_seed:
        for row, values in enumerate(np.exp(log_posteriors)):
            writer.writerow(
                [
                    table.clips[row],
                    table.speakers[row],
                    table.folds[row],
                    seed,
                    table.classes[table.labels[row]],
                ]
                + [f"{value:.6f}" for value in values]
            )
    write_atomically(path, text.getvalue().encode())


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
    if _over_time(table):
        what = f"{len(table.spans)} recordings"
    title = (
        f"{facts['corpus']}: {assessment.metric}, {facts['protocol']}, {what}, "
        f"{len(set(table.speakers))} speakers, "
        + (", ".join(table.classes) if facts.get("traces") else f"{len(table.classes)} classes")
    )
    rows = assessment_rows(assessment)
    singles = [row for row in rows if row.name.startswith("best ")]
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
        each = ", ".join(
            f"{name} {told(metric, value)}" for name, value in zip(names, scores, strict=True)
        )
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
    fused, metrics = assessment.fused, found.metrics
    percent = assessment.metric != "log_loss"

    def show(value: float) -> str:
        return f"{100 * value:.1f}" if percent else f"{value:.3f}"

    lines = []
    if corrected := fused.corrected:
        lines.append(
            f"fused, corrected for the choice among {corrected.candidates} recipes: "
            f"{show(corrected.score)} ({show(corrected.low)} – {show(corrected.high)})"
        )
    lines.append(
        f"fused, all clips: accuracy {100 * metrics['accuracy']:.1f}, UAR "
        f"{100 * metrics['uar']:.1f}, macro-F1 {100 * metrics['macro_f1']:.1f}, log-loss "
        f"{metrics['log_loss']:.3f}, calibration error {100 * metrics['calibration_error']:.1f}"
    )
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
    """What fusion adds over the best expert of each modality; None where there is one alone."""
    gains = fusion_gains(assessment)
    if len(gains) < 2:
        return None

    def show(found: Difference, percent: bool = True) -> str:
        scale, digits = (100, 1) if percent else (1, 3)
        return "{:+.{d}f} ({:.{d}f} … {:.{d}f})".format(
            *(scale * x for x in (found.value, found.low, found.high)), d=digits
        )

    table = rich_table.Table(
        title="what fusion adds: all clips, and recall of each class, in points (95 %)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("")
    for gain in gains.values():
        table.add_column(f"over {gain.over}", justify="right", no_wrap=True)
    percent = assessment.metric != "log_loss"
    table.add_row(assessment.metric, *(show(gain.all, percent) for gain in gains.values()))
    for name in next(iter(gains.values())).classes:
        table.add_row(name, *(show(g.classes[name]) for g in gains.values()))
    return table


def _enrolment(metric: str, rows: dict[str, Any]) -> str:
    scores = ", ".join(
        f"{clips} clips {row['honest_score'] * (1 if metric == 'log_loss' else 100):.1f}"
        for clips, row in rows.items()
    )
    return (
        f"Speaker enrolment (inputs normalised by unlabelled clips of the new speaker; all scored "
        f"on the clips that enrol nobody): {scores}"
    )


def _test_speakers(metric: str, found: dict[str, Any], corpus: str | None = None) -> str:
    value = f"{found['score']:.3f}" if metric == "log_loss" else f"{100 * found['score']:.1f}"
    said = f"{value} by the averaged ensemble on {found['clips']} clips of "
    lines = [f"Test speakers (in no fold): {said}{', '.join(found['speakers'])}"]
    if corpus:
        also = found["metrics"]
        lines = [
            f"Test corpus {corpus} (in no fold): {said}{len(found['speakers'])} speakers; accuracy "
            f"{100 * also['accuracy']:.1f}, UAR {100 * also['uar']:.1f}, macro-F1 {100 * also['macro_f1']:.1f}"
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
    def show(value: float) -> str:
        return told(assessment.metric, value)

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


def _summary(
    assessment: Assessment, confirmed: dict[int, dict[str, Scored]], facts: dict[str, Any]
) -> dict[str, Any]:
    table = assessment.table
    named = {
        modality: assessment.row(f"best {modality}") for modality in ("audio", "video", "early")
    }
    return {
        "format_version": SUMMARY_VERSION,
        **facts,
        "metric": assessment.metric,
        "classes": list(table.classes),
        "clips": len(table.spans) if _over_time(table) else len(table.labels),
        "speakers": len(set(table.speakers)),
        "headline": {
            **{modality: row.to_json() for modality, row in named.items() if row is not None},
            **{f"{modality}_alone": row.to_json() for modality, row in assessment.alone.items()},
            "fused": assessment.fused.to_json(),
        },
        "chosen_recipe": assessment.chosen,
        "fusions": [row.to_json() for row in assessment.recipes],
        "confirmed": {
            str(seed): {name: row.to_json() for name, row in rows.items()}
            for seed, rows in confirmed.items()
        },
        **_detail(assessment, named, facts),
    }


def _over_time(table: Table) -> TypeGuard[TraceTable]:
    return isinstance(table, TraceTable) and table.step_seconds > 0


def _detail(
    assessment: Assessment, named: dict[str, Scored | None], facts: dict[str, Any]
) -> dict[str, Any]:
    """What is said of classes alone; traces have `traces` instead."""
    table = assessment.table
    if not isinstance(table, ClipTable):
        return {}
    return {
        "gains": {name: gain.to_json() for name, gain in fusion_gains(assessment).items()},
        "detail": {
            name: asdict(detail(table, row.log_posteriors, facts.get("people")))
            for name, row in {**named, "fused": assessment.fused}.items()
            if row is not None
        },
    }


def _write_leaderboard(path: Path, assessment: Assessment) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        [
            "name",
            "honest_score",
            "interval_low",
            "interval_high",
            "honest_score_pooled",
            "corrected_score",
            "search_score",
            "experts",
        ]
    )
    for row in assessment_rows(assessment):
        writer.writerow(
            [
                row.name,
                row.honest_score,
                row.interval.low,
                row.interval.high,
                row.honest_pooled,
                row.corrected.score if row.corrected else "",
                "" if row.search_score is None else row.search_score,
                " ".join(row.experts),
            ]
        )
    write_atomically(path, text.getvalue().encode())


def draw_report(run: Path, console: Console) -> None:
    """Writes `report.html`; what goes wrong is a warning, since the results are there already."""
    try:
        # Here, since matplotlib takes a second to import.
        from search.pages.document import write_page

        _, wrong = write_page(run)
    except Exception as error:
        with suppress(OSError):
            (run / PAGE).unlink(missing_ok=True)  # an earlier one is of earlier results
        wrong = [f"{PAGE} was not written: {error or repr(error)}"]
    for line in wrong:
        text = " ".join(f"warning: {line}".split())
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: written; 2: in one line, why not."""
    parser = argparse.ArgumentParser(
        prog="python -m search.report",
        description="Writes a run's report.html, figures and tables from what its folder holds.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run with results")
    run = parser.parse_args(arguments).run
    try:
        from search.pages.document import write_page

        page, wrong = write_page(run)
    except (EnsembleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in wrong:
        print(f"warning: {line}", file=sys.stderr)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
