"""The panels of the Grafana dashboard that docs/ holds."""

from __future__ import annotations

import json
from pathlib import Path


def expressions() -> dict[str, str]:
    """Title → PromQL of every panel."""
    path = Path(__file__).parents[1] / "docs" / "grafana-trials.json"
    document = json.loads(path.read_text())
    return {p["title"]: t["expr"] for p in document["panels"] for t in p["targets"]}
