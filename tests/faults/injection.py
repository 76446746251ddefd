"""The environment of a process into which faults are injected; what they are: `injected/sitecustomize.py`."""

from __future__ import annotations

import json
import os
from pathlib import Path

_FOLDER = Path(__file__).parent / "injected"


def injection(*faults: dict[str, object]) -> dict[str, str]:
    """Variables of the environment that inject these faults into every process below."""
    before = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, [str(_FOLDER), before]))
    return {"PYTHONPATH": path, "FAULTS": json.dumps(faults)}
