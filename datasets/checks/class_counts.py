"""Clips of each class, speaker and fold, as tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datasets.checks.published_counts import published_classes
from datasets.protocols.folds import Folds
from datasets.sharding.index import ShardIndex

_NAMED = 5


def per_speaker(index: ShardIndex) -> dict[str, dict[str, int]]:
    """Speaker → class → clips."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in index.clips:
        counts[entry.speaker][entry.label] += 1
    return {s: {label: counts[s][label] for label in index.labels} for s in sorted(counts)}


def per_fold(index: ShardIndex, folds: Folds | None) -> dict[str, dict[str, Any]]:
    """Fold (`test` for the test speakers) → its clips, speakers, and clips of each class."""
    if folds is None:
        return {}
    numbers = [*range(folds.count), *([-1] if len(folds.unseen_rows) else [])]
    found = {}
    for number in numbers:
        entries = [
            e for e, fold in zip(index.clips, folds.fold_of_clip, strict=True) if fold == number
        ]
        counts = Counter(entry.label for entry in entries)
        found["test" if number < 0 else str(number)] = {
            "clips": len(entries),
            "speakers": sorted({entry.speaker for entry in entries}),
            "per_class": {label: counts[label] for label in index.labels},
        }
    return found


def class_rows(index: ShardIndex, folds: Folds | None) -> list[list[str]]:
    """Clips of each class: here, published, and in each fold; the header first, the sums last."""
    in_fold, published = per_fold(index, folds), published_classes(index)
    counts = Counter(entry.label for entry in index.clips)
    names = [fold if fold == "test" else f"fold {fold}" for fold in in_fold]
    rows = [["class", "clips", *(["published"] if published else []), *names]]
    for label in index.labels:
        known = [str(published.get(label, "–"))] if published else []
        in_folds = [str(found["per_class"][label]) for found in in_fold.values()]
        rows.append([label, str(counts[label]), *known, *in_folds])
    known = [str(sum(published.values()))] if published else []
    sums = [str(found["clips"]) for found in in_fold.values()]
    return [*rows, ["all", str(len(index.clips)), *known, *sums]]


def speaker_rows(index: ShardIndex) -> list[list[str]]:
    """Clips of each class, by speaker; the header first."""
    rows = [["speaker", "clips", *index.labels]]
    for speaker, counts in per_speaker(index).items():
        of_class = [str(count) if count else "–" for count in counts.values()]
        rows.append([speaker, str(sum(counts.values())), *of_class])
    return rows


def describe_speakers(rows: list[list[str]]) -> str:
    """Many speakers in one line."""
    counts = sorted(int(row[1]) for row in rows)
    lacking = [row[0] for row in rows if "–" in row]
    text = f"{counts[0]} to {counts[-1]} clips a speaker, median {counts[len(counts) // 2]}"
    if lacking:
        first = ", ".join(lacking[:_NAMED]) + (" …" if len(lacking) > _NAMED else "")
        text += f"; {len(lacking)} speakers have no clip of some class: {first}"
    return f"{text} (--json has all)"


def print_table(console: Console, rows: list[list[str]], what: str, *, sums: bool = False) -> None:
    """Prints rows, with shorter headings where it is too wide; where that does not help, says so.

    Args:
        console: Where to.
        rows: The header first; words, then numbers.
        what: They are, in words.
        sums: Whether the last row is set apart.
    """
    header, *lines = rows
    for longest in (max(map(len, header)), 6, 4):
        table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
        for number, name in enumerate(header):
            short = name.removeprefix("fold ") if longest < 6 else name
            justify: Literal["left", "right"] = "right" if number else "left"
            heading = short[:longest] if number > 1 else name
            # Texts: a name may hold what rich takes for markup.
            table.add_column(Text(heading), justify=justify, no_wrap=True)
        for number, line in enumerate(lines, start=2):
            table.add_row(*map(Text, line), end_section=sums and number == len(lines))
        as_wide_as_it_likes = console.options.update(width=10_000)
        if console.measure(table, options=as_wide_as_it_likes).maximum <= console.width:
            console.print(table)
            return
    console.print(
        f"{what}: too many for this width; --json has them", highlight=False, soft_wrap=True
    )
