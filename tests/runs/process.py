"""Whole commands as processes: started, waited for, killed, and cleaned up after."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
import psutil

from ensembles.bank.posterior_bank import PosteriorBank
from search.tuning.study import open_journal

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600.0
"""How long anything may take before a test gives up: a busy machine is no fault of the program."""

_ENV = {"COLUMNS": "120", "RAY_worker_niceness": "0"}
"""Ray runs its workers at niceness 15: beside anything busy they would stand still."""

Found = TypeVar("Found")


def wait_until(
    what: Callable[[], Found], why: Callable[[], str] = lambda: "", *, pause: float = 0.05
) -> Found:
    """Asks until the answer is true, and returns it.

    Args:
        what: The question; an OSError counts as no.
        why: What to say when the time is over.
        pause: Seconds between two questions.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(OSError):
            if found := what():
                return found
        assert time.monotonic() < deadline, f"it did not happen in {PATIENCE_S:g} s. {why()}"
        time.sleep(pause)


class Command:
    """A Python command as the leader of a process group; what it prints goes into files.

    Args:
        arguments: After `python`.
        folder: For the files.
        env: What its environment has besides that of this process.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        env: dict[str, str],
        cwd: Path = ROOT,
        stdin: str | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._out, self._err = folder / f"{self._mark}.out", folder / f"{self._mark}.err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env={**os.environ, **_ENV, **env, "STARTED_BY_TEST": self._mark},
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        if stdin is not None:
            assert self.process.stdin is not None
            self.process.stdin.write(stdin)
            self.process.stdin.close()

    @property
    def out(self) -> str:
        """What it printed so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it complained of so far."""
        return self._err.read_text()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> int:
        """Waits for its end; returns the exit code."""
        return self.process.wait(PATIENCE_S)

    def finish(self, code: int = 0) -> str:
        """Waits for its end, which must have this exit code; returns what it printed."""
        found = self.wait()
        assert found == code, f"exit code {found}:\n{self.out[-3000:]}\n{self.err[-6000:]}"
        assert "Traceback" not in self.err, self.err
        return self.out

    def until(self, what: Callable[[], Found]) -> Found:
        """Waits for something that happens before it ends, and returns it."""

        def asked() -> Found | None:
            ended, found = not self.running, None
            with suppress(OSError):
                found = what()
            assert found or not ended, f"it ended before:\n{self.err[-6000:]}"
            return found

        answer = wait_until(asked, lambda: self.err[-3000:])
        assert answer is not None
        return answer

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9 on the whole group, and on whatever else it left behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        self.clean_up()

    def clean_up(self) -> None:
        """Ends every process that this one started, in whatever group it is now."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        left = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("STARTED_BY_TEST") == self._mark:
                    process.kill()
                    left.append(process)
        psutil.wait_procs(left, timeout=PATIENCE_S)


def happened(file: Path, times: int = 1) -> Callable[[], bool]:
    """Whether an injected fault has happened so often."""
    return lambda: file.exists() and file.stat().st_size >= times


def one_error(text: str) -> str:
    """The one line that a mistake is to end in."""
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, text
    return lines[0]


def words(text: str) -> str:
    """A text whose lines were broken anywhere, as one line."""
    return re.sub(r"\s+", " ", text)


def journal(run: Path) -> dict[str, dict[str, Any]]:
    """Trial → what the journal has of it: parameters, state, score and rungs."""
    storage = open_journal(run / "journal.log")
    trials = {}
    for study in sorted(study.study_name for study in storage.get_all_studies()):
        for trial in optuna.load_study(study_name=study, storage=storage).get_trials():
            if trial.state != optuna.trial.TrialState.WAITING:
                trials[f"{study}-{trial.number:04d}"] = {
                    "params": trial.params,
                    "state": trial.state.name,
                    "values": trial.values,
                    "rungs": trial.intermediate_values,
                }
    return trials


def bank(run: Path) -> dict[tuple[str, int], Any]:
    """(Trial, percent) → logits, of every entry of the posterior bank."""
    found = PosteriorBank.open(run / "bank")
    entries = {(entry.name, entry.percent): entry.logits for entry in found.read()}
    assert found.damaged == []
    return entries


def assert_same_entries(
    some: dict[tuple[str, int], Any], others: dict[tuple[str, int], Any]
) -> None:
    """Equal to the last bit, trial by trial and rung by rung."""
    assert some.keys() == others.keys()
    for key, logits in some.items():
        np.testing.assert_array_equal(logits, others[key], err_msg=f"{key[0]} at {key[1]} %")
