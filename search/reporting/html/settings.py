"""Figures of settings: which were tried, which matter, and how the two that matter most interact."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from ensembles.bank.posterior_bank import MODALITIES
from search.reporting.html.figure_style import GREY, INK, PALE, SCORES, WIDTH, new_figure, short
from search.reporting.html.run_results import Evidence, LeftOut, TrialRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_TRIALS = 8
"""Fewer finished trials of one architecture say nothing of its settings."""

_MOST_SETTINGS = 9
_GOOD_SHARE = 0.2


def most_tried(evidence: Evidence, modality: str) -> tuple[str, list[TrialRecord]]:
    """A modality's best-known architecture: that with most finished trials, and these.

    Raises:
        LeftOut: Too few of them to say anything of its settings.
    """
    done = [t for t in evidence.of_modality(modality) if t.score is not None]
    counts = Counter(sorted(t.architecture for t in done))
    if not counts or counts.most_common(1)[0][1] < MIN_TRIALS:
        most = (
            f"the most tried, {counts.most_common(1)[0][0]}, has {counts.most_common(1)[0][1]}"
            if counts
            else "there is none"
        )
        raise LeftOut(
            f"It takes {MIN_TRIALS} finished trials of one {modality} architecture; {most}."
        )
    name = counts.most_common(1)[0][0]
    return name, [t for t in done if t.architecture == name]


@lru_cache(maxsize=len(MODALITIES))
def importances_of(evidence: Evidence, modality: str) -> tuple[str, dict[str, float]]:
    """The architecture, and how much each of its settings decides (fANOVA), most first.

    Raises:
        LeftOut: Too few trials, or nothing that varies.
    """
    name, trials = most_tried(evidence, modality)
    common = set.intersection(*(set(t.domains) for t in trials))
    varied = [
        s
        for s in trials[0].settings
        if s in common and len({str(t.settings[s]) for t in trials}) > 1
    ]
    values = [t.rungs[100] for t in trials]
    if not varied or max(values) - min(values) < 1e-12:
        raise LeftOut(f"The trials of {name} differ in no setting, or all have one score.")
    study = optuna.create_study(direction="maximize")
    for trial, value in zip(trials, values, strict=True):
        study.add_trial(
            optuna.create_trial(
                params={s: trial.settings[s] for s in varied},
                distributions={s: trial.domains[s] for s in varied},
                value=value,
            )
        )
    evaluator = FanovaImportanceEvaluator(n_trees=32, max_depth=16, seed=0)
    return name, dict(get_param_importances(study, evaluator=evaluator, params=varied))


def importances(evidence: Evidence, modality: str) -> Figure:
    """How much each setting decides."""
    name, found = importances_of(evidence, modality)
    shown = dict(list(found.items())[: _MOST_SETTINGS + 3])
    figure, axes = new_figure(0.9 + 0.27 * len(shown))
    places = -np.arange(len(shown))
    shares = [100 * value for value in shown.values()]
    axes.barh(places, shares, color="white", edgecolor=INK, hatch="///", height=0.65)
    for place, share in zip(places, shares, strict=True):
        axes.annotate(
            f"{share:.0f}",
            (share, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, [short(s, 22) for s in shown], fontsize=9)
    axes.set_xlim(0, 1.12 * max(shares))
    axes.set_xlabel("share of the scores' variance, %")
    axes.set_title(f"{modality}: {short(name, 30)}", loc="left")
    return figure


class Scale(Protocol):
    """An axis: values on 0 … 1, and the ticks to print; `stepped` where many share a value."""

    stepped: bool

    def place(self, value: Any) -> float:
        """Where a value is."""

    def ticks(self) -> list[tuple[float, str]]:
        """Places and their names."""


class ScoreScale:
    """From the worst score to the best."""

    stepped = False

    def __init__(self, low: float, high: float, digits: int) -> None:
        self.low, self.high, self.digits = low, high, digits

    def place(self, value: Any) -> float:
        """Where a score is."""
        return (float(value) - self.low) / ((self.high - self.low) or 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """The ends."""
        return [(0.0, f"{self.low:.{self.digits}f}"), (1.0, f"{self.high:.{self.digits}f}")]


class SettingScale:
    """From the lowest to the highest value that was offered, or choice beside choice."""

    def __init__(self, domain: BaseDistribution) -> None:
        self.choices = list(domain.choices) if isinstance(domain, CategoricalDistribution) else []
        self.stepped = bool(self.choices)
        if all(isinstance(c, int | float) and not isinstance(c, bool) for c in self.choices):
            self.choices.sort()
        self.log = bool(getattr(domain, "log", False))
        if isinstance(domain, FloatDistribution | IntDistribution):
            self.low, self.high = self._number(domain.low), self._number(domain.high)

    def place(self, value: Any) -> float:
        """Where a value is."""
        if self.choices:
            return self.choices.index(value) / max(1, len(self.choices) - 1)
        return (self._number(value) - self.low) / ((self.high - self.low) or 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """The choices, or the ends and the middle."""
        if self.choices:
            return [(self.place(choice), short(choice, 12)) for choice in self.choices]
        values = (self.low, (self.low + self.high) / 2, self.high)
        told = [f"{np.exp(v) if self.log else v:.2g}" for v in values]
        return list(zip((0.0, 0.5, 1.0), told, strict=True))

    def _number(self, value: float) -> float:
        return float(np.log(value)) if self.log else float(value)


def explored(evidence: Evidence, modality: str) -> Figure:
    """Parallel coordinates, turned: an axis a setting, a line a trial, the score at the bottom."""
    name, done = most_tried(evidence, modality)
    try:
        order = list(importances_of(evidence, modality)[1])
    except LeftOut:
        order = list(done[0].settings)
    if not order:
        raise LeftOut(f"Nothing of {name} was searched.")
    order = order[:_MOST_SETTINGS]
    tried = [
        trial
        for trial in evidence.of_modality(modality)
        if trial.architecture == name and set(order) <= set(trial.settings)
    ]
    tried.sort(key=lambda trial: trial.rungs.get(100, -np.inf))
    scales: list[Scale] = [SettingScale(tried[0].domains[setting]) for setting in order]
    scores = [evidence.of_rung(trial.rungs[100]) for trial in done]
    scales.append(ScoreScale(min(scores), max(scores), evidence.metric.digits))
    bar = float(np.quantile([trial.rungs[100] for trial in done], 1 - _GOOD_SHARE))
    figure, axes = new_figure(0.9 + 0.58 * len(scales))
    for number, trial in enumerate(tried):
        values = [trial.settings[setting] for setting in order]
        if trial.score is not None:
            values.append(evidence.of_rung(trial.score))
        nudge = 0.012 * np.sin(5.0 * number)  # so that equal choices are seen to be several
        places = [
            scale.place(value) + nudge * scale.stepped
            for scale, value in zip(scales, values, strict=False)
        ]
        axes.plot(places, range(len(places)), **_line_of(trial, bar))
    names = [*(short(setting, 26) for setting in order), evidence.metric.label.partition(" (")[0]]
    for row, (told, scale) in enumerate(zip(names, scales, strict=True)):
        _draw_scale(axes, row, told, scale.ticks())
    axes.set_ylim(len(order) + 0.45, -0.45)
    axes.set_xlim(-0.05, 1.05)
    axes.set_axis_off()
    axes.set_title(f"{modality}: {short(name, 30)}, {len(tried)} trials", loc="left")
    return figure


def _line_of(trial: TrialRecord, bar: float) -> dict[str, Any]:
    """Dark for good ones, dotted for those that did not come to an end."""
    if trial.score is None:
        return {"color": GREY, "linewidth": 0.6, "linestyle": ":", "zorder": 1}
    if trial.score < bar:
        return {"color": PALE, "linewidth": 0.8, "zorder": 2}
    return {"color": INK, "linewidth": 1.4, "zorder": 3}


def _draw_scale(axes: Any, row: int, name: str, ticks: list[tuple[float, str]]) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    axes.plot([0, 1], [row, row], color=INK, linewidth=0.9, zorder=4)
    axes.text(0.0, row - 0.1, name, fontsize=9, weight="bold", va="bottom", zorder=6, bbox=box)
    for place, told in ticks:
        axes.plot(place, row, marker="|", color=INK, markersize=7, zorder=5)
        side = "left" if place == 0 else "right" if place == 1 else "center"
        axes.text(place, row + 0.11, told, fontsize=8, va="top", ha=side, zorder=6, bbox=box)


def contour(evidence: Evidence, modality: str) -> Figure:
    """The score over the two settings that matter most: trials, and what they say in between."""
    name, found = importances_of(evidence, modality)
    if len(found) < 2:
        raise LeftOut(f"A single setting of {name} was varied.")
    pair = list(found)[:2]
    trials = most_tried(evidence, modality)[1]
    scales = [SettingScale(trials[0].domains[setting]) for setting in pair]
    at = np.array(
        [
            [scale.place(t.settings[s]) for scale, s in zip(scales, pair, strict=True)]
            for t in trials
        ]
    )
    values = np.array([evidence.of_rung(trial.rungs[100]) for trial in trials])
    figure, axes = new_figure(WIDTH * 0.88)
    _draw_surface(evidence, figure, axes, at, values)
    nudge = 0.02 * np.sin(np.outer(np.arange(len(at)), [5.0, 3.0]))
    seen = at + nudge * [scale.stepped for scale in scales]
    style = {"linestyle": "none", "color": "white", "markeredgecolor": INK}
    axes.plot(*seen.T, marker="o", markersize=4.5, **style)
    best = int(np.argmax(values) if evidence.metric.greater_is_better else np.argmin(values))
    axes.plot(*seen[best], marker="*", markersize=14, **style)
    for axis, scale, setting in zip((axes.xaxis, axes.yaxis), scales, pair, strict=True):
        places, told = zip(*scale.ticks(), strict=True)
        axis.set_ticks(places, told, fontsize=8)
        axis.set_label_text(short(setting, 26))
    axes.set_title(f"{modality}: {short(name, 30)}", loc="left")
    return figure


def _draw_surface(evidence: Evidence, figure: Figure, axes: Any, at: Any, values: Any) -> None:
    grid = np.linspace(-0.06, 1.06, 60)
    surface = _smoothed(at, values, np.stack(np.meshgrid(grid, grid), axis=-1))
    if np.ptp(surface) < 1e-9:
        return
    filled = axes.contourf(grid, grid, surface, levels=8, cmap=SCORES)
    lines = axes.contour(grid, grid, surface, levels=filled.levels, colors="white", linewidths=0.5)
    for label in axes.clabel(lines, fontsize=7, fmt="%.1f" if evidence.metric.percent else "%.2f"):
        label.set(color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    figure.colorbar(filled, ax=axes, label=evidence.metric.label.partition(" (")[0], shrink=0.85)


def _smoothed(at: Any, values: Any, grid: Any) -> Any:
    """Mean of the trials' scores, nearer ones counting more: a surface that invents no extremes."""
    apart = ((grid[..., None, :] - at) ** 2).sum(axis=-1)
    weights = np.exp(-apart / (2 * 0.15**2)) + 1e-12
    return (weights * values).sum(axis=-1) / weights.sum(axis=-1)
