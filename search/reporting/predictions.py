"""Read a run's tables of predictions."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensembles import EnsembleError
from ensembles.bank.clip_table import ClipTable
from ensembles.metrics import Array

PREDICTION_FILES = {
    "fused": "predictions.csv",
    **{modality: f"predictions_{modality}.csv" for modality in ("audio", "video", "early")},
}

_FIXED = ("clip", "speaker", "fold", "seed", "label")


@dataclass(frozen=True)
class Predictions:
    """A run's held-out predictions, in the order of its clips' names.

    Attributes:
        run: Its name.
        metric: What it was searched for.
        protocol: How it was split.
        leak: What is wrong with that split; None if speakers are kept apart.
        table: Its clips.
        log_posteriors: (N, K).
    """

    run: str
    metric: str
    protocol: str
    table: ClipTable
    log_posteriors: Array
    leak: str | None = None


def read_predictions(run: Path, row: str = "fused") -> Predictions:
    """Reads what a run said of its clips, of the seed that it was searched with.

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
        with (run / PREDICTION_FILES[row]).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lines = [line for line in reader if int(line["seed"]) == int(summary["seed"])]
            classes = [name for name in reader.fieldnames or () if name not in _FIXED]
        lines.sort(key=lambda line: line["clip"])
        values = np.asarray([[float(line[name]) for name in classes] for line in lines])
        table = ClipTable(
            clips=tuple(line["clip"] for line in lines),
            speakers=tuple(line["speaker"] for line in lines),
            folds=np.asarray([int(line["fold"]) for line in lines], np.int64),
            labels=np.asarray([classes.index(line["label"]) for line in lines], np.int64),
            classes=tuple(classes),
        )
        if values.ndim != 2 or not np.isfinite(values).all():
            raise ValueError("posteriors that are not numbers")
        return Predictions(
            run.name,
            str(summary["metric"]),
            str(summary["protocol"]),
            table,
            np.log(np.maximum(values, 1e-12)),
            summary.get("leak"),
        )
    except FileNotFoundError as error:
        raise EnsembleError(
            f"'{run}' has no {Path(error.filename).name}: no finished run, or none with '{row}'."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, EnsembleError):
            raise
        raise EnsembleError(f"'{run}' is damaged: {error!r}.") from error
