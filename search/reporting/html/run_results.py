"""Read a run's results from its folder alone; nothing is trained or scored again."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ensembles import EnsembleError
from ensembles.bank.posterior_bank import MODALITIES
from ensembles.bank.run_format import RUN_FORMAT, refusal
from ensembles.metrics import Metric, get_metric
from search.reporting.predictions import RunPredictions, predictions_of_run

_NEEDED = ("corpus", "classes", "clips", "speakers", "protocol", "metric", "headline", "fusions")
_ENDS = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}


class LeftOut(Exception):
    """Why a figure is not there, as a sentence for the reader."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, as the journal tells it.

    Attributes:
        name: `MODALITY-NUMBER`.
        architecture: Or the fusion, of an early one.
        ended: finished, stopped early, failed or unfinished.
        rungs: Percent of the schedule → score; more is better.
        settings: Name without the architecture's → value.
        domains: Name → what it was drawn from.
        started: Seconds since the epoch.
        seconds: From start to end; None while it is under way.
        failed: Why it did.
    """

    name: str
    modality: str
    architecture: str
    ended: str
    rungs: dict[int, float]
    settings: dict[str, Any]
    domains: dict[str, BaseDistribution]
    started: float | None = None
    seconds: float | None = None
    failed: str = ""

    @property
    def score(self) -> float | None:
        """Return the score at the end of its schedule."""
        return self.rungs.get(100) if self.ended == "finished" else None


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that a page is made of.

    Attributes:
        run: The folder.
        summary: `summary.json`.
        leaderboard: The rows of `leaderboard.csv`.
        trials: Of all modalities, in the order of their names.
        predictions: fused, audio, video, early → held-out posteriors.
        missing: File → why it says nothing.
    """

    run: Path
    summary: dict[str, Any]
    leaderboard: list[dict[str, str]]
    trials: tuple[TrialRecord, ...]
    predictions: dict[str, RunPredictions]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """Return the metric that was searched for."""
        return get_metric(str(self.summary["metric"]))

    @property
    def modalities(self) -> list[str]:
        """Those that have an expert."""
        return [name for name in MODALITIES if name in self.summary["headline"]]

    def of_rung(self, utility: float) -> float:
        """A journal's utility as a score on the scale that is printed."""
        return self.metric.scaled(self.metric.sign * utility)

    def of_modality(self, modality: str) -> list[TrialRecord]:
        """Its trials.

        Raises:
            LeftOut: None is known.
        """
        if "journal.log" in self.missing:
            raise LeftOut(self.missing["journal.log"])
        found = [trial for trial in self.trials if trial.modality == modality]
        if not found:
            raise LeftOut(f"No trial of {modality} was started.")
        return found

    def detail(self, row: str) -> dict[str, Any]:
        """Return the summary's details of one row from every side.

        Raises:
            LeftOut: It says nothing of it.
        """
        found = self.summary.get("detail", {}).get(row)
        if not found:
            raise LeftOut(f"The run's summary has no details of {row}.")
        return dict(found)


def read_evidence(run: Path) -> Evidence:
    """Reads a run's folder.

    Raises:
        EnsembleError: It has no summary, or one that is damaged or of another version.
    """
    summary = _read_summary(run)
    missing: dict[str, str] = {}
    predictions = {}
    for row in ("fused", *MODALITIES):
        try:
            if "traces" not in summary and (row == "fused" or row in summary["headline"]):
                predictions[row] = predictions_of_run(run, row)
        except EnsembleError as error:
            missing[f"predictions of {row}"] = str(error)
    try:
        with (run / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
            leaderboard = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        leaderboard, missing["leaderboard.csv"] = [], f"leaderboard.csv cannot be read: {error}."
    trials: tuple[TrialRecord, ...] = ()
    try:
        trials = read_trials(run / "journal.log")
    except EnsembleError as error:
        missing["journal.log"] = str(error)
    return Evidence(run, summary, leaderboard, trials, predictions, missing)


def _read_summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    try:
        summary = json.loads(path.read_bytes())
        version = summary["format_version"]
        lacking = [key for key in _NEEDED if key not in summary]
        if version == RUN_FORMAT and (lacking or "fused" not in summary["headline"]):
            raise ValueError(f"no {', '.join(lacking) or 'headline of fused'}")
    except FileNotFoundError:
        raise EnsembleError(
            f"'{run}' has no summary.json: no run, or none that has come to its results."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnsembleError(f"'{path}' is damaged: {error!r}.") from error
    if version != RUN_FORMAT:
        raise EnsembleError(refusal(run, version))
    return dict(summary)


def read_trials(journal: Path) -> tuple[TrialRecord, ...]:
    """Every trial that was handed out.

    Raises:
        EnsembleError: There is no journal, or it cannot be read.
    """
    if not journal.is_file():  # opening it would make one
        raise EnsembleError("The run's folder has no journal.log, so nothing is known of trials.")
    try:
        # Not by `search.tuning.searcher`, which takes Ray's import to read a file.
        storage = JournalStorage(JournalFileBackend(str(journal)))
        found = [
            _record(name, trial)
            for name in optuna.get_all_study_names(storage)
            for trial in optuna.load_study(study_name=name, storage=storage).get_trials(
                deepcopy=False
            )
            if trial.state != TrialState.WAITING
        ]
    except Exception as error:  # a journal with lines of something else fails in many ways
        raise EnsembleError(f"journal.log cannot be read: {error!r}.") from error
    return tuple(found)


def _record(modality: str, trial: FrozenTrial) -> TrialRecord:
    chosen = next((p for p in trial.params if p.partition("@")[0] == "architecture"), "")
    name = str(trial.params.get(chosen, "unknown"))
    short = {p: p.removeprefix(f"{name}.") for p in trial.params if p != chosen}
    seconds = trial.duration.total_seconds() if trial.duration else None
    return TrialRecord(
        name=f"{modality}-{trial.number:04d}",
        modality=modality,
        architecture=name,
        ended=_ENDS[trial.state],
        # A value that is no number would end a rank or a scale.
        rungs={int(p): v for p, v in sorted(trial.intermediate_values.items()) if v == v},
        settings={short[p]: v for p, v in trial.params.items() if p != chosen},
        domains={short[p]: d for p, d in trial.distributions.items() if p != chosen},
        started=trial.datetime_start.timestamp() if trial.datetime_start else None,
        seconds=seconds,
        failed=str(trial.user_attrs.get("failed", "")),
    )


def quiet_optuna() -> None:
    """Its notes of every study are for those who start one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
