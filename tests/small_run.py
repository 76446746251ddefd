"""A small finished run, and the corpus it is of: all that a search writes, made without Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console

from datasets.clips import ClipRecord, Corpus
from datasets.sharding.writer import ShardSettings, prepare
from ensembles.bank.posterior_bank import Experts, PosteriorBank
from ensembles.bank.prediction_tables import write_predictions
from ensembles.evaluation.assessment import Assessment, assess, scored
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.fusion.candidates import recipes_for
from search.config import SearchConfig
from search.data.bank_tables import clip_table
from search.data.corpus import load_corpus
from search.data.training_data import TrainingData
from search.execution.trial_process import train
from search.persistence import weights
from search.persistence.run_folder import RunFolder, new_run, provenance
from search.reporting.results import write_reports
from search.stages.setup import new_record, run_context
from search.stages.test_speakers import score_unseen
from search.trial_config import TrialConfig
from tests.specs import spec_of

EXPERTS = {
    "audio-0000": ("logmel_resnet", {}),
    "video-0000": ("frame_cnn", {}),
    "early-0000": (
        "concatenation",
        {
            "audio": {"architecture": "functionals", "settings": {}},
            "video": {"architecture": "action_units", "settings": {}},
        },
    ),
}
"""One expert a modality; together they read audio, video and features."""

CHOSEN = "a+v+e: product"
CHOSEN_WITHOUT_FOLD = ("a+v+e: average", "a+v+e: logistic (probabilities)", "greedy: product")


@dataclass(frozen=True)
class JointCorpus:
    """Clips whose audio and video lie in one file, ready to be searched and to be predicted.

    Attributes:
        corpus: As it was loaded.
        shards: Its folder of shards.
        media: Clip → its file.
        features: A table of the clips' features, with its columns in another order and one too many.
    """

    corpus: Corpus
    shards: Path
    media: dict[str, Path]
    features: Path


@dataclass(frozen=True)
class SmallRun:
    """A run as a search leaves it, and what it was made of."""

    path: Path
    folder: RunFolder
    data: TrainingData
    experts: Experts
    assessment: Assessment
    media: dict[str, Path]
    features: Path


def make_joint_corpus(tiny_corpus: Corpus, folder: Path) -> JointCorpus:
    """Each clip's audio and video in one MKV, with invented features; in shards."""
    generator = np.random.default_rng(1)
    means = 2.0 * generator.normal(size=(6, 3))
    clips = []
    for record in tiny_corpus.clips:
        assert record.audio is not None
        assert record.video is not None
        path = join_streams(record.audio, record.video, folder / f"{record.clip}.mkv")
        features = 0.7 * generator.normal(size=3) + means[tiny_corpus.labels.index(record.label)]
        clips.append(
            ClipRecord(
                clip=record.clip,
                speaker=record.speaker,
                label=record.label,
                audio=path,
                video=path,
                features=features.astype(np.float32),
            )
        )
    corpus = Corpus(
        name="joint",
        labels=tiny_corpus.labels,
        clips=tuple(clips),
        feature_names=("AU1", "AU2", "AU4"),
    )
    prepare(corpus, folder / "shards", ShardSettings(clips_per_shard=12, frames=8))
    media = {record.clip: record.video for record in corpus.clips if record.video}
    return JointCorpus(corpus, folder / "shards", media, _write_features(corpus, folder))


def _write_features(corpus: Corpus, folder: Path) -> Path:
    lines = [",".join(["clip", "surplus", *corpus.feature_names[::-1]])]
    for record in corpus.clips:
        assert record.features is not None
        values = [repr(float(value)) for value in record.features[::-1]]
        lines.append(",".join([record.clip, "0", *values]))
    path = folder / "features.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def join_streams(sound: Path, pictures: Path, out: Path) -> Path:
    """Writes one file with the video's packets as they are, and the audio as 16-bit samples."""
    with av.open(str(pictures)) as seen, av.open(str(sound)) as heard, av.open(str(out), "w") as to:
        video = to.add_stream_from_template(seen.streams.video[0])
        audio = to.add_stream("pcm_s16le", rate=heard.streams.audio[0].rate, layout="mono")
        for packet in seen.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                to.mux(packet)
        for frame in heard.decode(audio=0):
            to.mux(audio.encode(frame))
        to.mux(audio.encode(None))
    return out


def make_small_run(
    joint: JointCorpus, cache_folder: Path, home: Path
) -> tuple[RunFolder, Experts, Assessment]:
    """Three trained experts, three folds, a test speaker.

    The recipes are set, not chosen, so that every kind of fusion has a part.
    """
    config = SearchConfig(
        data=str(joint.shards),
        protocol="speaker-kfold:3",
        test_speakers="speaker_03",
        only="logmel_resnet,frame_cnn,functionals,action_units,concatenation",
        seed=5,
        name="small",
        runs_dir=str(home / "runs"),
        device="cpu",
        cache_dir=str(cache_folder),
    )
    console = Console(quiet=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = load_corpus(config, console)
    record = new_record(config, data, console, None)
    run = new_run(config, "joint")
    bank = PosteriorBank.create(run.path / "bank", clip_table(data))
    for name, (architecture, settings) in EXPERTS.items():
        plan = TrialConfig.of(architecture, settings, {"epochs": 8, "batch_size": 9})
        spec = spec_of(name, plan, run_context(run, data, record))
        assert list(train(spec))[-1]["percent"] == 100
    experts = bank.experts(entry for entry in bank.read() if entry.percent == 100)
    assessment = _set_recipes(experts, assess(experts, config.metric))
    unseen = score_unseen(run, data, experts, assessment)
    assert unseen is not None
    torch.set_num_threads(threads)
    write_predictions(
        run.path / "predictions_test.csv", unseen.table, [(config.seed, unseen.log_posteriors)]
    )
    report = {
        **record.to_json(),
        **provenance(),
        "run": run.path.name,
        "experts": list(experts.names),
        "trials": {"complete": 3, "pruned": 0, "failed": 0, "unfinished": 0},
        "failures": {},
        "seconds": {"search": 0.0, "total": 0.0},
        "weights": weights.summary(run),
        "test_speakers": unseen.to_json(),
    }
    write_reports(run.path, assessment, {}, report)
    return run, experts, assessment


def _set_recipes(experts: Experts, assessment: Assessment) -> Assessment:
    fitter = CrossFitter(experts, assessment.metric)
    recipes = {recipe.name: recipe for recipe in recipes_for(experts, assessment.metric)}
    out = np.empty(experts.log_posteriors.shape[1:])
    per_fold = []
    for fold, name in enumerate(CHOSEN_WITHOUT_FOLD):
        out[experts.table.folds == fold] = fitter.predict(recipes[name], frozenset({fold}), fold)
        members, _ = fitter.fit(recipes[name], frozenset({fold}))
        per_fold.append((name, tuple(experts.names[m] for m in members)))
    fused = scored(
        "fused", experts.table, assessment.metric, out, None, experts.names, tuple(per_fold)
    )
    return replace(assessment, fused=fused, chosen=CHOSEN)
