"""The table of a running search, drawn on terminals that are strings."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from search.monitoring import progress
from search.monitoring.progress import ProgressTable
from search.tuning.history import History
from search.tuning.tally import Tally, tally
from tests.specs import spec_of


class Part:
    """A modality's study; counts how often it is asked."""

    def __init__(self, *trials: tuple[TrialState, float | None]) -> None:
        self.kept, self.times = History(), 0
        for state, value in trials:
            self.kept.take(create_trial(state=state, value=value))

    @property
    def history(self) -> History:
        self.times += 1
        return self.kept


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 1000.0))


def a_search(**parts: Part) -> Any:
    return SimpleNamespace(
        parts=parts,
        running={},
        modality_of=lambda name: name.rpartition("-")[0],
        trials=48,
        deadline=progress.time.monotonic() + 65,
        failures=lambda: {"video-0000": "NonFiniteLossError: nan"},
        state_line=lambda: "3/48 trials",
    )


@pytest.fixture()
def search() -> Any:
    done, out = (TrialState.COMPLETE, 0.5), (TrialState.PRUNED, None)
    return a_search(
        audio=Part(done, (TrialState.COMPLETE, 0.625), (TrialState.RUNNING, None)),
        video=Part((TrialState.FAIL, None), out, out),
        early=Part(),
    )


def a_console(height: int = 24, terminal: bool = True) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=100, height=height, color_system=None
    )


def drawn(console: Console, table: ProgressTable) -> list[str]:
    with console.capture() as capture:
        console.print(table.render())
    return capture.get().splitlines()


def a_trial(name: str) -> Any:
    class Trial:
        config = {"spec": spec_of(name)}  # noqa: RUF012

        def __str__(self) -> str:
            return name

    return Trial()


def start(table: ProgressTable, *names: str) -> list[Any]:
    trials = [a_trial(name) for name in names]
    for name, trial in zip(names, trials, strict=True):
        table.on_trial_start(0, [], trial)
        table.search.running[name] = name
    return trials


def test_trials_are_counted_by_modality_and_by_how_they_ended(search: Any) -> None:
    search.running = {"audio-0002": "audio-0002"}
    assert tally(search) == {
        "audio": Tally(running=1, finished=2, best=0.625),
        "video": Tally(stopped=2, failed=1),
        "early": Tally(),
    }


def test_the_table_says_what_one_wants_to_know(search: Any) -> None:
    console = a_console()
    table = ProgressTable(console, search, "mine", facts=("2 at a time", "http://127.0.0.1:8265"))
    (trial,) = start(table, "audio-0002")
    table.on_trial_result(0, [], trial, {"percent": 50, "epoch": 12, "score": 0.4321})
    with table.showing():
        lines = drawn(console, table)
    assert lines[0].startswith("mine  5 of 48 trials, 0:00 passed, 1:05")
    assert lines[1] == "2 at a time, http://127.0.0.1:8265"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["audio"] == ["1", "2", "0", "0", "0.625"]
    assert rows["video"] == ["0", "0", "2", "1", "–"]
    assert rows["audio-0002"] == ["functionals", "50", "%", "epoch", "12", "0.432", "0", "s"]
    assert lines[-1] == "last failure: video-0000: NonFiniteLossError: nan", "of the run before"


def test_a_failure_is_shown_and_a_trial_that_ended_is_not(search: Any) -> None:
    console = a_console()
    table = ProgressTable(console, search, "mine")
    first, second = start(table, "audio-0002", "audio-0003")
    table.on_trial_result(0, [], first, {"failed": "its process died 3 times", "percent": 0})
    table.on_trial_complete(0, [], first)
    table.on_trial_complete(0, [], second)
    lines = drawn(console, table)
    assert lines[-1] == "last failure: audio-0002: its process died 3 times"
    assert not any(line.startswith("audio-0003") for line in lines)


@pytest.mark.parametrize("height", [9, 10, 11, 12, 13, 24, 60])
@pytest.mark.parametrize("running", [0, 1, 2, 40])
def test_the_table_is_never_higher_than_the_terminal(
    search: Any, height: int, running: int
) -> None:
    console = a_console(height)
    table = ProgressTable(console, search, "mine", facts=("2 at a time",))
    table.failure = "a failure of many words " * 20
    start(table, *(f"audio-{n:04d}" for n in range(running)))
    lines = drawn(console, table)
    assert len(lines) <= height - 1, "the last line is the cursor's"
    shown = sum(line.startswith("audio-") for line in lines)
    if shown < running and height > 9:
        assert f"… and {running - shown} more" in lines
    if height == 60:
        assert shown == running


def test_drawing_again_does_not_count_again(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    console = a_console()
    table = ProgressTable(console, search, "mine")
    part = search.parts["audio"]
    for _ in range(20):
        drawn(console, table)
        clock.now += 0.5
    assert part.times == 2, "nothing has changed"
    for _ in range(21):
        table.changed()
        drawn(console, table)
        clock.now += 0.125
    assert part.times == 8, "once a second, however much changes"


def test_a_log_loss_is_shown_as_it_is_not_as_the_search_turns_it() -> None:
    console = a_console()
    search = a_search(audio=Part((TrialState.COMPLETE, -1.25), (TrialState.COMPLETE, -0.75)))
    lines = drawn(console, ProgressTable(console, search, "mine", metric="log_loss"))
    assert any(line.split()[:1] == ["audio"] and line.endswith(" 0.750") for line in lines)
    assert any("best log_loss" in line for line in lines)


def test_without_a_terminal_there_are_plain_lines_now_and_then(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    console = a_console(terminal=False)
    table = ProgressTable(console, search, "mine")
    counted: list[dict[str, Tally]] = []
    with table.showing(counted.append):
        for _ in range(50):
            table.changed()
            clock.now += 1
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == [f"0:{s:02d}  3/48 trials" for s in (0, 20, 40)]
    assert len(counted) == 51, "once a second, and at the end"


def test_what_libraries_print_does_not_come_between(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, elsewhere = a_console(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", elsewhere)
    with ProgressTable(console, search, "mine").showing():
        print("(raylet) a worker died", file=sys.stderr)
    assert isinstance(console.file, io.StringIO)
    assert "mine" in console.file.getvalue()
    assert "raylet" not in console.file.getvalue()
    assert "raylet" in elsewhere.getvalue()
