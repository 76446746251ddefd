"""Classification or regression: settings, the bank's rows, and the assessment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Protocol

from ensembles.bank.posterior_bank import Experts, Table
from ensembles.evaluation.assessment import Assessment, assess
from ensembles.evaluation.trace_assessment import Processed, assess_traces
from ensembles.metrics import CCC, Array
from search.config import ConfigError, SearchConfig
from search.data.bank_tables import clip_table, trace_table
from search.data.training_data import TrainingData
from search.papers.published import PAPERS

Rungs = Iterable[tuple[str, Array]]
"""Modality and log-posteriors of every trial at every rung."""

Progress = Callable[[int, int], None]
"""Called with how many of how many candidates are done."""


class Task(Protocol):
    """Classification or regression; training has its own part of it (`search.training.task`)."""

    def completed(self, config: SearchConfig, data: TrainingData, given: set[str]) -> SearchConfig:
        """Return the settings as this target needs them.

        Raises:
            ConfigError: A setting, or a protocol, of the other task.
        """

    def bank_table(self, data: TrainingData) -> Table:
        """Return the rows of the run's bank."""

    def assess(
        self, experts: Experts, metric: str, *, rungs: Rungs, on_progress: Progress
    ) -> tuple[Assessment, Processed | None]:
        """Score every fusion of the experts, and the headline's post-processing, where there is one."""


def task_of(data: TrainingData) -> Task:
    """Return the task that the corpus's target makes."""
    return Classification() if data.traces is None else Regression()


class Classification:
    """Classes: posteriors of clips."""

    def completed(self, config: SearchConfig, data: TrainingData, given: set[str]) -> SearchConfig:
        """Refuse the concordance."""
        if config.metric == CCC:
            raise ConfigError("metric ccc is of traces and numbers, not of classes (--target).")
        return config

    def bank_table(self, data: TrainingData) -> Table:
        """Return one row a clip."""
        return clip_table(data)

    def assess(
        self, experts: Experts, metric: str, *, rungs: Rungs, on_progress: Progress
    ) -> tuple[Assessment, Processed | None]:
        """Score every fusion by the run's metric."""
        return assess(experts, metric, rungs=rungs, on_progress=on_progress), None


class Regression:
    """Values of clips, or of every step of recordings, by concordance."""

    def completed(self, config: SearchConfig, data: TrainingData, given: set[str]) -> SearchConfig:
        """Set the metric to the concordance; refuse what is of classes alone."""
        if "metric" in given and config.metric != CCC:
            raise ConfigError(f"metric {config.metric} is of classes; traces and numbers have ccc.")
        _refuse_settings_of_classes(config)
        folds = data.folds
        if folds.leak:
            raise ConfigError("--protocol random is for classes alone.")
        if folds.test_speakers:
            raise ConfigError(
                f"Protocol {folds.protocol} has test speakers, which are scored of classes alone. "
                "Take --protocol speaker-kfold:5."
            )
        return replace(config, metric=CCC)

    def bank_table(self, data: TrainingData) -> Table:
        """Return one row a step, recording behind recording; of values, one a clip."""
        return trace_table(data)

    def assess(
        self, experts: Experts, metric: str, *, rungs: Rungs, on_progress: Progress
    ) -> tuple[Assessment, Processed | None]:
        """Score every fusion by concordance, and post-process the headline."""
        return assess_traces(experts, rungs=rungs, on_progress=on_progress)


def _refuse_settings_of_classes(config: SearchConfig) -> None:
    of_classes = (
        "classes",
        "soft_labels",
        "objective",
        "outer",
        "enrolment",
        "test_speakers",
        "test_corpus",
        "reproduce",
    )
    usual = {f.name: f.default for f in fields(SearchConfig)}
    if config.reproduce and PAPERS[config.reproduce].metric == CCC:
        usual["reproduce"] = config.reproduce
    if changed := [name for name in of_classes if getattr(config, name) != usual[name]]:
        raise ConfigError(f"{changed[0]} is for classes, not for traces and numbers: leave it out.")
    if config.workers_per_trial > 1:
        raise ConfigError(
            "workers_per_trial must be 1 for traces and numbers: a recording's windows lie in "
            "several shards, and the targets of one reach into the next."
        )
