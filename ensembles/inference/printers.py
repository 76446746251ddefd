"""Print predictions as a table, JSON or CSV."""

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

from ensembles.inference.predictor import Answer
from ensembles.inference.sliding_windows import Moment
from ensembles.inference.traces import Trace

Form = Literal["table", "json", "csv"]


class Printer(Protocol):
    """Takes answers one after the other."""

    def clip(self, answer: Answer) -> None:
        """A file."""

    def recording(self, name: str, moments: Sequence[Moment], error: str | None) -> None:
        """A file's windows, and what went wrong behind them."""

    def close(self) -> None:
        """Nothing more comes."""


def printer(
    form: Form, labels: tuple[str, ...], *, windows: bool = False, numbers: bool = False
) -> Printer:
    """Return a function that prints to stdout in this form; files with an error are the caller's to name.

    Args:
        form: Table, JSON lines or CSV.
        labels: Classes; of `numbers`, what they are of.
        windows: Whether recordings are answered window by window.
        numbers: Whether answers are numbers such as valence.
    """
    if form == "json":
        return _Json()
    if form == "csv":
        return _Csv(labels, windows, numbers)
    return _NumberTable(labels) if numbers else _Table(windows)


def trace_printer(form: Form, names: tuple[str, ...]) -> TracePrinter:
    """Return a function that prints traces: a table of their means and reach, or every step as JSON or CSV."""
    if form == "json":
        return _TraceJson(names)
    return _TraceCsv(names) if form == "csv" else _TraceTable(names)


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
    about = {"experts": list(answer.experts), "notes": list(answer.notes)}
    if answer.values:
        return {"values": dict(answer.values), **about}
    return {
        "label": answer.label,
        "probabilities": dict(answer.probabilities),
        **about,
    }


class _Csv:
    """A header, and one row a file or window; `reason` says why there is no label."""

    def __init__(self, labels: tuple[str, ...], windows: bool, numbers: bool = False) -> None:
        self.labels, self.numbers = labels, numbers
        self._rows = csv.writer(sys.stdout, lineterminator="\n")
        times = ["start", "end"] if windows else []
        label = [] if numbers else ["label"]
        self._rows.writerow(["file", *times, *label, *labels, "experts", "notes", "reason"])

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
        label: list[object] = [] if self.numbers else [""]
        values: list[object] = [*label, *[""] * len(self.labels), "", ""]
        if not reason:
            said = answer.values if self.numbers else answer.probabilities
            numbers = [f"{said[name]:.6f}" for name in self.labels]
            experts, notes = " ".join(answer.experts), "; ".join(answer.notes)
            label = [] if self.numbers else [answer.label]
            values = [*label, *numbers, experts, notes]
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


class _NumberTable:
    """One row a file: its numbers."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._table = Table("file", *names, "experts", box=box.SIMPLE)

    def clip(self, answer: Answer) -> None:
        if not answer.error:
            numbers = (f"{answer.values[name]:.3f}" for name in self.names)
            self._table.add_row(_title(answer.name), *numbers, str(len(answer.experts)))

    def recording(self, name: str, moments: Sequence[Moment], error: str | None) -> None:
        for moment in moments:
            self.clip(moment.answer)

    def close(self) -> None:
        if self._table.row_count:
            Console().print(self._table)


class TracePrinter(Protocol):
    """Takes recordings one after the other."""

    def recording(self, trace: Trace) -> None:
        """A file's trace."""

    def close(self) -> None:
        """Nothing more comes."""


class _TraceTable:
    """One row a file and dimension: mean and reach."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._table = Table("file", "lasts", "", "mean", "least", "most", "experts", box=box.SIMPLE)

    def recording(self, trace: Trace) -> None:
        for number, name in enumerate(self.names):
            values = trace.values[:, number]
            numbers = (f"{x:.3f}" for x in (values.mean(), values.min(), values.max()))
            first = [_title(trace.name), _clock(trace.seconds[-1])] if number == 0 else ["", ""]
            self._table.add_row(*first, name, *numbers, "" if number else str(len(trace.experts)))

    def close(self) -> None:
        if self._table.row_count:
            Console().print(self._table)
            print("Every step: --csv or --json.")


class _TraceCsv:
    """A header, and one row a step."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._rows = csv.writer(sys.stdout, lineterminator="\n")
        self._rows.writerow(["file", "seconds", *names])

    def recording(self, trace: Trace) -> None:
        shown = trace.name.encode(errors="backslashreplace").decode()
        for seconds, values in zip(trace.seconds, trace.values, strict=True):
            self._rows.writerow([shown, f"{seconds:.3f}", *(f"{value:.5f}" for value in values)])

    def close(self) -> None:
        pass


class _TraceJson:
    """One object a line and file."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def recording(self, trace: Trace) -> None:
        values = {
            name: trace.values[:, number].round(5).tolist()
            for number, name in enumerate(self.names)
        }
        seconds = trace.seconds.round(3).tolist()
        print(
            json.dumps(
                {"file": trace.name, "seconds": seconds, **values, "experts": list(trace.experts)}
            ),
            flush=True,
        )

    def close(self) -> None:
        pass


def _title(name: str) -> str:
    return escape(Path(name).name)  # [brackets] are no markup here


def _clock(seconds: float) -> str:
    """Such as 1:02:03.5."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}:{minutes:02d}' if hours else minutes}:{rest / 10:04.1f}"
