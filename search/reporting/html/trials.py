"""Figures of trials: their course, where they were stopped, and each architecture's results."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from search.reporting.html.figure_style import COLOURS, GREY, INK, MARKERS, PALE, new_figure, short
from search.reporting.html.run_results import Evidence, LeftOut, TrialRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(evidence: Evidence, modality: str) -> Figure:
    """Each trial's score at every rung, and where it was stopped."""
    trials = [trial for trial in evidence.of_modality(modality) if trial.rungs]
    if not trials:
        raise LeftOut(f"No {modality} trial came to its first rung.")
    figure, axes = new_figure(3.4)
    done = [trial for trial in trials if trial.score is not None]
    best = max(done, key=lambda trial: trial.rungs[100], default=None)
    for trial in trials:
        _draw_curve(evidence, axes, trial, best is trial)
    ends = Counter(trial.ended for trial in trials)
    told = ", ".join(f"{count} {ended}" for ended, count in ends.items())
    axes.set_title(f"{modality}: {told}", loc="left")
    axes.set_ylabel(evidence.metric.label)
    axes.grid(axis="y", color=PALE, linewidth=0.5)
    axes.set_xlabel("share of a trial's own schedule, %")
    axes.set_xticks(sorted({percent for trial in trials for percent in trial.rungs}))
    _legend_of_curves(figure)
    return figure


def _draw_curve(evidence: Evidence, axes: Any, trial: TrialRecord, best: bool) -> None:
    percents = sorted(trial.rungs)
    values = [evidence.of_rung(trial.rungs[p]) for p in percents]
    if best:
        axes.plot(percents, values, color=INK, linewidth=2.2, marker="o", markersize=4, zorder=4)
    elif trial.ended == "finished":
        axes.plot(percents, values, color=GREY, linewidth=0.8, zorder=3)
    else:
        axes.plot(percents, values, color=PALE, linewidth=0.8, linestyle="--", zorder=1)
        marker = {"stopped early": "x", "failed": "v", "unfinished": "."}[trial.ended]
        axes.plot(
            percents[-1],
            values[-1],
            marker=marker,
            color=INK,
            markersize=4,
            zorder=5,
            linestyle="none",
            alpha=0.7,
        )


def _legend_of_curves(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    lines = {
        "best": Line2D([], [], color=INK, linewidth=2.2, marker="o", markersize=4),
        "finished": Line2D([], [], color=GREY, linewidth=0.8),
        "stopped": Line2D([], [], color=PALE, linestyle="--", marker="x", markeredgecolor=INK),
    }
    figure.legend(lines.values(), lines, loc="outside upper center", ncols=3)


def architectures(evidence: Evidence) -> Figure:
    """Scores of the finished trials of each architecture."""
    groups = [
        (modality, name, [t for t in trials if t.architecture == name])
        for modality in evidence.modalities
        for trials in [evidence.of_modality(modality)]
        for name in sorted({t.architecture for t in trials})
    ]
    figure, axes = new_figure(0.9 + 0.36 * len(groups))
    for place, (modality, _, trials) in enumerate(reversed(groups)):
        scores = [evidence.of_rung(t.rungs[100]) for t in trials if t.score is not None]
        jitter = 0.22 * np.sin(7.0 * np.arange(len(scores)))
        axes.plot(
            scores,
            place + jitter,
            linestyle="none",
            marker=MARKERS[modality],
            markersize=4,
            color=COLOURS[modality],
            fillstyle="none",
            alpha=0.8,
        )
        if scores:
            best = max(scores) if evidence.metric.greater_is_better else min(scores)
            axes.plot(
                best, place, linestyle="none", marker=MARKERS[modality], color=COLOURS[modality]
            )
    names = [
        f"{short(name, 22)} ({sum(t.score is not None for t in trials)} of {len(trials)})"
        for _, name, trials in reversed(groups)
    ]
    axes.set_yticks(range(len(groups)), names, fontsize=9)
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set_xlabel(evidence.metric.label)
    axes.grid(axis="x", color=PALE, linewidth=0.5)
    return figure


def timeline(evidence: Evidence) -> Figure:
    """When trials ended, and the best so far of each modality."""
    found = [
        t for m in evidence.modalities for t in evidence.of_modality(m) if t.started and t.rungs
    ]
    if not found:
        raise LeftOut("No trial came to its first rung.")
    start = min(t.started for t in found if t.started)
    figure, axes = new_figure(3.6)
    for modality in evidence.modalities:
        mine = [t for t in found if t.modality == modality and t.seconds is not None]
        mine.sort(key=lambda t: (t.started or 0.0) + (t.seconds or 0.0))
        style = {"color": COLOURS[modality], "linestyle": "none"}
        ends = {t.name: ((t.started or 0.0) + (t.seconds or 0.0) - start) / 60 for t in mine}
        done = [t for t in mine if t.score is not None]
        stopped = [t for t in mine if t.score is None]
        last = [evidence.of_rung(t.rungs[max(t.rungs)]) for t in stopped]
        axes.plot(
            [ends[t.name] for t in stopped], last, marker="x", markersize=4, alpha=0.6, **style
        )
        scores = [evidence.of_rung(t.rungs[100]) for t in done]
        axes.plot(
            [ends[t.name] for t in done],
            scores,
            marker=MARKERS[modality],
            markersize=4,
            fillstyle="none",
            label=modality,
            **style,
        )
        grow = np.maximum if evidence.metric.greater_is_better else np.minimum
        best = grow.accumulate(scores)
        axes.step([ends[t.name] for t in done], best, where="post", color=COLOURS[modality])
    axes.set_xlabel("minutes since the first trial's start")
    axes.set_ylabel(evidence.metric.label)
    axes.grid(axis="y", color=PALE, linewidth=0.5)
    figure.legend(loc="outside upper center", ncols=3)
    return figure
