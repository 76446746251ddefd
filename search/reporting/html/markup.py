"""Pieces of HTML, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is shown, and the number it is sorted by."""

    text: str
    value: float | None = None


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    named = f' class="{kind}"' if kind else ""
    return f"<p{named}>{escape(text)}</p>"


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    numbers: Sequence[str] = (),
    sortable: bool = False,
    stacked: bool = False,
) -> str:
    """A table in a box of its own, so that the page itself never scrolls sideways.

    Args:
        headings: Of the columns; the first heads each row.
        rows: Their cells.
        numbers: Columns of numbers.
        sortable: Whether its headings sort it.
        stacked: Whether each row becomes a paragraph on a phone.
    """
    kinds = " ".join(["sortable"] * sortable + ["stacked"] * stacked)
    head = "".join(f'<th scope="col"{_kind(h, numbers)}>{escape(h)}</th>' for h in headings)
    body = "".join(f"<tr>{_row(headings, row, numbers)}</tr>" for row in rows)
    return (
        f'<div class="table{" long" * sortable}" tabindex="0"><table class="{kinds}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(headings: Sequence[str], row: Sequence[str | Cell], numbers: Sequence[str]) -> str:
    cells = []
    for number, (heading, given) in enumerate(zip(headings, row, strict=True)):
        cell = given if isinstance(given, Cell) else Cell(given)
        value = "" if cell.value is None else f' data-value="{cell.value!r}"'
        label = f' data-label="{escape(heading)}"'
        name = "th" if number == 0 else "td"
        scope = ' scope="row"' if number == 0 else label
        cells.append(f"<{name}{scope}{_kind(heading, numbers)}{value}>{escape(cell.text)}</{name}>")
    return "".join(cells)


def _kind(heading: str, numbers: Sequence[str]) -> str:
    return ' class="number"' if heading in numbers else ""


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries)
    return f"<dl>{''.join(rows)}</dl>"


def code(text: str) -> str:
    """A command, as it is typed."""
    return f"<pre>{escape(text)}</pre>"
