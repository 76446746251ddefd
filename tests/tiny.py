"""A tiny corpus in shards, for tests that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.clips import ClipRecord, Corpus
from datasets.sharding.writer import ShardSettings, prepare


def make_tiny_shards(tiny_corpus: Corpus, out: Path, name: str = "tiny") -> None:
    """A corpus in four shards, with invented features of seven frames beside sound and pictures."""
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
                means[tiny_corpus.labels.index(record.label)]
                + generator.normal(size=5)
                + generator.normal(0.0, 0.3, (7, 5))
            ).astype(np.float32),
        )
        for record in tiny_corpus.clips
    ]
    corpus = Corpus(
        name=name,
        labels=tiny_corpus.labels,
        clips=tuple(clips),
        feature_names=("AU1", "AU2", "AU4", "AU6", "AU12"),
    )
    prepare(corpus, out, ShardSettings(clips_per_shard=6))
