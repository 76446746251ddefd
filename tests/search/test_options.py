"""Options together: runs in which every pair of their values occurs, each looked at from outside."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from optuna.trial import TrialState
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from datasets.corpora.synthetic import load_synthetic
from datasets.join import join, read_part
from datasets.sharding.index import read_index, write_index
from ensembles.bank.posterior_bank import PosteriorBank
from ensembles.metrics import log_softmax
from search.config import SearchConfig
from search.data.corpus import load_corpus
from search.training.cross_validation import LockstepTrial
from search.trial_config import TrialConfig
from search.tuning.objective import GAIN_WEIGHT, EnsembleObjective
from search.tuning.study import open_journal
from tests.search.here import one_thread, search_here
from tests.tiny import make_tiny_shards

TRIALS, SEED = 8, 7
"""Four a modality: as many as the objective of the ensemble needs before it counts."""


class Options(NamedTuple):
    preset: str
    split: str
    metric: str
    objective: str
    enrolment: str
    soft_labels: bool
    classes: str
    keep_weights: str
    confirm_seeds: str
    precision: str


FOUR = "neutral,happy,sad,angry"
RUNS = [
    Options("quick", "speaker", "uar", "ensemble", "", False, "", "all", "1", "auto"),
    Options("quick", "corpus", "macro_f1", "solo", "", False, FOUR, "chosen", "", "bfloat16"),
    Options("quick", "corpus-out", "log_loss", "ensemble", "1", True, "", "chosen", "", "bfloat16"),
    Options("standard", "speaker", "macro_f1", "solo", "1", True, "", "chosen", "1", "bfloat16"),
    Options("standard", "corpus", "log_loss", "ensemble", "", False, "", "all", "1", "auto"),
    Options("standard", "corpus-out", "uar", "solo", "", True, FOUR, "all", "", "bfloat16"),
    Options("thorough", "speaker", "log_loss", "solo", "", True, FOUR, "all", "", "bfloat16"),
    Options("thorough", "corpus", "uar", "solo", "1", True, "", "chosen", "", "auto"),
    Options("thorough", "corpus-out", "macro_f1", "ensemble", "1", False, FOUR, "all", "1", "auto"),
]
SPLITS = {
    "speaker": ["--test-speakers", "two:speaker_04", "--protocol", "speaker-kfold:3"],
    "corpus": ["--test-corpus", "two", "--protocol", "speaker-kfold:2"],
    "corpus-out": ["--protocol", "corpus-out"],
}
SEEDS_OF_PRESET = {"quick": 0, "standard": 3, "thorough": 3}
SCORES = {
    "uar": lambda labels, chances: balanced_accuracy_score(labels, chances.argmax(axis=1)),
    "macro_f1": lambda labels, chances: f1_score(labels, chances.argmax(axis=1), average="macro"),
    "log_loss": lambda labels, chances: log_loss(
        labels, chances, labels=np.arange(chances.shape[1])
    ),
}


def test_every_pair_of_values_is_in_some_run() -> None:
    for one, other in combinations(range(len(Options._fields)), 2):
        met = {(run[one], run[other]) for run in RUNS}
        values = ({run[k] for run in RUNS} for k in (one, other))
        assert len(met) == np.prod([len(found) for found in values])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of three speakers and six emotions, joined, whose clips have votes."""
    home = tmp_path_factory.mktemp("joined")
    corpus = load_synthetic(home / "media", speakers=6, repetitions=1, seed=0)
    half = len(corpus.clips) // 2
    for name, clips in (("one", corpus.clips[:half]), ("two", corpus.clips[half:])):
        make_tiny_shards(replace(corpus, clips=clips), home / name, name)
    join([read_part(str(home / name)) for name in ("one", "two")], home / "both")
    index = read_index(home / "both")
    other = dict(zip(index.labels, (*index.labels[1:], index.labels[0]), strict=True))
    clips = [replace(e, votes={e.label: 0.6, other[e.label]: 0.4}) for e in index.clips]
    write_index(replace(index, clips=tuple(clips)), home / "both")
    return home / "both"


class Found(NamedTuple):
    """A finished run and what it was asked."""

    asked: Options
    path: Path
    summary: dict[str, Any]
    arguments: dict[str, Any]

    @property
    def bank(self) -> PosteriorBank:
        return PosteriorBank.open(self.path / "bank")

    def predictions(self, name: str) -> dict[str, list[dict[str, str]]]:
        """Seed → its lines."""
        by_seed: dict[str, list[dict[str, str]]] = {}
        with (self.path / name).open() as file:
            for line in csv.DictReader(file):
                by_seed.setdefault(line["seed"], []).append(line)
        return by_seed

    def score(self, lines: list[dict[str, str]]) -> float:
        classes = self.summary["classes"]
        labels = np.asarray([classes.index(line["label"]) for line in lines])
        chances = np.asarray([[float(line[label]) for label in classes] for line in lines])
        np.testing.assert_allclose(chances.sum(axis=1), 1.0, atol=1e-5)
        chances /= chances.sum(axis=1, keepdims=True)
        return float(SCORES[self.asked.metric](labels, chances))

    def score_of_folds(self, lines: list[dict[str, str]]) -> float:
        folds = {line["fold"] for line in lines}
        return float(np.mean([self.score([x for x in lines if x["fold"] == f]) for f in folds]))


@pytest.fixture(scope="module")
def run_once(
    shards: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Options], Found]:
    """Runs that were asked for, each searched once, in whatever order tests run."""

    @cache
    def search(asked: Options) -> Found:
        runs = tmp_path_factory.mktemp("runs")
        soft = f"--soft-labels={str(asked.soft_labels).lower()}"
        arguments: list[object] = [
            "--data", shards, *SPLITS[asked.split], "--preset", asked.preset,
            "--metric", asked.metric, "--objective", asked.objective, soft,
            "--keep-weights", asked.keep_weights, "--precision", asked.precision, "--seed", SEED,
            "--trials", TRIALS, "--epochs", 2, "--only", "functionals,action_units",
            "--page=false", "--name", "run", "--runs-dir", runs, "--cache-dir", cache_folder,
        ]  # fmt: skip
        for name in ("enrolment", "classes", "confirm_seeds"):
            if value := getattr(asked, name):
                arguments += [f"--{name.replace('_', '-')}", value]
        assert search_here(*arguments) == 0
        summary = json.loads((runs / "run" / "summary.json").read_text())
        where = {"data": str(shards), "cache_dir": str(cache_folder)}
        return Found(asked, runs / "run", summary, where)

    return search


@pytest.fixture(params=RUNS, ids=lambda run: "-".join(map(str, run[:4])))
def found(request: pytest.FixtureRequest, run_once: Callable[[Options], Found]) -> Found:
    return run_once(request.param)


def test_the_summary_is_of_what_was_asked(found: Found) -> None:
    asked, summary = found.asked, found.summary
    classes = asked.classes.split(",") if asked.classes else sorted(summary["classes"])
    assert sorted(summary["classes"]) == sorted(classes)
    assert len(classes) == (4 if asked.classes else 6)
    assert (summary["metric"], summary["preset"], summary["seed"]) == (
        asked.metric, asked.preset, SEED
    )  # fmt: skip
    assert sum(summary["trials"].values()) == TRIALS
    assert summary["trials"]["failed"] == summary["trials"]["unfinished"] == 0
    speakers = {"speaker": 5, "corpus": 3, "corpus-out": 6}[asked.split]
    assert summary["clips"] == speakers * len(classes)
    folds = {"speaker": 3, "corpus": 2, "corpus-out": 2}[asked.split]
    assert len(summary["headline"]["fused"]["fold_scores"]) == folds
    stored = yaml.safe_load((found.path / "config.yaml").read_text())
    assert (stored["objective"], stored["soft_labels"]) == (asked.objective, asked.soft_labels)


def test_scores_are_those_of_the_predictions_by_the_metric_that_was_asked(found: Found) -> None:
    asked, summary = found.asked, found.summary
    count = int(asked.confirm_seeds or SEEDS_OF_PRESET[asked.preset])
    fresh = [str(SEED + 1000 + n) for n in range(count)]
    by_seed = found.predictions("predictions.csv")
    assert list(by_seed) == [str(SEED), *fresh]
    assert sorted(summary["confirmed"]) == fresh
    for seed, lines in by_seed.items():
        row = summary["confirmed"].get(seed, summary["headline"])["fused"]
        assert len({line["clip"] for line in lines}) == len(lines) == summary["clips"]
        assert found.score_of_folds(lines) == pytest.approx(row["honest_score"], abs=1e-4)
        assert {line["label"] for line in lines} == set(summary["classes"])


def test_who_is_apart_is_scored_once_and_in_no_fold(found: Found) -> None:
    asked, summary = found.asked, found.summary
    apart = {"speaker": ["two:speaker_04"], "corpus": [f"two:speaker_0{n}" for n in (3, 4, 5)]}
    if asked.split == "corpus-out":
        assert summary["test_speakers"] is None
        assert summary["fold_names"] == ["one", "two"]
        assert not (found.path / "predictions_test.csv").exists()
        return
    (lines,) = found.predictions("predictions_test.csv").values()
    assert sorted({line["speaker"] for line in lines}) == apart[asked.split]
    assert {line["fold"] for line in lines} == {"-1"}
    told = summary["test_speakers"]
    assert told["speakers"] == apart[asked.split]
    assert told["score"] == pytest.approx(found.score(lines), abs=1e-4)
    (own,) = (lines for seed, lines in found.predictions("predictions.csv").items() if seed == "7")
    assert not {line["speaker"] for line in own} & set(apart[asked.split])


def test_enrolment_is_scored_where_it_was_asked_for(found: Found) -> None:
    told = found.summary["enrolment"]
    if not found.asked.enrolment:
        assert told == {}
        return
    assert list(told) == ["0", "1"]
    experts = {name for row in told["1"]["per_fold"] for name in row["experts"]}
    assert told["1"]["per_fold"] == found.summary["headline"]["fused"]["per_fold"]
    entries = {row.name: row for row in found.bank.read() if row.percent == 100}
    assert {name for name in entries if "+enrol" in name} == {f"{n}+enrol1" for n in experts}
    for name in experts:
        normalised, plain = entries[f"{name}+enrol1"].logits, entries[name].logits
        assert np.nanmax(np.abs(normalised - plain)) > 1e-3


def test_networks_are_kept_as_asked(found: Found) -> None:
    summary = found.summary
    kept = {path.name for path in (found.path / "weights").iterdir()}
    # The best of each modality take over where a clip lacks an input.
    rows = [summary["headline"][name] for name in ("fused", "audio", "video")]
    parts = [part for row in rows for part in (row, *row["per_fold"])]
    needed = {name for part in parts for name in part["experts"]}
    every = set(summary["experts"])
    assert kept == (every if found.asked.keep_weights == "all" else needed)
    assert summary["weights"]["kept"] == found.asked.keep_weights
    assert summary["weights"]["experts"] == len(kept)


def test_a_trial_trained_what_was_asked(found: Found) -> None:
    """Trained again by hand, on the corpus as it was asked for, it gives the same logits."""
    asked = found.asked
    options: dict[str, Any] = {"soft_labels": asked.soft_labels, "classes": asked.classes or None}
    words = iter(SPLITS[asked.split])
    options |= {name[2:].replace("-", "_"): value for name, value in zip(words, words, strict=True)}
    data = load_corpus(SearchConfig(**found.arguments, **options), Console(quiet=True))
    plan = json.loads((found.path / "logs" / "audio-0000.log").read_text().splitlines()[1])
    settings = TrialConfig.from_json(plan)
    assert settings.training.epochs == 2
    train = partial(LockstepTrial, settings, data, seed=SEED, precision=asked.precision)
    with one_thread():
        *_, last = train().run()
    entry = found.bank.find("audio-0000", 100)
    assert entry is not None
    np.testing.assert_array_equal(entry.logits, last.logits)
    assert np.isnan(entry.logits).any() == (asked.split != "corpus-out")


def test_thorough_searches_all_of_the_training_and_others_its_core(found: Found) -> None:
    keys = {key for trial in _trials(found) for key in trial.params}
    searched = {key.partition("@")[0].rpartition(".")[2] for key in keys}
    assert ("focal_gamma" in searched) == (found.asked.preset == "thorough")
    assert "learning_rate" in searched


def test_what_the_search_is_told_of_a_trial_is_its_score_and_what_the_ensemble_gains(
    found: Found,
) -> None:
    """In the order in which trials finished; after three of each modality gains count."""
    objective = EnsembleObjective(found.bank, found.asked.metric)
    finished: dict[str, dict[int, float]] = {"audio": {}, "video": {}}
    counted = 0
    for trial in sorted(_trials(found), key=lambda trial: trial.datetime_complete):
        if trial.state != TrialState.COMPLETE:
            continue
        side = "audio" if trial.user_attrs["architecture"] == "functionals" else "video"
        own = trial.intermediate_values[100]
        assert own == pytest.approx(_score_of(found, f"{side}-{trial.number:04d}"))
        gain = GAIN_WEIGHT * objective.gain(side, trial.number, finished)
        counted += min(map(len, finished.values())) >= 3
        expected = own + gain if found.asked.objective == "ensemble" else own
        assert trial.value == pytest.approx(expected)
        finished[side][trial.number] = own
    assert counted or found.summary["trials"]["pruned"]


def _score_of(found: Found, name: str) -> float:
    """A trial's own, from its posteriors; more is better."""
    entry, table = found.bank.find(name, 100), found.bank.table
    assert entry is not None
    chances = np.exp(log_softmax(entry.logits.astype(np.float64)))
    score = SCORES[found.asked.metric]
    folds = [table.folds == fold for fold in range(table.folds.max() + 1)]
    mean = float(np.mean([score(table.labels[rows], chances[rows]) for rows in folds]))
    return -mean if found.asked.metric == "log_loss" else mean


def _trials(found: Found) -> list[Any]:
    """Of all modalities, from the journal."""
    storage = open_journal(found.path / "journal.log")
    return [
        trial
        for study in storage.get_all_studies()
        for trial in storage.get_all_trials(study._study_id)
        if trial.state.is_finished()
    ]
