"""`report.html`: one file that names no other, with figures and tables beside it for a paper."""

from __future__ import annotations

import base64
import hashlib
import warnings
from html import escape
from pathlib import Path

from datasets.storage.atomic import write_atomically
from ensembles import EnsembleError
from search.reporting.html import PAGE, sections, tables
from search.reporting.html.figure_style import save, styled
from search.reporting.html.outline import Drawing, Section, outline
from search.reporting.html.run_results import Evidence, LeftOut, quiet_optuna, read_evidence

_HERE = Path(__file__).parent


def write_page(run: Path) -> tuple[Path, list[str]]:
    """Writes a run's `report.html`, `figures/` and `tables/` from what its folder holds.

    Returns:
        The page, and what went wrong with single figures, a line each.

    Raises:
        EnsembleError: There is no finished run in the folder, or a damaged one.
        OSError: The folder cannot be written.
    """
    quiet_optuna()
    evidence = read_evidence(run)
    try:
        texts = {"scores.md": tables.markdown(evidence), "scores.tex": tables.latex(evidence)}
        parts = outline(evidence)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EnsembleError(f"'{run / 'summary.json'}' is damaged: {error!r}.") from error
    for folder in ("figures", "tables"):
        (run / folder).mkdir(exist_ok=True)
    for name, text in texts.items():
        write_atomically(run / "tables" / name, text.encode())
    wrong: list[str] = []
    body = "".join(_section(evidence, part, wrong) for part in parts)
    write_atomically(run / PAGE, _page(evidence, parts, body).encode())
    return run / PAGE, wrong


def _section(evidence: Evidence, part: Section, wrong: list[str]) -> str:
    figures = "".join(_figure(evidence, drawing, wrong) for drawing in part.drawings)
    figures = f'<div class="figures">{figures}</div>' if figures else ""
    heading = f"<h2>{escape(part.heading)}</h2>"
    # One figure and what belongs to it stand side by side where there is room.
    beside = "beside" if len(part.drawings) == 1 and part.after else ""
    body = f'<div class="{beside}">{figures}<div>{part.after}</div></div>'
    return f'<section id="{part.anchor}">{heading}{part.lead}{body}</section>'


def _figure(evidence: Evidence, drawing: Drawing, wrong: list[str]) -> str:
    """The figure, or why it is not there; never an error, since the results are worth more."""
    folder, title = evidence.run / "figures", escape(drawing.title)
    try:
        with styled(drawing.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sign that no font has, a scale of one value
            svg = save(drawing.draw(evidence), drawing.name, folder)
    except OSError:
        raise
    except LeftOut as reason:
        why = str(reason)
    except Exception as error:
        why = f"It could not be drawn: {error!r}."
        wrong.append(f"figure '{drawing.name}' is left out: {error!r}")
    else:
        caption = escape(drawing.caption)
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}. {caption}"', 1)
        return f"<figure>{svg}<figcaption><b>{title}.</b> {caption}</figcaption></figure>"
    for suffix in ("png", "svg"):  # of an earlier page
        (folder / f"{drawing.name}.{suffix}").unlink(missing_ok=True)
    return f'<p class="left-out"><b>{title}</b> is left out. {escape(why)}</p>'


def _page(evidence: Evidence, parts: list[Section], body: str) -> str:
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing is fetched, and nothing runs but the one script below.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = escape(f"{evidence.summary['corpus']}: {evidence.run.name}")
    links = "".join(
        f'<li><a href="#{part.anchor}">{escape(part.heading)}</a></li>' for part in parts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body>"
        f"<header>{sections.headline(evidence)}</header>"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
        f"<main>{body}</main><script>{script}</script></body></html>\n"
    )
