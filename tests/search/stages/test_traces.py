"""A search for arousal and valence over time: loss, delay, space, training, report, export, prediction."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from datasets.corpora.recola import load_recola
from datasets.corpora.synthetic_traces import make_synthetic_traces
from datasets.sharding.index import ShardIndex
from datasets.sharding.writer import ShardSettings, prepare
from ensembles.artifact.manifest import read_artifact
from ensembles.bank.posterior_bank import Experts, PosteriorBank
from ensembles.bank.trace_table import TraceTable
from ensembles.evaluation.trace_assessment import assess_traces
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.writer import export
from ensembles.inference.predictor import Predictor
from ensembles.inference.traces import trace_of
from ensembles.metrics import CCC, ccc
from ensembles.predict import main as predict
from models import ClipShape
from search.config import ConfigError, SearchConfig
from search.data.corpus import load_corpus
from search.data.training_data import TrainingData
from search.execution.trial_process import train
from search.papers import reproduce
from search.persistence import weights
from search.persistence.run_folder import RunFolder, new_run, provenance
from search.reporting.html.document import write_page
from search.reporting.results import write_reports
from search.reporting.terminal import print_report
from search.reporting.traces import trace_facts
from search.run import main
from search.space.scope import scope_for
from search.space.suggest import config_of, known_good, space_of
from search.stages.setup import new_record, run_context
from search.stages.task import Regression, task_of
from search.training.cross_validation import LockstepTrial
from search.training.fold_builder import build_fold
from search.training.losses import concordance_loss
from search.trial_config import TrialConfig
from tests.search.here import one_thread
from tests.small_run import join_streams
from tests.specs import spec_of

CASES = {
    "audio-0000": ("logmel_resnet", {"trim_db": 0.0, "width": 12}, {"label_delay": 1.2}),
    "video-0000": ("frame_cnn", {"frames": 25, "width": 12}, {"label_delay": 1.2}),
    "early-0000": (
        "joint_lstm",
        {
            "units": 16,
            "audio": {"architecture": "logmel_resnet", "settings": {"trim_db": 0.0}},
            "video": {"architecture": "frame_cnn", "settings": {"frames": 25}},
        },
        {"label_delay": 0.8},
    ),
}
SETTLED = {"epochs": 2, "batch_size": 6, "mixup": 0.0, "label_smoothing": 0.0, "crop_seconds": 0.0,
           "speed_perturbation": 0.0, "learning_rate": 0.004}  # fmt: skip


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("traces")
    make_synthetic_traces(root, speakers=4, minutes=0.4, seed=3)
    return root


@pytest.fixture(scope="module")
def shards(media: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    out = tmp_path_factory.mktemp("shards") / "recola"
    corpus = load_recola(media, window_seconds=4.0)
    return prepare(corpus, out, ShardSettings(frames=50, frame_size=(48, 48), clips_per_shard=8))


def _config(shards: ShardIndex, home: Path, **options: Any) -> SearchConfig:
    return SearchConfig(
        data=shards.root, name="small", runs_dir=str(home / "runs"), cache_dir=str(home / "cache"),
        device="cpu", only="logmel_resnet,frame_cnn,joint_lstm", **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a run and the cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def data(shards: ShardIndex, home: Path) -> TrainingData:
    return load_corpus(_config(shards, home), Console(quiet=True))


@dataclass(frozen=True)
class TraceRun:
    folder: RunFolder
    bank: PosteriorBank


@pytest.fixture(scope="module")
def run(shards: ShardIndex, data: TrainingData, home: Path) -> TraceRun:
    """Three trained experts and all that a search writes of them, without Ray."""
    config = Regression().completed(_config(shards, home, seed=5), data, set())
    console = Console(quiet=True)
    record = new_record(config, data, console, None)
    folder = new_run(config, "recola")
    bank = PosteriorBank.create(folder.path / "bank", task_of(data).bank_table(data))
    for name, (architecture, settings, training) in CASES.items():
        plan = TrialConfig.of(architecture, settings, {**SETTLED, **training})
        spec = spec_of(name, plan, run_context(folder, data, record))
        with one_thread():
            reports = list(train(spec))
        assert reports[-1]["percent"] == 100, reports
    experts = bank.experts(entry for entry in bank.read() if entry.percent == 100)
    assessment, processed = assess_traces(experts)
    report = {
        **record.to_json(), **provenance(), "run": "small", "experts": list(experts.names),
        "trials": {"complete": 3, "pruned": 0, "failed": 0, "unfinished": 0}, "failures": {},
        "seconds": {"search": 0.0, "total": 0.0}, "weights": weights.summary(folder),
        "enrolment": {}, "test_speakers": None, "traces": trace_facts(assessment, processed),
    }  # fmt: skip
    write_reports(folder.path, assessment, {}, report)
    out = io.StringIO()
    print_report(Console(file=out, width=100), folder.path, assessment, {}, report)
    (folder.path / "told.txt").write_text(out.getvalue())
    return TraceRun(folder, bank)


def test_the_loss_is_one_less_the_concordance_of_joined_sequences() -> None:
    generator = torch.Generator().manual_seed(0)
    said, wanted = (
        torch.randn(3, 5, 2, generator=generator),
        torch.randn(3, 5, 2, generator=generator),
    )
    known = torch.ones(3, 5, dtype=torch.bool)
    known[1, 3:] = False
    loss = float(concordance_loss(said, wanted, known))
    pairs = zip(wanted[known].double().numpy().T, said[known].double().numpy().T, strict=True)
    assert loss == pytest.approx(1 - np.mean([ccc(gold, mine) for gold, mine in pairs]), abs=1e-4)


def test_a_batch_in_which_nothing_counts_teaches_nothing() -> None:
    said = torch.ones(2, 3, 1, requires_grad=True)
    concordance_loss(said, torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.bool)).backward()  # type: ignore[no-untyped-call]
    assert said.grad is not None
    assert (said.grad == 0).all()


def test_what_is_of_classes_or_shifts_steps_is_not_searched_but_the_raters_delay_is() -> None:
    shape = ClipShape(
        num_classes=2, sample_rate_hz=16000, frames=150, answers="traces", trace_steps=150
    )
    scope = scope_for(shape, all_recipes=True, longest_delay=2.5)
    assert scope.delays == (0.0, 0.4, 0.8, 1.2, 1.6, 2.0)
    for modality in scope.modalities:
        for name in scope.choices(modality):
            searched = {key.partition("@")[0] for key in space_of(name, scope)}
            wrong = {"mixup", "label_smoothing", "focal_gamma", "class_balance", "trim_db",
                     "crop_seconds", "speed_perturbation"} & searched  # fmt: skip
            assert not wrong, name
            assert "label_delay" in searched, name
        for params in known_good(modality, scope):
            plan = config_of(params, modality, scope)
            assert plan.training.label_delay == 2.0
            assert plan.training.mixup == plan.training.crop_seconds == 0.0
            assert not plan.settings.get("trim_db")
    frames = space_of("frame_cnn", scope)["frames"]
    assert getattr(frames, "values", ()) == (25, 50, 150), (
        "more of them: faces change within a clip"
    )


def test_numbers_of_whole_clips_keep_what_shifts_steps() -> None:
    shape = ClipShape(num_classes=3, sample_rate_hz=16000, answers="values")
    scope = scope_for(shape, ("logmel_resnet", "functionals"))
    searched = space_of("logmel_resnet", scope)
    assert "trim_db" in searched
    assert not {"mixup", "label_delay"} & set(searched)


def test_what_is_wanted_is_what_raters_said_later(data: TrainingData) -> None:
    plan = TrialConfig.of("frame_cnn", {"frames": 25}, {**SETTLED, "label_delay": 0.4})
    trainer = build_fold(plan, data, 0, seed=0)
    rows = trainer.rows[:2]
    _, wanted = trainer._examples(rows)
    assert data.traces is not None
    values, known = data.traces.targets(rows, 10)
    np.testing.assert_array_equal(wanted[..., :-1].numpy(), values)
    np.testing.assert_array_equal(wanted[..., -1].numpy() > 0, known)


def test_every_recording_is_said_by_networks_that_never_saw_its_speaker(data: TrainingData) -> None:
    plan = TrialConfig.of("frame_cnn", {"frames": 25, "width": 12}, {**SETTLED, "epochs": 1})
    trial = LockstepTrial(plan, data, seed=0, precision="float32")
    results = list(trial.run())
    assert data.traces is not None
    assert results[-1].logits.shape == data.traces.gold.shape
    assert np.isfinite(results[-1].logits).all()
    for trainer in trial.trainers:
        heard = {data.index.clips[row].recording for row in trainer.rows}
        tested = {
            data.index.clips[row].recording for row in data.rows(trainer.fold, training=False)
        }
        assert not heard & tested
        mean = np.concatenate([data.cache.trace(int(row)) for row in trainer.rows]).mean(axis=0)
        np.testing.assert_allclose(trainer.expert.centre.numpy(), mean, rtol=1e-4, atol=1e-5)


def test_a_trial_goes_on_to_the_bit(data: TrainingData) -> None:
    plan = TrialConfig.of("frame_cnn", {"frames": 25, "width": 12}, {**SETTLED, "epochs": 2})
    whole = list(LockstepTrial(plan, data, seed=0, precision="float32").run())[-1].logits
    first = LockstepTrial(plan, data, seed=0, precision="float32")
    rungs = first.run()
    next(rungs)
    state = first.state_dict()
    second = LockstepTrial(plan, data, seed=0, precision="float32")
    second.load_state_dict(state)
    np.testing.assert_array_equal(list(second.run())[-1].logits, whole)


@pytest.mark.parametrize(
    ("options", "given", "told"),
    [
        ({"metric": "uar"}, {"metric"}, "metric uar is of classes"),
        ({"objective": "ensemble"}, set(), "objective is for classes, not for traces"),
        ({"enrolment": "5"}, set(), "enrolment is for classes"),
        ({"workers_per_trial": 2, "runner": "train"}, set(), "workers_per_trial must be 1"),
    ],
)
def test_a_setting_of_classes_is_refused(
    data: TrainingData, options: dict[str, Any], given: set[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        Regression().completed(SearchConfig(**options), data, given)


def test_a_corpus_without_traces_or_numbers_is_told(
    tiny_shards: Path, shards: ShardIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--runs-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--dry-run"]
    assert main(["--data", str(tiny_shards), "--target", "traces", *where]) == 2
    assert "has no traces (--target traces)" in capsys.readouterr().err
    assert main(["--data", str(tiny_shards), "--target", "valence", *where]) == 2
    assert "has no 'valence'" in capsys.readouterr().err
    assert main(["--data", str(tiny_shards), "--metric", "ccc", *where]) == 2
    assert "metric ccc is of traces and numbers" in capsys.readouterr().err
    assert main(["--data", shards.root, "--target", "emotion", *where]) == 2
    assert "have no class. Take --target traces" in capsys.readouterr().err


def test_the_bank_has_a_row_a_step(run: TraceRun, data: TrainingData) -> None:
    table = run.bank.table
    assert isinstance(table, TraceTable)
    assert data.traces is not None
    assert table.shape == (4 * 600, 2)
    np.testing.assert_allclose(table.labels, data.traces.gold)
    assert len(table.spans) == 4
    entry = run.bank.find("early-0000", 100)
    assert entry is not None
    assert entry.logits.shape == table.shape


def test_the_summary_and_the_page_say_it_by_dimension(run: TraceRun) -> None:
    path = run.folder.path
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["metric"], summary["classes"], summary["clips"]) == (
        CCC,
        ["arousal", "valence"],
        4,
    )
    scores = summary["traces"]["dimensions"]["fused"]
    assert set(scores) == {"arousal", "valence"}
    assert summary["headline"]["fused"]["honest_score"] == pytest.approx(
        np.mean([scores[name]["ccc_fold_mean"] for name in scores])
    )
    with (path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 600
    assert rows[0]["seconds"] == "0.04"
    gold = np.asarray([float(row["gold:arousal"]) for row in rows])
    said = np.asarray([float(row["arousal"]) for row in rows])
    assert ccc(gold, said) == pytest.approx(scores["arousal"]["ccc"], abs=1e-3)
    page, wrong = write_page(path)
    text = page.read_text()
    assert not [line for line in wrong if "traces" in line]
    assert "Predicted beside what raters said" in text
    assert "traces_arousal-" in text, "its figure is there"
    assert "Confusions" not in text
    told = (path / "told.txt").read_text()
    assert "post-processing of arousal" in told
    assert "4 recordings" in told


@pytest.fixture(scope="module")
def exported(run: TraceRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    export(read_run(run.folder.path), out)
    return out


def test_an_export_says_a_recording_as_its_networks_do(
    exported: Path, media: Path, data: TrainingData
) -> None:
    """ONNX and torch agree, and steps are the recording's."""
    path = media / "RECOLA-Audio-recordings" / "P02.wav"
    graphs = trace_of(Predictor(read_artifact(exported)), path)
    torch_too = trace_of(Predictor(read_artifact(exported), "torch"), path)
    np.testing.assert_allclose(graphs.values, torch_too.values, atol=2e-3)
    assert graphs.values.shape == (600, 2)
    assert (graphs.seconds[0], graphs.seconds[-1]) == (0.04, 24.0)
    assert graphs.notes == ("no video: is a sound file",)
    assert all(name.startswith("audio") for name in graphs.experts)


def test_sound_and_pictures_in_one_file_take_the_whole_ensemble_and_its_post_processing(
    exported: Path, media: Path, tmp_path: Path
) -> None:
    both = join_streams(
        media / "RECOLA-Audio-recordings" / "P03.wav",
        media / "RECOLA-Video-recordings" / "P03.mp4",
        tmp_path / "both.mkv",
    )
    artifact = read_artifact(exported)
    found = trace_of(Predictor(artifact), both)
    assert set(found.experts) == set(artifact.fused.experts)
    bare = trace_of(Predictor(replace(artifact, processing=None)), both)
    assert artifact.processing is not None
    np.testing.assert_allclose(
        found.values, artifact.processing.apply(bare.values, [(0, len(bare.values))])
    )


def test_the_command_prints_traces_and_refuses_what_is_of_clips(
    exported: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = media / "RECOLA-Audio-recordings" / "P01.wav"
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    assert predict([str(exported), str(sound), str(broken), "--csv"]) == 2
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert len(rows) == 600
    assert list(rows[0]) == ["file", "seconds", "arousal", "valence"]
    assert "broken.wav" in captured.err
    assert predict([str(exported), str(sound), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["arousal"]) == len(said["seconds"]) == 600
    assert predict([str(exported), str(sound)]) == 0
    assert "0:24.0" in capsys.readouterr().out
    assert predict([str(exported), str(sound), "--window", "2"]) == 2
    assert "remove --window" in capsys.readouterr().err


def test_the_card_says_what_it_says(exported: Path) -> None:
    card = (exported / "model-card.md").read_text()
    assert "how much arousal, valence is in a recording, every 40 ms" in card
    assert "Post-processing, fitted on all speakers" in card
    assert "% ccc" not in card
    assert not (exported / "predict.py").exists(), "the folder's own program knows classes alone"


def test_numbers_of_whole_clips_are_learned_and_exported(
    tiny_index: ShardIndex, cache_folder: Path
) -> None:
    """Valence that follows the class: an MLP on features learns it, and says it on its scale."""
    clips = tuple(
        replace(e, attributes={"valence": str(2.0 + tiny_index.labels.index(e.label))})
        for e in tiny_index.clips
    )
    from datasets.protocols.split import make_folds
    from datasets.sharding.clip_cache import open_cache

    index = replace(tiny_index, clips=clips)
    data = TrainingData(
        open_cache(index, cache_folder), make_folds(index, "speaker-kfold:2"), target="valence"
    )
    assert (data.shape.answers, data.shape.num_classes) == ("values", 1)
    plan = TrialConfig.of(
        "action_units", {}, {"epochs": 60, "batch_size": 6, "mixup": 0.0, "label_smoothing": 0.0}
    )
    said = list(LockstepTrial(plan, data, seed=0).run())[-1].logits
    table = task_of(data).bank_table(data)
    assert isinstance(table, TraceTable)
    assert table.step_seconds == 0.0
    scores = table.fold_scores(CCC, said)
    assert np.mean(list(scores.values())) > 0.4
    assert 2.0 < said.mean() < 7.0


def test_tzirakis_networks_are_trained_as_the_paper_says_and_told_by_dimension(
    data: TrainingData, shards: ShardIndex, tmp_path: Path
) -> None:
    config = reproduce.completed(SearchConfig(data=shards.root, reproduce="tzirakis2017"))
    assert config.protocol == "recola-open-kfold"
    assert Regression().completed(config, data, set()).metric == CCC
    scope = reproduce.scope_of(config, data)
    assert scope.modalities == ["audio", "video", "early"]
    plans = {
        label: TrialConfig.from_json(p) for m in scope.given.values() for label, p in m.items()
    }
    audio, video = plans["audio: waveform CNN and LSTM"], plans["video: ResNet-50 and LSTM"]
    assert (audio.training.learning_rate, audio.training.label_delay) == (1e-4, 2.0)
    assert audio.settings["recurrent_units"] == 256
    assert (video.settings["depth"], video.settings["frames"]) == (50, 150)
    table = task_of(data).bank_table(data)
    said = np.stack([table.labels, 0.5 * table.labels])
    names = ("audio-0000", "video-0000")
    experts = Experts(table, names, ("audio", "video"), said)
    labels = dict(
        zip(names, ("audio: waveform CNN and LSTM", "video: ResNet-50 and LSTM"), strict=True)
    )
    rows = {row.what: row for row in reproduce.reproduced(config, scope, experts, labels)}
    arousal = rows["audio: waveform CNN and LSTM, arousal"]
    assert (arousal.published, arousal.here) == (0.715, pytest.approx(1.0))
    valence = rows["video: ResNet-50 and LSTM, valence"]
    assert valence.published == 0.62
    assert valence.here is not None
    assert valence.here < 0.9
    assert rows["both: joint LSTM, arousal"].note == "not finished"
    out = io.StringIO()
    document = reproduce.to_json("tzirakis2017", list(rows.values()))
    reproduce.print_reproduced(Console(file=out, width=120), document, "recola-open-kfold")
    assert "CCC: published" in out.getvalue()
    assert "0.715" in out.getvalue()
