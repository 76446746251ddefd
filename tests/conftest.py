"""Fixtures that several tests share: small corpora, made here from a seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import boto3
import fsspec
import numpy as np
import pytest
import requests
import torch
from moto.server import ThreadedMotoServer
from rich.console import Console

from datasets.cache import open_cache
from datasets.clips import ClipRecord, Corpus
from datasets.index import ShardIndex, read_index
from datasets.shards import ShardSettings, prepare
from datasets.splits import make_folds
from datasets.synthetic import load_synthetic
from ensembles.bank import Experts, PosteriorBank
from ensembles.honesty import Assessment, assess, scored
from ensembles.recipes import CrossFitter, recipes_for
from search import weights
from search.config import SearchConfig
from search.corpus import clip_table, load_corpus
from search.folder import RunFolder, new_run, provenance
from search.inputs import TrainingData
from search.plan import TrialPlan
from search.report import write_predictions, write_reports
from search.run import _context, _find_out
from search.trial_process import train
from search.unseen import score_unseen
from tests.tiny import make_tiny_shards


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Real recordings; tests that need them skip where they are absent."""
    folder = os.environ.get("EMOTION_CORPORA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("EMOTION_CORPORA names no folder of real recordings")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four synthetic speakers, six emotions, one clip each: real FLAC and MP4 files."""
    return load_synthetic(tmp_path_factory.mktemp("media"), speakers=4, repetitions=1, seed=0)


@pytest.fixture(scope="session")
def tiny_shards(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_corpus` in four shards, with invented clip-level features beside sound and pictures."""
    out = tmp_path_factory.mktemp("shards") / "tiny"
    make_tiny_shards(tiny_corpus, out)
    return out


@pytest.fixture(scope="session")
def tiny_index(tiny_shards: Path) -> ShardIndex:
    return read_index(tiny_shards)


@pytest.fixture()
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server of our own, which the environment names; yields its client."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10)
    yield boto3.client("s3")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_data(tiny_index: ShardIndex, cache_folder: Path) -> TrainingData:
    """The tiny corpus, cached, in two speaker-disjoint folds."""
    return TrainingData(
        open_cache(tiny_index, cache_folder), make_folds(tiny_index, "speaker-kfold:2")
    )


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


@pytest.fixture(scope="session")
def joint_corpus(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """`tiny_corpus` with each clip's sound and pictures in one MKV, and invented features."""
    folder = tmp_path_factory.mktemp("joint")
    generator = np.random.default_rng(1)
    means = 2.0 * generator.normal(size=(6, 3))
    clips = []
    for record in tiny_corpus.clips:
        assert record.audio is not None
        assert record.video is not None
        path = _join(record.audio, record.video, folder / f"{record.clip}.mkv")
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
    return Corpus(
        name="joint",
        labels=tiny_corpus.labels,
        clips=tuple(clips),
        feature_names=("AU1", "AU2", "AU4"),
    )


def _join(sound: Path, pictures: Path, out: Path) -> Path:
    """The pictures' packets as they are, and the sound as 16-bit samples."""
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
"""One expert a modality; together they read sound, pictures and features."""

CHOSEN = "a+v+e: product"
CHOSEN_WITHOUT_FOLD = ("a+v+e: average", "a+v+e: logistic (probabilities)", "greedy: product")


@pytest.fixture(scope="session")
def small_run(
    joint_corpus: Corpus, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> SmallRun:
    """Three trained experts, three folds, a test speaker: all that a search writes, without Ray.

    The recipes are set, not chosen, so that every kind of fusion has a part.
    """
    home = tmp_path_factory.mktemp("small")
    prepare(joint_corpus, home / "shards", ShardSettings(clips_per_shard=12, frames=8))
    config = SearchConfig(
        data=str(home / "shards"),
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
    facts = _find_out(config, data, console, None)
    run = new_run(config, "joint")
    bank = PosteriorBank.create(run.path / "bank", clip_table(data))
    for name, (architecture, settings) in EXPERTS.items():
        plan = TrialPlan.of(architecture, settings, {"epochs": 8, "batch_size": 9})
        spec = {
            "trial": name,
            "modality": name.partition("-")[0],
            "plan": plan.to_json(),
            "context": _context(run, data, facts, "actor"),
        }
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
        **facts,
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
    media = {record.clip: record.video for record in joint_corpus.clips if record.video}
    features = home / "features.csv"
    names = joint_corpus.feature_names
    lines = [",".join(["clip", "surplus", *names[::-1]])]  # another order, and one too many
    for record in joint_corpus.clips:
        assert record.features is not None
        values = [repr(float(value)) for value in record.features[::-1]]
        lines.append(",".join([record.clip, "0", *values]))
    features.write_text("\n".join(lines) + "\n")
    return SmallRun(run.path, run, data, experts, assessment, media, features)


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
