"""How answers are printed: a table for people, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensembles.predictor import Answer
from ensembles.timeline import Moment

Form = Literal["table", "json", "csv"]


class Printer(Protocol):
    """Takes answers one after the other."""

    def clip(self, answer: Answer) -> None:
        """A file."""

    def recording(self, name: str, moments: Sequence[Moment], error: str | None) -> None:
        """A file's windows, and what went wrong behind them."""

    def close(self) -> None:
        """Nothing more comes."""


def printer(form: Form, labels: tuple[str, ...], *, windows: bool = False) -> Printer:
    """What prints to stdout in this form; files with an error are the caller's to name."""
    if form == "json":
        return _Json()
    return _Csv(labels, windows) if form == "csv" else _Table(windows)


class _Json:
    """One object a line and file."""

    def clip(self, answer: Answer) -> None:
        said = {"error": answer.error} if answer.error else _said(answer)
        print(json.dumps({"file": answer.name, **said}), flush=True)

    def recording(self, name: str, moments: Sequence[Moment], error: str | None) -> None:
        windows = [
            {
                "start": round(moment.start, 3),
                "end": round(moment.end, 3),
                **({"reason": moment.reason} if moment.reason else _said(moment.answer)),
            }
            for moment in moments
        ]
        failure = {"error": error} if error else {}
        print(json.dumps({"file": name, "windows": windows, **failure}), flush=True)

    def close(self) -> None:
        pass


def _said(answer: Answer) -> dict[str, object]:
    return {
        "label": answer.label,
        "probabilities": dict(answer.probabilities),
        "experts": list(answer.experts),
        "notes": list(answer.notes),
    }


class _Csv:
    """A header, and one row a file or window; `reason` says why there is no label."""

    def __init__(self, labels: tuple[str, ...], windows: bool) -> None:
        self.labels = labels
        self._rows = csv.writer(sys.stdout, lineterminator="\n")
        times = ["start", "end"] if windows else []
        self._rows.writerow(["file", *times, "label", *labels, "experts", "notes", "reason"])

    def clip(self, answer: Answer) -> None:
        self._row(answer.name, [], answer, answer.error)

    def recording(self, name: str, moments: Sequence[Moment], error: str | None) -> None:
        for moment in moments:
            times = [f"{moment.start:.3f}", f"{moment.end:.3f}"]
            self._row(name, times, moment.answer, moment.reason)
        if error and not moments:
            self._row(name, ["", ""], Answer(name, error=error), error)

    def close(self) -> None:
        pass

    def _row(self, name: str, times: list[str], answer: Answer, reason: str | None) -> None:
        shown = name.encode(errors="backslashreplace").decode()
        values: list[object] = ["", *[""] * len(self.labels), "", ""]
        if not reason:
            probabilities = [f"{answer.probabilities[label]:.6f}" for label in self.labels]
            experts, notes = " ".join(answer.experts), "; ".join(answer.notes)
            values = [answer.label, *probabilities, experts, notes]
        self._rows.writerow([shown, *times, *values, reason or ""])
        sys.stdout.flush()


class _Table:
    """One row a file or window that has an answer; silent windows are named."""

    def __init__(self, windows: bool) -> None:
        times = ["from", "to"] if windows else []
        columns = ["file", *times, "emotion", "probability", "runners-up", "experts"]
        self._table = Table(*columns, box=box.SIMPLE)

    def clip(self, answer: Answer) -> None:
        if not answer.error:
            self._row(answer.name, [], answer)

    def recording(self, name: str, moments: Sequence[Moment], error: str | None) -> None:
        for moment in moments:
            times = [_clock(moment.start), _clock(moment.end)]
            if moment.reason:
                self._table.add_row(_title(name), *times, f"({escape(moment.reason)})")
            else:
                self._row(name, times, moment.answer)

    def close(self) -> None:
        if self._table.row_count:
            Console().print(self._table)

    def _row(self, name: str, times: list[str], answer: Answer) -> None:
        ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])
        others = ", ".join(f"{name} {100 * value:.0f} %" for name, value in ranked[1:3])
        self._table.add_row(
            _title(name),
            *times,
            escape(answer.label),
            f"{100 * ranked[0][1]:.1f} %",
            escape(others),
            str(len(answer.experts)),
        )


def _title(name: str) -> str:
    return escape(Path(name).name)  # [brackets] are no markup here


def _clock(seconds: float) -> str:
    """Such as 1:02:03.5."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}:{minutes:02d}' if hours else minutes}:{rest / 10:04.1f}"
