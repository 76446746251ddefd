"""Rank scored fusions in a table."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from ensembles.evaluation.assessment import Assessment, Scored
from ensembles.metrics import get_metric


def leaderboard(rows: list[Scored], metric: str, title: str) -> Table:
    """The table that every command prints."""
    scale = get_metric(metric)

    def show(value: float | None) -> str:
        return "" if value is None else scale.format(value)

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")  # a long name takes a second line, rather than the numbers their digits
    for heading in ("honest", "95 %", "BBC", "pooled"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("search", justify="right", style="dim", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row.name),
            show(row.honest_score),
            scale.format_interval(row.interval.low, row.interval.high),
            show(row.corrected.score if row.corrected else None),
            show(row.honest_pooled),
            show(row.search_score),
            style="bold" if row.name == "fused" else None,
        )
    return table


LEGEND = """\
honest   experts and fusion chosen for each fold from the other folds only
95 %     interval of the honest score over speakers
BBC      of the best candidate, chosen on some speakers, scored on the others
search   chosen on the very folds that are scored: optimistic
fused    the recipe too is chosen fold by fold: the headline
a, v, e  best audio, video, early expert; logistic: regression on posteriors"""


def assessment_rows(assessment: Assessment) -> list[Scored]:
    """Leaderboard order: the headline first, each modality alone, then by honest score."""
    sign = get_metric(assessment.metric).sign
    recipes = sorted(assessment.recipes, key=lambda row: -sign * row.honest_score)
    return [assessment.fused, *assessment.alone.values(), *recipes]
