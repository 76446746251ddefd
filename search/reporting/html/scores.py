"""Figures of scores: the headline from every side, what fusion gained, confusions, speakers, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensembles.bank.posterior_bank import MODALITIES
from ensembles.metrics import get_metric
from search.reporting.html.figure_style import (
    COLOURS,
    GREY,
    INK,
    LINES,
    MARKERS,
    PALE,
    WIDTH,
    new_figure,
    short,
)
from search.reporting.html.run_results import Evidence, LeftOut
from search.reporting.html.tables import ScoreLine, score_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10
_MOST_NAMED_SPEAKERS = 50

_KINDS = {
    "honest score": ("D", INK, "full"),
    "corrected score": ("o", INK, "full"),
    "fresh seeds": ("s", INK, "full"),
    "test speakers": ("^", INK, "full"),
    "one corpus": ("v", INK, "full"),
    "search score": ("D", INK, "none"),
    "guess": ("|", INK, "full"),
    "published": ("X", GREY, "none"),
}
"""Marker, colour, filling: what a number is can be told without colour."""


def headline(evidence: Evidence) -> Figure:
    """Every number of the headline, the best experts, guessing and what papers report, on one scale."""
    lines = [line for line in score_lines(evidence) if _in_headline(line)]
    figure, axes = new_figure(0.9 + 0.34 * len(lines))
    low = min(evidence.metric.scaled(min(line.value, line.low or line.value)) for line in lines)
    high = max(evidence.metric.scaled(max(line.value, line.high or line.value)) for line in lines)
    for place, line in enumerate(reversed(lines)):
        _draw_line(evidence, axes, place, line)
    names = [_named(line) for line in reversed(lines)]
    axes.set_yticks(range(len(lines)), names, fontsize=9)
    room = 0.06 * (high - low) or 0.01
    axes.set_xlim(low - room, high + 4 * room)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.set_xlabel(evidence.metric.label)
    axes.grid(axis="x", color=PALE, linewidth=0.5)
    axes.tick_params(axis="y", length=0)
    return figure


def _in_headline(line: ScoreLine) -> bool:
    if line.row in ("fused", "exported ensemble") or line.number in ("guess", "published"):
        return True
    return line.row.startswith("best ") and line.number == "honest score"


def _named(line: ScoreLine) -> str:
    if line.number == "published":
        paper, _, what = line.row.partition(", ")
        return f"{short(paper.replace(' et al.', ''), 20)}: {short(what.partition(':')[0], 14)}"
    if line.number == "guess":
        return line.row
    return f"{short(line.row)}: {line.number}" if line.row != "exported ensemble" else line.number


def _draw_line(evidence: Evidence, axes: Any, place: int, line: ScoreLine) -> None:
    marker, colour, filling = _KINDS[line.kind]
    value = evidence.metric.scaled(line.value)
    end = value
    if line.low is not None and line.high is not None:
        ends = [evidence.metric.scaled(line.low), evidence.metric.scaled(line.high)]
        axes.plot(ends, [place, place], color=colour, linewidth=1.6)
        end = max(ends)
    for one in line.each:
        axes.plot(evidence.metric.scaled(one), place, marker="|", color=colour, markersize=9)
        end = max(end, evidence.metric.scaled(one))
    axes.plot(value, place, marker=marker, color=colour, fillstyle=filling, markersize=7)
    axes.annotate(
        evidence.metric.format(line.value),
        (end, place),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        fontweight="bold" if line.number == "honest score" else "normal",
    )


def gains(evidence: Evidence) -> Figure:
    """Draw what fusion adds over each best expert, for all clips and each class."""
    found = evidence.summary.get("gains") or {}
    if not found:
        raise LeftOut("The run's summary has no comparison of the fusion with single experts.")
    classes = list(next(iter(found.values()))["classes"])
    figure, axes = new_figure(1.2 + 0.26 * len(found) * (len(classes) + 1))
    step = 0.8 / len(found)
    for number, (modality, gain) in enumerate(found.items()):
        scales = [evidence.metric, *[get_metric("accuracy")] * len(classes)]
        each = [gain["all"], *(gain["classes"][name] for name in classes)]
        place = -np.arange(len(each)) + 0.4 - step * (number + 0.5)
        for y, one, scale in zip(place, each, scales, strict=True):
            ends = [scale.scaled(one["low"]), scale.scaled(one["high"])]
            axes.plot(ends, [y, y], color=COLOURS[modality], linestyle=LINES[modality])
        values = [scale.scaled(one["value"]) for one, scale in zip(each, scales, strict=True)]
        style = {"color": COLOURS[modality], "marker": MARKERS[modality], "linestyle": "none"}
        axes.plot(values, place, label=modality, markersize=6, **style)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(-np.arange(len(classes) + 1), ["all clips", *(short(c) for c in classes)])
    axes.set_ylim(-len(classes) - 0.5, 0.5)
    for line in range(len(classes)):
        axes.axhline(-line - 0.5, color=PALE, linewidth=0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        "gain of the fusion (95 %): all clips, recall of a class"
        if not evidence.metric.percent
        else "points gained by the fusion (95 %)"
    )
    title = "gain over the best expert of"
    figure.legend(loc="outside upper center", ncols=3, title=title)
    return figure


def confusion(evidence: Evidence, row: str) -> Figure:
    """Who is taken for whom: share of each true class, and counts."""
    counts = np.asarray(evidence.detail(row)["confusion"], np.float64)
    classes = evidence.summary["classes"]
    if len(classes) > 30:
        raise LeftOut(f"{len(classes)} classes are too many to read in a matrix.")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = new_figure(WIDTH * 0.92)
    edges = np.arange(len(classes) + 1) - 0.5
    axes.pcolormesh(edges, edges, shares, cmap="Greys", vmin=0, vmax=1)  # no picture in the SVG
    axes.set_aspect("equal")
    axes.invert_yaxis()
    size = 9 if len(classes) <= 8 else 70 / len(classes)
    for (true, told), share in np.ndenumerate(shares):
        if counts[true, told]:
            axes.text(
                told,
                true,
                f"{counts[true, told]:.0f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if share > 0.5 else INK,
                weight="bold" if true == told else None,
            )
    names = [short(name, 10) for name in classes]
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(classes)), names, fontsize=min(9.0, size), **turned)
    axes.set_yticks(range(len(classes)), names, fontsize=min(9.0, size))
    axes.set_xlabel("told as")
    axes.set_ylabel("true class")
    axes.spines[["top", "right"]].set_visible(True)
    return figure


def speakers(evidence: Evidence) -> Figure:
    """Accuracy of the fusion on every speaker, by what is known of them."""
    found = evidence.detail("fused").get("speakers")
    if not found:
        raise LeftOut("The run's summary has no scores of single speakers.")
    people = evidence.summary.get("people") or {}
    attribute = next(iter(people), None)
    kinds = people[attribute] if attribute else {}
    ordered = sorted(found, key=lambda name: (found[name], name))
    named = len(ordered) <= _MOST_NAMED_SPEAKERS
    figure, axes = new_figure(1.1 + (0.2 * len(ordered) if named else 4.0))
    for number, kind in enumerate(dict.fromkeys(kinds.get(name, "") for name in sorted(ordered))):
        places = [n for n, name in enumerate(ordered) if kinds.get(name, "") == kind]
        values = [100 * found[ordered[n]] for n in places]
        marker, colour = "os^Dv<>P"[number % 8], (INK, "#c26a1a", "#1d4e89", GREY)[number % 4]
        style = {"fillstyle": "full" if number % 2 == 0 else "none", "linestyle": "none"}
        label = f"{short(kind or 'unknown')} (mean {np.mean(values):.1f})"
        axes.plot(values, places, marker=marker, color=colour, label=label, **style)
    mean = 100 * float(np.mean(list(found.values())))
    axes.axvline(mean, color=GREY, linewidth=0.8, linestyle="--")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    top = (mean, len(ordered) - 0.3)
    axes.annotate(f"mean {mean:.1f}", top, fontsize=8, ha="center", bbox=box)
    axes.set_yticks(
        range(len(ordered)) if named else [],
        [short(n, 14) for n in ordered] if named else [],
        fontsize=8,
    )
    if not named:
        axes.set_ylabel(f"{len(ordered)} speakers, worst to best")
    axes.set_ylim(-0.7, len(ordered) + 0.3)
    axes.set_xlabel("accuracy of the fusion, %")
    axes.grid(axis="x", color=PALE, linewidth=0.5)
    if kinds:
        figure.legend(loc="outside upper center", ncols=2, title=short(attribute))
    return figure


def calibration(evidence: Evidence) -> Figure:
    """How often it is right when it says how sure it is, and how often it says so."""
    if "fused" not in evidence.predictions:
        raise LeftOut(evidence.missing["predictions of fused"])
    figure, (axes, below) = new_figure(4.6, rows=2, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate("dotted: exactly as sure as right", (98, 3), ha="right", fontsize=8)
    for row in ("fused", *MODALITIES):
        if row in evidence.predictions:
            _draw_reliability(evidence, axes, row)
    confidence = np.exp(evidence.predictions["fused"].log_posteriors.max(axis=1))
    counts, edges = np.histogram(confidence, np.linspace(0, 1, BINS + 1))
    below.bar(
        100 * edges[:-1],
        counts,
        width=100 / BINS,
        align="edge",
        color="white",
        edgecolor=INK,
        hatch="///",
    )
    axes.set(xlim=(0, 100), ylim=(0, 100), ylabel="right, %")
    below.set_xlabel("confidence in the answer, % (ten bins)")
    below.set_ylabel("clips\n(fused)")
    axes.legend(loc="upper left", title="calibration error")
    return figure


def _draw_reliability(evidence: Evidence, axes: Any, row: str) -> None:
    found = evidence.predictions[row]
    confidence = np.exp(found.log_posteriors.max(axis=1))
    right = found.log_posteriors.argmax(axis=1) == found.table.labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    # A bin of a few clips says nothing of the rest.
    bins = [b for b in range(BINS) if (place == b).sum() >= max(5, len(place) // 200)]
    error = evidence.summary.get("detail", {}).get(row, {}).get("metrics", {})
    told = f" {100 * error['calibration_error']:.1f}" if "calibration_error" in error else ""
    axes.plot(
        [100 * confidence[place == b].mean() for b in bins],
        [100 * right[place == b].mean() for b in bins],
        color=COLOURS[row],
        marker=MARKERS[row],
        linestyle=LINES[row],
        markersize=5,
        label=f"{row if row == 'fused' else f'best {row}'}{told}",
    )
