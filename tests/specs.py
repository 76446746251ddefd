"""Specifications of trials for tests: everything has a plain default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from search.trial_config import TrialConfig
from search.trial_spec import CorpusSpec, RunContext, TrialSpec

NO_CORPUS = CorpusSpec(
    place="", checksum="", classes=(), target="emotion", protocol="", test_speakers=(), folds="",
    skip_corrupt=False, soft_labels=False, cache_folder=None, cache_gb=1.0, weights=None,
)  # fmt: skip


def context_of(
    run: str | Path = "/runs/mine", corpus: CorpusSpec = NO_CORPUS, **changes: Any
) -> RunContext:
    """Trials of a run on the CPU, one worker each."""
    usual = {
        "metric": "accuracy", "seed": 0, "device": "cpu", "precision": "auto", "runner": "actor",
        "workers_per_trial": 1, "gpu_share": {},
    }  # fmt: skip
    return RunContext(run=str(run), corpus=corpus, **{**usual, **changes})


def spec_of(
    trial: str = "audio-0003",
    plan: TrialConfig | None = None,
    context: RunContext | None = None,
    **changes: Any,
) -> TrialSpec:
    """A trial, of the modality that its name begins with."""
    return TrialSpec(
        trial=trial,
        modality=trial.rpartition("-")[0],
        plan=plan or TrialConfig("functionals"),
        context=context or context_of(),
        **changes,
    )
