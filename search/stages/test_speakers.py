"""Score the test speakers, who are in no fold: once, at the end, with the averaged ensemble."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ensembles import EnsembleError
from ensembles.artifact.fitted_ensemble import Fused
from ensembles.artifact.fold_networks import FoldedExpert, average_folds, load_folded
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import Assessment
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.exporting.fit_fusion import Chooser
from ensembles.metrics import Array, get_metric
from search.data.bank_tables import clip_table, people
from search.data.training_data import TrainingData
from search.persistence.run_folder import RunFolder
from search.stages.findings import HeldOutScore
from search.stages.session import Session

LOG_NAME = "test-speakers.jsonl"
_BATCH_CLIPS = 64


def score_test_speakers(session: Session) -> None:
    """Predict the test speakers' clips once, unless the run was interrupted."""
    if session.interrupt.asked:
        return
    found = session.found
    try:
        found.unseen = score_unseen(session.run, session.data, found.experts, found.assessment)
    except EnsembleError as error:  # weights that an earlier end of this run did not keep
        console = Console(stderr=True)
        console.print(f"warning: test speakers were not scored: {error}", highlight=False)


def score_unseen(
    run: RunFolder, data: TrainingData, experts: Experts, assessment: Assessment
) -> HeldOutScore | None:
    """Predict the test speakers' clips with the ensemble that an export holds.

    Returns:
        None without test speakers.
    """
    rows = data.folds.unseen_rows
    rows = rows[~data.cache.missing[rows]]
    if not len(rows):
        return None
    fused = Chooser(CrossFitter(experts, assessment.metric)).fit(assessment.chosen)
    each = {
        name: _predict(load_folded(run.path / "weights" / name), data, rows)
        for name in fused.experts
    }
    log_posteriors = fused.apply(each)
    table = clip_table(data).take(rows)
    touches = _touch(run, data, fused, log_posteriors)
    value = get_metric(assessment.metric).score(table.labels, log_posteriors)
    return HeldOutScore(table, log_posteriors, value, touches, people(data.index))


def _predict(expert: FoldedExpert, data: TrainingData, rows: np.ndarray[Any, Any]) -> Array:
    """(n, K) log-posteriors of an expert's averaged fold networks."""
    out = []
    network = expert.network(0)
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH_CLIPS):
            fixed = data.front_ends.inputs(network, rows[start : start + _BATCH_CLIPS])
            out.append(average_folds(expert.answer(fixed)).double().numpy())
    return np.concatenate(out)


def _touch(run: RunFolder, data: TrainingData, fused: Fused, log_posteriors: Array) -> int:
    """Notes this look outside the run's folder, and counts earlier ones by other ensembles."""
    log = run.beside
    path = log.path / LOG_NAME
    log.fetch(LOG_NAME)
    look = {
        "data_checksum": data.cache.index.checksum,
        "protocol": data.folds.protocol,
        "speakers": list(data.folds.test_speakers),
        "run": run.path.name,
        "experts": list(fused.experts),
        "recipe": fused.recipe,
        "predictions": hashlib.sha256(log_posteriors.round(4).tobytes()).hexdigest(),
    }
    earlier = _read(path)
    again = [known for known in earlier if {**known, "when": None} == {**look, "when": None}]
    if not again:
        with path.open("a", encoding="utf-8") as file:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(json.dumps({**look, "when": now}) + "\n")
        log.send(LOG_NAME)
    return sum(
        known["data_checksum"] == look["data_checksum"]
        and known["protocol"] == look["protocol"]
        and bool(set(known["speakers"]) & set(data.folds.test_speakers))
        and known not in again
        for known in earlier
    )


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    looks = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            known = json.loads(line)
        except ValueError:  # half a line, of a process that was killed
            continue
        if isinstance(known, dict) and {"data_checksum", "protocol", "speakers"} <= known.keys():
            looks.append(known)
    return looks
