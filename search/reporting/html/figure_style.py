"""Style of figures, and saving them: narrow enough for a phone, told apart without colour."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.storage.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4.2
"""Inches: at a phone's width, text keeps about its size."""

INK, GREY, PALE = "#111111", "#777777", "#bbbbbb"
COLOURS = {"fused": INK, "audio": "#1d4e89", "video": "#c26a1a", "early": "#4f9d69"}
MARKERS = {"fused": "D", "audio": "o", "video": "s", "early": "^"}
LINES = {"fused": "-", "audio": "--", "video": ":", "early": "-."}
SCORES = "cividis"
"""Grows lighter with the score, so that it reads in greyscale."""

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # names of classes and trials are text, whatever they hold
    "svg.fonttype": "none",
    "savefig.facecolor": "white",
}


@contextmanager
def styled(name: str) -> Iterator[None]:
    """While a figure is drawn and saved: the style, and the same bytes for the same figure."""
    # Where it may not write its font cache it complains at import.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def new_figure(height: float, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of the common width, and its axes; without pyplot, which keeps figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, 1, **options)


def short(name: object, most: int = 18) -> str:
    """A name that leaves room for the figure."""
    text = " ".join(str(name).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def save(figure: Figure, name: str, folder: Path) -> str:
    """Writes NAME.png and NAME.svg; returns the SVG to put into a page."""
    picture, drawing = io.BytesIO(), io.StringIO()
    figure.draw_without_rendering()  # laid out once, not twice for each format
    figure.set_layout_engine("none")
    figure.savefig(picture, format="png", dpi=200, metadata={"Software": None})
    # Without a date and a licence's address: the same figure is the same file.
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(drawing, format="svg", metadata=nothing)
    # Named here and not in the style: matplotlib would look for each of them for every text.
    svg = drawing.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, Arial")
    write_atomically(folder / f"{name}.png", picture.getvalue())
    write_atomically(folder / f"{name}.svg", svg.encode())
    return inlined(svg, name)


def inlined(svg: str, name: str) -> str:
    """Return the figure as a part of a page: names no address, and shares no id with other figures."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(<svg\b[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<[^<>]*?\s)id="', rf'\1id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-')
    return svg.replace("url(#", f"url(#{name}-")
