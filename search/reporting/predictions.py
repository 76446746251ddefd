"""Read a run's tables of predictions."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensembles import EnsembleError
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.prediction_tables import read_predictions
from ensembles.metrics import Array

PREDICTION_FILES = {
    "fused": "predictions.csv",
    **{modality: f"predictions_{modality}.csv" for modality in ("audio", "video", "early")},
}


@dataclass(frozen=True)
class RunPredictions:
    """A run's held-out predictions, in the order of its clips' names.

    Attributes:
        run: Its name.
        metric: What it was searched for.
        protocol: How it was split.
        table: Its clips.
        log_posteriors: (N, K).
        leak: What is wrong with that split; None if speakers are kept apart.
    """

    run: str
    metric: str
    protocol: str
    table: ClipTable
    log_posteriors: Array
    leak: str | None = None


def predictions_of_run(run: Path, row: str = "fused") -> RunPredictions:
    """Read a run's predictions of its clips, of the seed that it was searched with.

    Args:
        run: Its folder.
        row: fused, audio, video or early: the headline, or a modality's best expert.

    Raises:
        EnsembleError: No such run or row, or a file that is damaged.
    """
    try:
        summary = json.loads((run / "summary.json").read_bytes())
        if "traces" in summary:
            raise EnsembleError(
                f"'{run}' is of traces or numbers; runs of classes can be compared."
            )
        return _read(run, row, summary)
    except FileNotFoundError as error:
        raise EnsembleError(
            f"'{run}' has no {Path(error.filename).name}: no finished run, or none with '{row}'."
        ) from None
    except EnsembleError:
        raise
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise EnsembleError(f"'{run}' is damaged: {error!r}.") from error


def _read(run: Path, row: str, summary: dict[str, Any]) -> RunPredictions:
    path = run / PREDICTION_FILES[row]
    path.stat()  # raises FileNotFoundError
    try:
        found = read_predictions(path, seed=int(summary["seed"]))
    except EnsembleError as error:
        raise EnsembleError(f"'{run}' is damaged: {' '.join(str(error).split())}") from error
    clips, folds = sorted(found.held_out), sorted(set(found.folds.values()), key=int)
    return RunPredictions(
        run.name,
        str(summary["metric"]),
        str(summary["protocol"]),
        found.clip_table(clips, folds),
        found.log_posteriors(clips, found.classes),
        summary.get("leak"),
    )
