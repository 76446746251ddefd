"""Faults inside of a trial's process: Python imports this by itself where PYTHONPATH names the folder.

`$FAULT` is JSON: `kind` (nan, memory, crash), `step`, `clips`, and `once`, a file that is made
when the fault has happened, so that it happens once. Nothing of the program knows of it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


class _Patch(importlib.abc.MetaPathFinder):
    """Changes `search.train` right after it was imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "search.train":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _inject(module)

        spec.loader.exec_module = exec_module
        return spec


def _inject(module: Any) -> None:
    fault = json.loads(os.environ["FAULT"])
    once, loss = Path(fault["once"]), module.FoldTrainer._loss
    steps = 0

    def faulty(self: Any, inputs: Any, wanted: Any) -> Any:
        nonlocal steps
        steps += 1
        if fault["kind"] == "memory":
            if len(wanted) > fault["clips"]:
                once.touch()
                raise module.torch.OutOfMemoryError("CUDA out of memory.")
            return loss(self, inputs, wanted)
        if steps < fault["step"] or once.exists():
            return loss(self, inputs, wanted)
        once.touch()
        if fault["kind"] == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        return loss(self, inputs, wanted) * float("nan")

    module.FoldTrainer._loss = faulty


if "FAULT" in os.environ:
    sys.meta_path.insert(0, _Patch())
