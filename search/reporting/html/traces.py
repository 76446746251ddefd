"""Figures and tables of continuous targets: by dimension, the effect of post-processing, predicted beside gold."""

from __future__ import annotations

import csv
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from search.reporting.html.figure_style import GREY, INK, PALE, WIDTH
from search.reporting.html.markup import Cell, paragraph, table
from search.reporting.html.run_results import Evidence, LeftOut
from search.reporting.traces import told_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 3
"""Recordings: the worst, the middle and the best."""
_KEYS = {"ccc_fold_mean": "CCC", "ccc": "pooled", "ccc_recording_mean": "each", "rmse": "RMSE"}


def about(evidence: Evidence) -> str:
    """How the numbers are counted."""
    return paragraph(
        "CCC is of each fold's recordings joined into one, the mean over folds; pooled, of all recordings "
        "joined; each, the mean over recordings of each one's own, in which what tells recordings apart "
        "does not count. Every step was predicted by networks that were not trained on its speaker."
    )


def dimension_table(evidence: Evidence) -> str:
    """Scores of each dimension, and which steps of post-processing were kept."""
    found = _traces(evidence)
    names = list(found["dimensions"]["fused"])
    told = {"fused": "fused", "before": "fused, before post-processing"}
    rows = [
        [
            Cell(told.get(row, f"best {row}")),
            *(Cell(f"{scores[n][key]:.3f}", scores[n][key]) for n in names for key in _KEYS),
        ]
        for row, scores in found["dimensions"].items()
    ]
    headings = ("", *(f"{name}: {key}" for name in names for key in _KEYS.values()))
    lines = told_steps(found["postprocessing"], names).splitlines()
    return table(headings, rows, numbers=headings[1:], stacked=True) + "".join(
        paragraph(f"{line[0].upper()}{line[1:]}.") for line in lines
    )


def recording_table(evidence: Evidence) -> str:
    """Each recording's own concordance."""
    found = _traces(evidence)
    names = list(found["dimensions"]["fused"])
    rows = [
        [Cell(recording), *(Cell(f"{scores[name]:.3f}", scores[name]) for name in names)]
        for recording, scores in found["recordings"].items()
    ]
    shown = table(("recording", *names), rows, numbers=names, sortable=True)
    return f"<details><summary>Every recording: {len(rows)}</summary>{shown}</details>"


def drawn(evidence: Evidence, dimension: str) -> Figure:
    """Predicted and gold traces of three recordings: the worst, the middle and the best."""
    from matplotlib.figure import Figure as Canvas

    scores = {name: own[dimension] for name, own in _traces(evidence)["recordings"].items()}
    order = sorted(scores, key=lambda name: scores[name])
    places = np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).round().astype(int)
    chosen = list(dict.fromkeys(order[place] for place in places))
    traces = _read(evidence, dimension, set(chosen))
    figure = Canvas(figsize=(WIDTH, 0.6 + 1.35 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 1, sharey=True, squeeze=False)[:, 0]
    over_time = _traces(evidence)["step_seconds"] > 0
    for place, name in zip(axes, chosen, strict=True):
        seconds, gold, said = traces[name]
        style: dict[str, Any] = {} if over_time else {"marker": ".", "linestyle": "none"}
        place.plot(seconds, gold, color=GREY, linewidth=1.6, label="raters", **style)
        place.plot(seconds, said, color=INK, linewidth=0.9, label="predicted", **style)
        place.set_title(f"{name}: {scores[name]:.2f}", loc="left")
        place.grid(axis="y", color=PALE, linewidth=0.5)
    axes[-1].set_xlabel("seconds" if over_time else "clip")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _read(
    evidence: Evidence, dimension: str, recordings: set[str]
) -> dict[str, tuple[list[float], list[float], list[float]]]:
    found: dict[str, tuple[list[float], list[float], list[float]]] = defaultdict(
        lambda: ([], [], [])
    )
    try:
        with (evidence.run / "predictions.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["recording"] in recordings:
                    seconds, gold, said = found[row["recording"]]
                    seconds.append(float(row.get("seconds") or len(seconds)))
                    gold.append(float(row[f"gold:{dimension}"]))
                    said.append(float(row[dimension]))
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise LeftOut(f"predictions.csv cannot be read: {error!r}.") from error
    if recordings - set(found):
        raise LeftOut("predictions.csv lacks a recording.")
    return found


def _traces(evidence: Evidence) -> dict[str, Any]:
    return dict(evidence.summary["traces"])
