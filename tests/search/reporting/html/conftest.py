"""Runs as a search leaves them, of invented trials: nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import Assessment, Scored, scored
from ensembles.evaluation.bias_correction import Corrected
from ensembles.metrics import log_softmax
from search.reporting.results import write_reports
from search.tuning.study import open_journal

RATE = FloatDistribution(1e-4, 1e-2, log=True)
SETTINGS = {
    "learning_rate": RATE,
    "dropout": FloatDistribution(0.1, 0.6),
    "mixup": CategoricalDistribution((0.0, 0.2, 0.4)),
    "optimizer": CategoricalDistribution(("adamw", "sgd_nesterov")),
}
ARCHITECTURES = {
    "audio": ("functionals", "logmel_resnet"),
    "video": ("action_units",),
    "early": ("gated",),
}


def make_run(
    folder: Path,
    *,
    corpus: str = "invented",
    classes: tuple[str, ...] = ("anger", "joy", "sadness"),
    modalities: tuple[str, ...] = ("audio", "video", "early"),
    trials: int = 14,
    stops: bool = True,
    speakers: int = 12,
    metric: str = "accuracy",
    failure: str = "out of memory",
    **facts: Any,
) -> Path:
    """Writes config, journal and results into a folder."""
    folder.mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    generator = np.random.default_rng(0)
    for modality in modalities:
        _write_trials(folder, modality, trials, stops, failure, generator)
    kinds = tuple(kind for kind in modalities for _ in range(2))
    experts = _experts(classes, kinds, speakers, generator)
    assessment = _assessment(experts, metric)
    fresh = _experts(classes, kinds, speakers, np.random.default_rng(1))
    confirmed = {1000: {"fused": _assessment(fresh, metric).fused}}
    write_reports(
        folder, assessment, confirmed, {**_facts(corpus, speakers, modalities, failure), **facts}
    )
    settings = {
        "format_version": 2,
        "data": "some shards",
        "preset": "quick",
        "seed": 0,
        "name": folder.name,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def _assessment(experts: Experts, metric: str) -> Assessment:
    """As `assess` gives it, with two recipes instead of sixty."""
    table, posteriors = experts.table, experts.log_posteriors

    def row(name: str, members: list[int], corrected: bool) -> Scored:
        mean = log_softmax(posteriors[members].mean(axis=0))
        names = tuple(experts.names[member] for member in members)
        found = scored(name, table, metric, mean, 0.875, names, ())
        return replace(found, corrected=Corrected(0.7, 0.625, 0.75, 9) if corrected else None)

    of = {
        kind: [m for m, k in enumerate(experts.modalities) if k == kind]
        for kind in experts.modalities
    }
    everyone = list(range(len(experts.names)))
    singles = [row(f"best {kind}", members[:1], True) for kind, members in of.items()]
    recipes = (*singles, row("average", everyone, False))
    alone = {kind: row(f"{kind} alone", members, True) for kind, members in of.items()}
    return Assessment(metric, table, recipes, row("fused", everyone, True), "average", alone)


def _facts(corpus: str, speakers: int, modalities: tuple[str, ...], failure: str) -> dict[str, Any]:
    names = [f"s{number:02d}" for number in range(speakers)]
    return {
        "corpus": corpus,
        "protocol": "speaker-kfold:3",
        "seed": 0,
        "device": "cpu",
        "command": "python -m search.run --preset quick",
        "commit": "0123456789ab",
        "versions": {"python": "3.11.0", "torch": "2.14.0"},
        "machine": "x86_64, Linux",
        "trials": {"complete": 9, "pruned": 3, "failed": 1, "unfinished": 0},
        "failures": {f"{modalities[0]}-0005": failure} if failure else {},
        "seconds": {"search": 100.0, "total": 140.0},
        "weights": {"experts": 4, "bytes": 0},
        "enrolment": {},
        "test_speakers": {"speakers": ["x", "y"], "clips": 20, "score": 0.625, "scored_before": 2},
        "held_out": ["x", "y"],
        "people": {"gender": {name: ("male", "female")[n % 2] for n, name in enumerate(names)}},
        "scope": {
            "single": {"audio": ["functionals"]},
            "fusions": [],
            "why_not": {"cnn14": "too slow"},
        },
    }


def _experts(
    classes: tuple[str, ...], kinds: tuple[str, ...], speakers: int, generator: np.random.Generator
) -> Experts:
    per_speaker = 3 * len(classes)
    speaker = np.repeat(np.arange(speakers), per_speaker)
    count = len(speaker)
    labels = (np.arange(count) % len(classes)).astype(np.int64)
    logits = generator.normal(size=(len(kinds), count, len(classes)))
    logits[:, np.arange(count), labels] += np.linspace(0.4, 2.0, len(classes))[labels]
    table = ClipTable(
        clips=tuple(f"clip{number}" for number in range(count)),
        speakers=tuple(f"s{number:02d}" for number in speaker),
        folds=(speaker % 3).astype(np.int64),
        labels=labels,
        classes=classes,
    )
    names = tuple(f"{kind}-{number:04d}" for number, kind in enumerate(kinds))
    return Experts(table, names, kinds, log_softmax(logits))


def _write_trials(
    folder: Path, modality: str, trials: int, stops: bool, failure: str, generator: Any
) -> None:
    study = optuna.create_study(
        study_name=modality, direction="maximize", storage=open_journal(folder / "journal.log")
    )
    offered = CategoricalDistribution(ARCHITECTURES[modality])
    for number in range(trials):
        name = ARCHITECTURES[modality][number % 5 == 4 and modality == "audio"]
        params: dict[str, Any] = {"architecture": name}
        domains: dict[str, Any] = {"architecture": offered}
        for setting, domain in SETTINGS.items():
            domains[f"{name}.{setting}"] = domain
            params[f"{name}.{setting}"] = (
                generator.choice(domain.choices).item()
                if isinstance(domain, CategoricalDistribution)
                else domain.low * (domain.high / domain.low) ** generator.random()
            )
        rate = np.log10(params[f"{name}.learning_rate"])
        score = 0.6 - 0.1 * (rate + 3) ** 2 - 0.1 * params[f"{name}.dropout"]
        rungs = {
            p: score - 0.2 * (1 - p / 100) + 0.01 * generator.normal() for p in (25, 50, 75, 100)
        }
        state = TrialState.COMPLETE
        if failure and number == 5 and modality != "early":
            state, rungs = TrialState.FAIL, {25: rungs[25]}
        elif stops and number % 4 == 3:
            state, rungs = TrialState.PRUNED, {25: rungs[25], 50: rungs[50]}
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=rungs[100] if state == TrialState.COMPLETE else None,
                params=params,
                distributions=domains,
                intermediate_values=rungs,
                user_attrs={"failed": failure} if state == TrialState.FAIL else {},
            )
        )


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "whole")
