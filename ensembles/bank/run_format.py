"""The format of a run's folder, which search writes and ensembles read."""

from __future__ import annotations

import json
from pathlib import Path

RUN_FORMAT = 2
"""Version of `config.yaml`, `run.json`, the bank and `summary.json` together."""


def refusal(run: Path, version: object) -> str:
    """Return the sentence that refuses a run of another format, with the commit that made it."""
    try:
        commit = json.loads((run / "summary.json").read_bytes())["commit"]
        made = f"commit {str(commit).removesuffix('+changes')}, which made it"
    except (OSError, ValueError, KeyError, TypeError):
        made = "the commit that made it"
    return (
        f"The run in '{run}' is of format version {version}; this program reads version "
        f"{RUN_FORMAT}. Use {made}, or search again."
    )
