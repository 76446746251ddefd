"""Fixtures that several tests share: small corpora, made here from a seed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from datasets.cache import open_cache
from datasets.clips import ClipRecord, Corpus
from datasets.index import ShardIndex, read_index
from datasets.prepare import ShardSettings, prepare
from datasets.splits import make_folds
from datasets.synthetic import load_synthetic
from search.train import TrainingData


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
    generator = np.random.default_rng(0)
    means = generator.normal(size=(6, 5))
    clips = [
        ClipRecord(
            clip=record.clip,
            speaker=record.speaker,
            label=record.label,
            audio=record.audio,
            video=record.video,
            features=(
                means[tiny_corpus.labels.index(record.label)] + generator.normal(size=5)
            ).astype(np.float32),
        )
        for record in tiny_corpus.clips
    ]
    corpus = Corpus(
        name="tiny",
        labels=tiny_corpus.labels,
        clips=tuple(clips),
        feature_names=("AU1", "AU2", "AU4", "AU6", "AU12"),
    )
    out = tmp_path_factory.mktemp("shards") / "tiny"
    prepare(corpus, out, ShardSettings(clips_per_shard=6))
    return out


@pytest.fixture(scope="session")
def tiny_index(tiny_shards: Path) -> ShardIndex:
    return read_index(tiny_shards)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_data(tiny_index: ShardIndex, cache_folder: Path) -> TrainingData:
    """The tiny corpus, cached, in two speaker-disjoint folds."""
    return TrainingData(
        open_cache(tiny_index, cache_folder), make_folds(tiny_index, "speaker-kfold:2")
    )
