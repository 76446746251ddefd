"""Outline of the page: its parts, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from search.reporting.html import scores, sections, settings, traces, trials
from search.reporting.html.provenance import provenance
from search.reporting.html.run_results import Evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        name: Of its files.
        title: In a few words.
        caption: How to read it.
        draw: Draws it, or raises LeftOut.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Evidence], Figure]


@dataclass(frozen=True)
class Section:
    """A part of the page: text, figures, then tables.

    Attributes:
        anchor: Of links to it.
        heading: As it is read.
        lead: HTML before the figures.
        drawings: The figures.
        after: HTML behind them.
    """

    anchor: str
    heading: str
    lead: str
    drawings: tuple[Drawing, ...] = ()
    after: str = ""


def outline(evidence: Evidence) -> list[Section]:
    """The page's parts."""
    return [*_results(evidence), *_search(evidence)]


def _results(evidence: Evidence) -> Iterable[Section]:
    if "traces" in evidence.summary:
        yield from _traces(evidence)
        return
    yield Section(
        "scores",
        "Scores, and what each saw",
        sections.about_scores(evidence),
        (_HEADLINE,),
        sections.score_table(evidence),
    )
    yield Section(
        "published",
        "Beside published figures",
        sections.about_published(evidence),
        after=sections.published_table(evidence),
    )
    yield Section(
        "fusion",
        "What fusion adds",
        sections.about_gains(evidence),
        (_GAINS,),
        sections.gain_table(evidence),
    )
    yield Section(
        "leaderboard",
        "Leaderboard",
        sections.about_leaderboard(evidence),
        after=sections.leaderboard_table(evidence),
    )
    yield Section("confusions", "Confusions", "", tuple(_confusions(evidence)))
    yield Section(
        "speakers",
        "Speakers",
        sections.about_speakers(evidence),
        (_SPEAKERS,),
        sections.group_table(evidence),
    )
    yield Section(
        "calibration", "Calibration", sections.about_calibration(evidence), (_CALIBRATION,)
    )


def _traces(evidence: Evidence) -> Iterable[Section]:
    yield Section(
        "scores",
        "Scores, and what each saw",
        sections.about_scores(evidence),
        (_HEADLINE,),
        sections.score_table(evidence),
    )
    yield Section(
        "dimensions",
        "Dimension by dimension",
        traces.about(evidence),
        after=traces.dimension_table(evidence),
    )
    if evidence.summary.get("reproduced"):
        yield Section(
            "published", "Beside published figures", "", after=sections.published_table(evidence)
        )
    yield Section(
        "traces",
        "Predicted beside what raters said",
        "",
        tuple(
            Drawing(
                f"traces_{name}",
                name.capitalize(),
                "Grey: raters. Black: predicted, without that speaker. The worst, the middle and the "
                "best recording by its own concordance, which is in its heading.",
                partial(traces.drawn, dimension=name),
            )
            for name in evidence.summary["traces"]["dimensions"]["fused"]
        ),
        traces.recording_table(evidence),
    )
    yield Section(
        "leaderboard",
        "Leaderboard",
        sections.about_leaderboard(evidence),
        after=sections.leaderboard_table(evidence),
    )


def _search(evidence: Evidence) -> Iterable[Section]:
    yield Section(
        "space", "The space explored", sections.about_space(evidence), tuple(_space(evidence))
    )
    yield Section(
        "curves", "Learning curves", sections.about_curves(evidence), tuple(_curves(evidence))
    )
    yield Section(
        "trials",
        "Trials over time, and failures",
        sections.about_trials(evidence),
        (_TIMELINE,),
        sections.failure_table(evidence) + sections.trial_table(evidence),
    )
    yield Section("repeat", "How it was made, and how to repeat it", "", after=provenance(evidence))


_HEADLINE = Drawing(
    "headline",
    "Every number on one scale",
    "Filled: chosen without the scored speakers. Hollow: the search score, which saw them, and "
    "papers (crosses). Bars: 95 % over speakers; upright ticks: single seeds, and guessing.",
    scores.headline,
)
_GAINS = Drawing(
    "gains",
    "Gain over the best single experts",
    "In points, paired by speaker, with 95 % intervals: recall of each class. A bar that crosses "
    "zero may be chance.",
    scores.gains,
)
_SPEAKERS = Drawing(
    "speakers",
    "Accuracy of the fusion by speaker",
    "Each point is one speaker, held out of all training and choosing.",
    scores.speakers,
)
_CALIBRATION = Drawing(
    "calibration",
    "Reliability",
    "Above the dotted line it is more often right than it is sure; below, the other way round.",
    scores.calibration,
)
_TIMELINE = Drawing(
    "timeline",
    "When trials ended",
    "Circles, squares, triangles: finished audio, video, early trials. Crosses: stopped, at their "
    "last rung. Steps: the best so far.",
    trials.timeline,
)


def _confusions(evidence: Evidence) -> Iterable[Drawing]:
    single = [name for name in ("audio", "video") if name in evidence.modalities]
    told = {name: f"the best {name} expert" for name in single or evidence.modalities[:1]}
    for row, what in {**told, "fused": "the fusion"}.items():
        yield Drawing(
            f"confusion_{row}",
            f"Confusions of {what}",
            "Rows: the true class. Darker: a larger share of it. Numbers: clips.",
            partial(scores.confusion, row=row),
        )


def _curves(evidence: Evidence) -> Iterable[Drawing]:
    for modality in evidence.modalities:
        yield Drawing(
            f"curves_{modality}",
            f"Scores at the rungs, {modality}",
            "Mean over folds of each trial, by share of its own schedule. A cross: stopped there. "
            "A triangle: failed after it.",
            partial(trials.curves, modality=modality),
        )


def _space(evidence: Evidence) -> Iterable[Drawing]:
    yield Drawing(
        "architectures",
        "Scores by architecture",
        "Finished trials, the best filled; in brackets how many finished of how many started.",
        trials.architectures,
    )
    for modality in evidence.modalities:
        yield Drawing(
            f"explored_{modality}",
            f"Settings tried, {modality}",
            "A line is a trial, from setting to setting down to its score. Dark: the best fifth. "
            "Dotted: stopped early.",
            partial(settings.explored, modality=modality),
        )
        yield Drawing(
            f"importances_{modality}",
            f"What matters, {modality}",
            "fANOVA over finished trials: how much of the scores' variance a setting explains.",
            partial(settings.importances, modality=modality),
        )
        yield Drawing(
            f"contour_{modality}",
            f"The two settings that matter most, {modality}",
            "Points: trials (star: the best). Between them: a mean of their scores, nearer ones "
            "counting more.",
            partial(settings.contour, modality=modality),
        )
