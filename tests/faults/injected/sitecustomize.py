"""Faults inside of a trial's process: Python imports this by itself where PYTHONPATH names the folder.

`$FAULTS` is a JSON list; nothing of the program knows of it. Each fault has

* `kind`: `nan` (the loss is none), `memory` (batches of more than `clips` clips do not fit), `crash`
  (the process dies), `hold` (the process waits, for the test to kill it), `hold written` (it waits when the bank has
  got the trial's posteriors at `percent`, which nobody was told yet),
* `step`: at which step of a process's training of a trial, counted from 1,
* `file`: gets a byte whenever the fault has happened,
* `times`: how often it happens, in all processes together (default 1),
* `trial`: to which trial (default: any), and `rank`: in which of several workers (default: any).

Where coverage is measured, a thread saves it every second: Ray's workers end without Python's exit.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

_now: dict[str, Any] = {"trial": None, "step": 0}


class _Patch(importlib.abc.MetaPathFinder):
    """Changes modules right after they were imported."""

    def __init__(self, changes: dict[str, Any]) -> None:
        self.changes = changes

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        change = self.changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


def _follow_trials(module: Any) -> None:
    """Notes which trial is trained now, in `search.execution.trial_process`."""
    train_part = module.train_part

    def followed(spec: Any, *others: Any) -> Any:
        _now.update(trial=spec.name, step=0)
        return train_part(spec, *others)

    module.train_part = followed


def _inject(module: Any) -> None:
    """Puts the faults into the steps of `search.training.fold_trainer`."""
    loss = module.FoldTrainer._loss

    def faulty(self: Any, inputs: Any, targets: Any, parts_alone: bool) -> Any:
        _now["step"] += 1
        factor = 1.0
        for fault in json.loads(os.environ["FAULTS"]):
            if "percent" not in fault and _is_due(fault, self.workers.rank, len(targets)):
                factor *= _happen(fault, module)
        return loss(self, inputs, targets, parts_alone) * factor

    module.FoldTrainer._loss = faulty


def _is_due(fault: dict[str, Any], rank: int, clips: int) -> bool:
    if fault.get("trial", _now["trial"]) != _now["trial"] or fault.get("rank", rank) != rank:
        return False
    if fault["kind"] == "memory":
        return clips > fault["clips"]
    file = Path(fault["file"])
    happened = file.stat().st_size if file.exists() else 0
    return _now["step"] >= fault["step"] and happened < fault.get("times", 1)


def _happen(fault: dict[str, Any], module: Any) -> float:
    """Returns what the loss is multiplied by."""
    with Path(fault["file"]).open("ab") as file:
        file.write(b".")
    if fault["kind"] == "memory":
        raise module.torch.OutOfMemoryError("CUDA out of memory.")
    if fault["kind"] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault["kind"] == "hold":
        _wait_to_be_killed()
    return float("nan")


def _hold_written(module: Any) -> None:
    """Puts the faults behind the writing of `ensembles.bank.posterior_bank`."""
    write = module.PosteriorBank.write

    def held(self: Any, entry: Any) -> Any:
        path = write(self, entry)
        for fault in json.loads(os.environ["FAULTS"]):
            if (fault.get("trial"), fault.get("percent")) == (entry.name, entry.percent):
                Path(fault["file"]).write_bytes(b".")
                _wait_to_be_killed()
        return path

    module.PosteriorBank.write = held


def _wait_to_be_killed() -> None:
    while True:
        time.sleep(0.05)


def _keep_saving_coverage() -> None:
    while True:
        time.sleep(1.0)
        coverage = sys.modules.get("coverage")
        current = coverage.Coverage.current() if coverage else None
        if current is not None:
            current.save()


if "FAULTS" in os.environ:
    sys.meta_path.insert(
        0,
        _Patch(
            {
                "search.training.fold_trainer": _inject,
                "search.execution.trial_process": _follow_trials,
                "ensembles.bank.posterior_bank": _hold_written,
            }
        ),
    )
if "COVERAGE_PROCESS_CONFIG" in os.environ:
    threading.Thread(target=_keep_saving_coverage, name="coverage", daemon=True).start()
