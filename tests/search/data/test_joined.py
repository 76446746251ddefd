"""Corpora that were joined: trained on some and scored on another, with the scores of each, without Ray."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console

from datasets.clips import DataError
from datasets.corpora.label_maps import parse_map
from datasets.join import join, read_part
from datasets.prepare import main as prepare_main
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts, PosteriorBank
from ensembles.evaluation.assessment import Assessment, assess
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.writer import export
from search.config import ConfigError, SearchConfig
from search.data.corpus import corpus_spec, load_corpus
from search.data.training_data import TrainingData
from search.execution.trial_process import open_data, train
from search.persistence.run_folder import RunFolder, new_run
from search.report import draw_report
from search.reporting.html.run_results import read_evidence
from search.reporting.html.tables import markdown
from search.reporting.results import write_reports
from search.reporting.terminal import print_report
from search.space.eligibility import refuse_known_speakers
from search.stages.findings import Findings, HeldOutScore
from search.stages.results import summary_of
from search.stages.setup import new_record, run_context
from search.stages.task import Regression, task_of
from search.stages.test_speakers import score_unseen
from search.training.distributed import Workers
from search.trial_config import TrialConfig
from tests.corpora import write_crema_d, write_ravdess
from tests.specs import spec_of


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RAVDESS- and CREMA-D-like trees of five actors each, in the common four emotions: 40 clips."""
    home = tmp_path_factory.mktemp("joined")
    trees = {
        "ravdess": write_ravdess(home / "media" / "ravdess"),
        "crema_d": write_crema_d(home / "media" / "crema_d"),
    }
    for corpus, root in trees.items():
        assert prepare_main([corpus, "--root", str(root), "--out", str(home / corpus)]) == 0
    parts = [read_part(str(home / corpus)) for corpus in trees]
    join(parts, home / "both", parse_map("common4"))
    return home / "both"


@dataclass(frozen=True)
class Searched:
    """What a search of two trials leaves."""

    folder: RunFolder
    data: TrainingData
    experts: Experts
    assessment: Assessment
    unseen: HeldOutScore | None
    facts: dict[str, Any]
    out: str


def search(shards: Path, home: Path, **options: Any) -> Searched:
    """Two small networks, fused, scored and reported."""
    config = SearchConfig(
        data=str(shards),
        only="functionals",
        name="joined",
        runs_dir=str(home / "runs"),
        cache_dir=str(home / "cache"),
        device="cpu",
        **options,
    )
    console = Console(quiet=True)
    data = load_corpus(config, console)
    record = new_record(config, data, console, None)
    run = new_run(config, data.index.corpus)
    bank = PosteriorBank.create(run.path / "bank", task_of(data).bank_table(data))
    for number in range(2):
        plan = TrialConfig.of("functionals", {}, {"epochs": 12 + number, "batch_size": 8})
        spec = spec_of(f"audio-{number:04d}", plan, run_context(run, data, record))
        assert list(train(spec))[-1]["percent"] == 100
    experts = bank.experts(entry for entry in bank.read() if entry.percent == 100)
    assessment = assess(experts, config.metric)
    unseen = score_unseen(run, data, experts, assessment)
    trials = {"complete": 2, "pruned": 0, "failed": 0, "unfinished": 0}
    record = replace(record, searched_before=1.0, seconds_before=1.0)
    found = Findings(
        experts=experts,
        assessment=assessment,
        searched=1.0,
        trials=trials,
        failures={},
        unseen=unseen,
    )
    report = summary_of(run, record, found)
    write_reports(run.path, assessment, {}, report)
    run.write_record(record)
    draw_report(run.path, console)
    shown = Console(record=True, width=160, file=io.StringIO())
    print_report(shown, run.path, assessment, {}, report)
    return Searched(run, data, experts, assessment, unseen, report, shown.export_text())


@pytest.fixture(scope="module")
def tested(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Trained on RAVDESS, tested on CREMA-D."""
    return search(shards, tmp_path_factory.mktemp("tested"), test_corpus="crema_d")


@pytest.fixture(scope="module")
def in_turn(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Each corpus by networks trained on the other."""
    return search(shards, tmp_path_factory.mktemp("in_turn"), protocol="corpus-out", metric="uar")


def corpora(data: TrainingData, rows: Any) -> set[str]:
    return {data.index.clips[row].attributes["corpus"] for row in rows}


def test_no_network_is_trained_on_or_chosen_by_the_test_corpus(tested: Searched) -> None:
    data = tested.data
    assert (data.folds.protocol, data.folds.count) == ("ravdess-luna5", 5)
    for fold in range(5):
        assert corpora(data, data.rows(fold, training=True)) == {"ravdess"}
        assert corpora(data, data.rows(fold, training=False)) == {"ravdess"}
    assert {who.partition(":")[0] for who in tested.experts.table.speakers} == {"ravdess"}
    assert corpora(data, data.folds.unseen_rows) == {"crema_d"}


def test_workers_split_a_joined_corpus_as_the_driver_does(tested: Searched) -> None:
    corpus = corpus_spec(tested.folder.config, tested.data)
    opened = open_data(corpus, Workers())
    assert opened.folds.fingerprint == tested.data.folds.fingerprint
    assert opened.folds.fold_of_clip.tolist() == tested.data.folds.fold_of_clip.tolist()


def test_the_test_corpus_is_scored_once_at_the_end(tested: Searched) -> None:
    unseen = tested.unseen
    assert unseen is not None
    table = unseen.table
    assert isinstance(table, ClipTable)
    assert len(table.clips) == 20
    right = unseen.log_posteriors.argmax(axis=1) == table.labels
    assert unseen.score == pytest.approx(right.mean())
    assert 0.25 < unseen.score < 1.0, "some tones are alike, guessing gives 0.25"
    summary = json.loads((tested.folder.path / "summary.json").read_text())
    assert summary["test_corpus"] == "crema_d"
    found = summary["test_speakers"]
    assert found["speakers"] == [f"crema_d:{number}" for number in range(1001, 1006)]
    assert found["metrics"]["accuracy"] == found["score"]
    assert "corpus" not in found["groups"], "there is one alone"
    assert "corpus" not in summary["detail"]["fused"]["groups"]
    line = f"Test corpus crema_d (in no fold): {100 * unseen.score:.1f} by the averaged ensemble on 20 clips of"
    assert f"{line} 5 speakers; accuracy" in tested.out
    assert "1001" not in tested.out, "ninety actors would be too many to name"
    assert f"test corpus crema\\_d | {100 * unseen.score:.1f}" in markdown(
        read_evidence(tested.folder.path)
    )
    page = (tested.folder.path / "report.html").read_text()
    assert "test corpus crema_d" in page
    assert "could not be drawn" not in page


def test_the_model_card_says_what_the_other_corpus_said(tested: Searched, tmp_path: Path) -> None:
    export(read_run(tested.folder.path), tmp_path / "out")
    card = (tmp_path / "out" / "model-card.md").read_text()
    assert tested.unseen is not None
    assert (
        "On another corpus, crema_d (5 speakers in no fold, 20 clips), it scores "
        f"{100 * tested.unseen.score:.1f} % accuracy."
    ) in card


def test_each_corpus_has_a_score_of_its_own(in_turn: Searched, tmp_path: Path) -> None:
    run = in_turn.folder.path
    summary = json.loads((run / "summary.json").read_text())
    assert summary["fold_names"] == ["crema_d", "ravdess"]
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    recall: dict[str, dict[str, list[bool]]] = {"crema_d": {}, "ravdess": {}}
    for row in rows:
        guess = max(summary["classes"], key=lambda label: float(row[label]))
        corpus = row["speaker"].partition(":")[0]
        recall[corpus].setdefault(row["label"], []).append(guess == row["label"])
        assert summary["fold_names"][int(row["fold"])] == corpus
    uar = {c: float(np.mean([np.mean(v) for v in of.values()])) for c, of in recall.items()}
    assert uar["crema_d"] != pytest.approx(uar["ravdess"]), "else they might be exchanged"
    fused = summary["headline"]["fused"]
    assert fused["fold_scores"] == pytest.approx([uar["crema_d"], uar["ravdess"]])
    groups = summary["detail"]["fused"]["groups"]["corpus"]
    assert groups == pytest.approx(uar), "as many of each class"
    each = ", ".join(f"{name} {100 * uar[name]:.1f}" for name in summary["fold_names"])
    assert f"fused, uar on each corpus, by networks trained on the others: {each}" in in_turn.out
    table = markdown(read_evidence(run))
    assert f"| fused | on ravdess | {100 * uar['ravdess']:.1f} |" in table
    page = (run / "report.html").read_text()
    assert "on ravdess" in page
    assert "could not be drawn" not in page
    export(read_run(run), tmp_path / "out")
    card = (tmp_path / "out" / "model-card.md").read_text()
    said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in groups.items())
    assert f"Accuracy by corpus of the speaker: {said}." in card


def test_a_test_corpus_that_cannot_be_is_told(shards: Path, tmp_path: Path) -> None:
    def load(**options: Any) -> None:
        config = SearchConfig(data=str(shards), cache_dir=str(tmp_path), device="cpu", **options)
        load_corpus(config, Console(quiet=True))

    with pytest.raises(DataError, match=r"Unknown corpus 'iemocap'\. Known: crema_d, ravdess\."):
        load(test_corpus="iemocap")
    with pytest.raises(
        DataError, match="Protocol crema-d-speakers5 knows 1001 to 1091, not 'Actor_01'"
    ):
        load(test_corpus="crema_d", protocol="crema-d-speakers5")
    with pytest.raises(ConfigError, match=r"Give one of test_corpus \(a\) and test_speakers \(b\)"):
        SearchConfig(test_corpus="a", test_speakers="b")
    with pytest.raises(ConfigError, match="a search of their own: leave out test_corpus"):
        SearchConfig(test_corpus="a", outer=True)
    with pytest.raises(ConfigError, match="test_corpus is for classes, not for traces"):
        Regression().completed(SearchConfig(test_corpus="a"), cast(TrainingData, None), set())


@pytest.mark.parametrize(
    "known",
    [
        {"corpus": "ravdess", "speakers": ["Actor_02"]},
        {"corpus": "ravdess+iemocap", "speakers": ["iemocap:Ses01F", "ravdess:Actor_02"]},
        {"corpus": "ravdess+crema_d", "speakers": ["ravdess:Actor_02"]},
    ],
)
def test_a_backbone_that_met_a_speaker_in_their_own_corpus_is_refused(
    tested: Searched, known: dict[str, Any]
) -> None:
    index = tested.data.index

    def scope(trained_on: dict[str, Any]) -> Any:
        found = SimpleNamespace(file="x.safetensors", trained_on=[trained_on])
        return SimpleNamespace(transfers={"wavlm": SimpleNamespace(checkpoints=[found])})

    with pytest.raises(ConfigError, match="trained on speakers of this corpus: ravdess:Actor_02"):
        refuse_known_speakers(scope({**known, "checksum": "another"}), index)
    own = {"corpus": "renamed", "speakers": [], "checksum": index.sources[0].checksum}
    with pytest.raises(ConfigError, match="trained on speakers of this corpus: all"):
        refuse_known_speakers(scope(own), index)
    other = {"corpus": "another", "speakers": ["Actor_02"], "checksum": "another"}
    refuse_known_speakers(scope(other), index)
