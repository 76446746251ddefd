"""The scores of a run, each labelled by what it saw; as Markdown and LaTeX to paste."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensembles.bank.posterior_bank import MODALITIES
from search.papers.published import published_on
from search.reporting.html.run_results import Evidence

_EXPORTED = "exported ensemble"


@dataclass(frozen=True)
class ScoreLine:
    """One number.

    Attributes:
        row: What is scored: fused, best audio, …
        number: Which number it is.
        saw: What chose, fitted and trained what is scored.
        value: As in the summary.
        low: Of the 95 % interval, where there is one.
        high: Of the 95 % interval.
        each: What it is the mean of.
        of_corpus: Whether it is one of several corpora's, whose name is in `number`.
    """

    row: str
    number: str
    saw: str
    value: float
    low: float | None = None
    high: float | None = None
    each: tuple[float, ...] = ()
    of_corpus: bool = False

    @property
    def kind(self) -> str:
        """Its number, without a corpus's name."""
        if not self.of_corpus:
            return self.number
        return "test speakers" if self.row == _EXPORTED else "one corpus"


def score_lines(evidence: Evidence) -> list[ScoreLine]:
    """The headline from every side, then every modality's, then what guessing gives."""
    lines = [
        line
        for row in _headline_rows(evidence)
        for line in _lines_of(evidence, row, evidence.summary["headline"][row])
    ]
    lines += _corpora(evidence)
    lines += _test_speakers(evidence)
    lines += _guessing(evidence)
    for one in published_on(
        str(evidence.summary["corpus"]), len(evidence.summary["classes"]), evidence.metric.name
    ):
        name = f"{one.paper}, {one.what}"
        lines.append(ScoreLine(name, "published", f"{one.protocol}; {one.saw}", one.value))
    return lines


def _headline_rows(evidence: Evidence) -> list[str]:
    known = evidence.summary["headline"]
    wanted = ["fused", *MODALITIES, *(f"{name}_alone" for name in MODALITIES)]
    return [name for name in wanted if name in known]


def _lines_of(evidence: Evidence, key: str, row: dict[str, Any]) -> Iterator[ScoreLine]:
    name = str(row["name"])
    single = key in MODALITIES
    chosen = "expert" if single else "experts, fusion and recipe"
    low, high = row["interval_95"]
    saw = f"{chosen} chosen for each fold of speakers from the other folds"
    yield ScoreLine(name, "honest score", saw, row["honest_score"], low, high)
    if corrected := row.get("corrected"):
        among = "rungs of trials" if single else "recipes"
        saw = (
            f"the winner of {corrected['candidates']} {among} on some speakers, "
            "scored on the others (BBC-CV)"
        )
        yield ScoreLine(name, "corrected score", saw, corrected["score"], *corrected["interval_95"])
    by_seed = {
        seed: rows[name]["honest_score"]
        for seed, rows in evidence.summary.get("confirmed", {}).items()
        if name in rows
    }
    if by_seed:
        saw = f"the same choices trained again with seeds {', '.join(by_seed)}; nothing was chosen by them"
        each = tuple(by_seed.values())
        yield ScoreLine(name, "fresh seeds", saw, float(np.mean(each)), each=each)
    if row.get("search_score") is not None:
        saw = "chosen on the very folds that are scored: optimistic"
        yield ScoreLine(name, "search score", saw, row["search_score"])


def _corpora(evidence: Evidence) -> Iterator[ScoreLine]:
    """Where each fold is a corpus, the headline's score on each."""
    names = evidence.summary.get("fold_names") or []
    fused = evidence.summary["headline"]["fused"]
    for name, value in zip(names, fused["fold_scores"], strict=False):
        saw = "the fold that this corpus is: trained, chosen and fitted on the other corpora"
        yield ScoreLine(str(fused["name"]), f"on {name}", saw, value, of_corpus=True)


def _test_speakers(evidence: Evidence) -> Iterator[ScoreLine]:
    found = evidence.summary.get("test_speakers")
    if found:
        looks = found.get("scored_before", 0)
        before = f"looked at {looks} times before" if looks else "never looked at before"
        saw = (
            f"the averaged ensemble of an export on {found['clips']} clips of "
            f"{len(found['speakers'])} speakers in no fold; {before}"
        )
        corpus = evidence.summary.get("test_corpus")
        number = f"test corpus {corpus}" if corpus else "test speakers"
        yield ScoreLine(_EXPORTED, number, saw, found["score"], of_corpus=bool(corpus))


def _guessing(evidence: Evidence) -> Iterator[ScoreLine]:
    confusion = evidence.summary.get("detail", {}).get("fused", {}).get("confusion")
    if confusion and evidence.metric.name == "accuracy":
        counts = np.asarray(confusion).sum(axis=1)
        name = "always the largest class"
        yield ScoreLine(name, "guess", "the labels alone", float(counts.max() / counts.sum()))


def told_interval(evidence: Evidence, line: ScoreLine) -> str:
    """The interval, or what the number is the mean of."""
    if line.low is not None and line.high is not None:
        return evidence.metric.format_interval(line.low, line.high)
    if line.each:
        return "each: " + ", ".join(evidence.metric.format(value) for value in line.each)
    return ""


_HEADINGS = ("what", "number", "score", "95 % over speakers", "what it saw")


def title(evidence: Evidence) -> str:
    """Name what is scored, in one line."""
    found = evidence.summary
    leak = f"{found['leak']}. " if found.get("leak") else ""
    return (
        f"{leak}{found['corpus']}: {evidence.metric.name} ({evidence.metric.scale}), {found['protocol']}, "
        f"{counted(evidence)}"
    )


def counted(evidence: Evidence) -> str:
    """How many clips or recordings of how many speakers, and what is told apart."""
    found = evidence.summary
    what, kinds = f"{found['clips']} clips", f"{len(found['classes'])} classes"
    if traces := found.get("traces"):
        kinds = ", ".join(found["classes"])
        what = f"{len(traces['recordings'])} recordings" if traces["step_seconds"] else what
    return f"{what} of {found['speakers']} speakers, {kinds}"


def _cells(evidence: Evidence) -> list[tuple[str, ...]]:
    return [
        (
            line.row,
            line.number,
            evidence.metric.format(line.value),
            told_interval(evidence, line),
            line.saw,
        )
        for line in score_lines(evidence)
    ]


def markdown(evidence: Evidence) -> str:
    """A table for a README."""
    rows: list[tuple[str, ...]] = [_HEADINGS, ("---", "---", "--:", "---", "---")]
    rows += [tuple(_in_markdown(cell) for cell in row) for row in _cells(evidence)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([_in_markdown(title(evidence)), "", *lines, ""])


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(text.split()))


def latex(evidence: Evidence) -> str:
    """A `tabular` that needs no package."""
    lines = [
        f"% {' '.join(title(evidence).split())}",
        r"\begin{tabular}{llrlp{7cm}}",
        r"\hline",
        " & ".join(_in_latex(cell) for cell in _HEADINGS) + r" \\",
        r"\hline",
        *(" & ".join(_in_latex(cell) for cell in row) + r" \\" for row in _cells(evidence)),
        r"\hline",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
}


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
