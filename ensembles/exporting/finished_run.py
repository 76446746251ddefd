"""Read what a finished run left that an export needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensembles import EnsembleError
from ensembles.artifact.fold_networks import FoldedExpert, read_plan, shape_of
from ensembles.bank.posterior_bank import Experts, PosteriorBank
from ensembles.bank.run_format import RUN_FORMAT, refusal
from ensembles.metrics import get_metric
from models import build_expert, get_architecture
from models.registry import ModelError

ABOUT = ("run", "corpus", "protocol", "metric", "clips", "speakers", "commit", "versions")
_NEEDED = (*ABOUT, "experts", "chosen_recipe", "headline", "inputs", "command")


@dataclass(frozen=True)
class FinishedRun:
    """Parts of a run that an export needs.

    Attributes:
        path: The run's folder.
        summary: Its `summary.json`.
        experts: Every finished expert's out-of-fold posteriors.
    """

    path: Path
    summary: Mapping[str, Any]
    experts: Experts

    def weights(self, expert: str) -> Path:
        """Where an expert's networks lie."""
        return self.path / "weights" / expert


def read_run(path: Path) -> FinishedRun:
    """Opens a finished run.

    Raises:
        EnsembleError: No run, not finished, another format version, or damaged.
    """
    summary_path = path / "summary.json"
    if not path.is_dir():
        raise EnsembleError(f"No run in '{path}'.")
    if not summary_path.is_file():
        raise EnsembleError(
            f"The run in '{path}' has no finished expert yet (no summary.json). "
            f"Continue it with: python -m search.run --resume {path.name}"
        )
    try:
        summary = json.loads(summary_path.read_bytes())
        version = summary["format_version"]
        if version != RUN_FORMAT:
            raise EnsembleError(refusal(path, version))
        finished = [str(name) for name in summary["experts"]]
        lacking = [key for key in _NEEDED if key not in summary]
        if lacking:
            raise KeyError(lacking[0])
        get_metric(summary["metric"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, EnsembleError):
            raise
        raise EnsembleError(
            f"'{summary_path}' is damaged or of an older program: {error!r}. Write it again with: "
            f"python -m search.run --resume {path.name}"
        ) from error
    bank = PosteriorBank.open(path / "bank")
    entries = {entry.name: entry for entry in bank.read() if entry.percent == 100}
    lost = [name for name in finished if name not in entries]
    if lost:
        raise EnsembleError(f"The bank of '{path}' has lost the posteriors of '{lost[0]}'.")
    return FinishedRun(path, summary, bank.experts(entries[name] for name in finished))


def inputs_by_expert(run: FinishedRun) -> dict[str, frozenset[str]]:
    """Expert → what it reads, of those whose weights were kept."""
    kept = [name for name in run.experts.names if run.weights(name).is_dir()]
    return {name: _inputs_of_plan(run.weights(name) / "plan.json") for name in kept}


def _inputs_of_plan(path: Path) -> frozenset[str]:
    plan = read_plan(path)
    try:
        parts = [plan["architecture"]]
        if not get_architecture(parts[0]).inputs:  # early fusion reads what its parts do
            parts = [plan["settings"][side]["architecture"] for side in ("audio", "video")]
        inputs = frozenset(kind for part in parts for kind in get_architecture(part).inputs)
        shape = shape_of(plan)
        if shape.saliency_maps and "video" in inputs:  # which settings decide
            network = build_expert(plan["architecture"], plan["settings"], shape)
            return inputs_of_expert(FoldedExpert([network]))
        return inputs
    except (ModelError, KeyError, TypeError) as error:
        raise EnsembleError(f"'{path}' is damaged: {error!r}.") from error


def inputs_of_expert(expert: FoldedExpert) -> frozenset[str]:
    """Return its inputs; saliency, where its frames have a fourth channel."""
    return frozenset([*expert.kinds, *(["saliency"] if expert.reads_saliency else [])])
