"""The live table of a running search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ensembles.metrics import get_metric
from search.trial_spec import TrialSpec
from search.tuning.searcher import ModalitySearcher
from search.tuning.tally import Tally, tally

_SECONDS_BETWEEN_PLAIN_LINES = 20.0
_SECONDS_BETWEEN_COUNTS = 1.0
_REDRAWN_A_SECOND = 2
_TABLE_HEAD_LINES = 2


@dataclass
class Running:
    """A trial that is under way, as its reports tell."""

    name: str
    architecture: str
    started: float
    percent: int = 0
    epoch: int = 0
    score: float | None = None


class ProgressTable(tune.Callback):
    """Where the search is: a table that renews itself on a terminal, lines where there is none.

    What it shows is counted when something has changed, at most once a second, never for a mere
    redrawing: a search of thousands of trials must not pay for being watched.

    Args:
        console: Where to.
        search: Whose.
        title: The run's name.
        metric: Name of what is scored; scores are shown, not the utilities that the search reports.
        facts: What else the header says, such as the dashboard's address.
    """

    def __init__(
        self,
        console: Console,
        search: ModalitySearcher,
        title: str,
        *,
        metric: str = "accuracy",
        facts: tuple[str, ...] = (),
    ) -> None:
        self.console, self.search, self.title, self.facts = console, search, title, facts
        self.metric = metric
        self.started = time.monotonic()
        self.running: dict[str, Running] = {}
        self.failure = ""
        self.on_count: Callable[[dict[str, Tally]], None] = lambda tallies: None
        self._last_plain = -_SECONDS_BETWEEN_PLAIN_LINES
        self._tallies: dict[str, Tally] = {}
        self._counted = -math.inf
        self._stale = True

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's own snapshot is never restored."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune has started it, or started it again."""
        spec: TrialSpec = trial.config["spec"]
        self.running[str(trial)] = Running(spec.name, spec.plan.title, time.monotonic())
        self.changed()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """It has reached a rung, or failed."""
        if result.get("failed"):
            self.failure = f"{trial}: {result['failed']}"
        elif row := self.running.get(str(trial)):
            row.percent, row.epoch = int(result["percent"]), int(result["epoch"])
            row.score = float(result["score"])
        self.changed()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It has ended, however."""
        self.running.pop(str(trial), None)
        self.changed()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process has died."""
        self.running.pop(str(trial), None)
        self.failure = f"{trial}: its process died"
        self.changed()

    def changed(self) -> None:
        """Something happened: it will be counted anew."""
        self._stale = True
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_plain >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_plain = now
            line = f"{_clock(now - self.started)}  {self.search.state_line()}"
            self.console.print(line, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.counted()

    def counted(self) -> dict[str, Tally]:
        """How the trials stand; counted again where something changed since."""
        now = time.monotonic()
        if self._stale and now - self._counted >= _SECONDS_BETWEEN_COUNTS:
            self._stale, self._counted = False, now
            self._tallies = tally(self.search)
            self.on_count(self._tallies)
        return self._tallies

    @contextmanager
    def showing(
        self, on_count: Callable[[dict[str, Tally]], None] = lambda tallies: None
    ) -> Iterator[None]:
        """Shows the table while the block runs.

        Args:
            on_count: Told how the trials stand, whenever they were counted.
        """
        self.on_count = on_count
        failures = self.search.failures()
        self.failure = ": ".join(list(failures.items())[-1]) if failures else ""
        try:
            with self._live() if self.console.is_terminal else nullcontext():
                yield
        finally:
            self._stale, self._counted = True, -math.inf
            self.counted()

    def _live(self) -> Live:
        return Live(
            get_renderable=self.render,
            console=self.console,
            refresh_per_second=_REDRAWN_A_SECOND,
            transient=True,
            vertical_overflow="crop",
            # What libraries print goes on to the file; Live would show it above the table.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def render(self) -> RenderableType:
        """No higher than the terminal: of what runs, as much as there is room for."""
        tallies = self.counted()
        parts: list[RenderableType] = [
            *(_line(text, "bold" if not n else "") for n, text in enumerate(self._header(tallies))),
            self._modalities(tallies),
        ]
        footer = [_line(f"last failure: {self.failure}", "red")] if self.failure else []
        header = len(parts) - 1 + _TABLE_HEAD_LINES + len(tallies)
        room = self.console.height - 1 - header - len(footer)  # the last line is the cursor's
        rows = list(self.running.values())
        if rows and room > 0:
            shown = rows if len(rows) <= room else rows[: room - 1]
            parts += [self._now(shown)] if shown else []
            if len(shown) < len(rows):
                parts.append(_line(f"… and {len(rows) - len(shown)} more", "dim"))
        return Group(*parts, *footer)

    def _header(self, tallies: dict[str, Tally]) -> list[str]:
        now = time.monotonic()
        ended = sum(t.finished + t.stopped + t.failed for t in tallies.values())
        left = self.search.deadline - now
        first = (
            f"{self.title}  {ended} of {self.search.trials} trials, "
            f"{_clock(now - self.started)} passed, "
            + (f"{_clock(left)} left" if left > 0 else "the time is over: stopping what runs")
        )
        return [first, *([", ".join(self.facts)] if self.facts else [])]

    def _modalities(self, tallies: dict[str, Tally]) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("")
        for name in ("running", "finished", "stopped early", "failed", f"best {self.metric}"):
            table.add_column(name, justify="right", no_wrap=True)
        for modality, t in tallies.items():
            counts = (t.running, t.finished, t.stopped, t.failed)
            table.add_row(modality, *map(str, counts), self._score(t.best) or "–")
        return table

    def _now(self, rows: list[Running]) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for justify in ("left", "left", "right", "right", "right", "right"):
            table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
        now = time.monotonic()
        for row in rows:
            table.add_row(
                row.name,
                row.architecture,
                f"{row.percent} %",
                f"epoch {row.epoch}" if row.epoch else "",
                self._score(row.score),
                f"{now - row.started:.0f} s",
            )
        return table

    def _score(self, score: float | None) -> str:
        if score is None:
            return ""
        return f"{get_metric(self.metric).sign * score:.3f}"


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, overflow="ellipsis", no_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
