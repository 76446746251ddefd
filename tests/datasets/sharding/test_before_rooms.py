"""Shards of commit ceec14a, from before the packages had rooms, stay readable.

`tests/fixtures/before_rooms/shards.json` holds what that commit's own stream and cache read in them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import ShardIndex, read_index
from datasets.sharding.stream import stream_clips

FIXTURES = Path(__file__).parents[2] / "fixtures" / "before_rooms"


@pytest.fixture(scope="module")
def index() -> ShardIndex:
    return read_index(FIXTURES / "shards")


@pytest.fixture(scope="module")
def recorded() -> Any:
    return json.loads((FIXTURES / "shards.json").read_text())


def sha256(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def test_the_index_is_read(index: ShardIndex) -> None:
    assert (index.corpus, index.labels) == ("before_rooms", ("happy", "sad"))
    assert (index.sample_rate_hz, index.frame_size) == (8_000, (12, 16))
    assert index.feature_names == ("AU04", "AU12")
    assert [(e.clip, e.speaker, e.samples, e.feature_steps) for e in index.clips] == [
        ("ann-happy", "ann", 800, 3), ("ann-sad", "ann", 880, 4),
        ("bob-happy", "bob", 960, 3), ("bob-sad", "bob", 1040, 4),
    ]  # fmt: skip
    assert index.clips[0].attributes == {"gender": "female"}
    assert index.clips[0].votes == {"happy": 0.75, "sad": 0.25}


def test_the_stream_gives_what_it_gave(index: ShardIndex, recorded: Any) -> None:
    found = {
        sample["clip"]: {
            "audio": [len(sample["audio"]), sha256(sample["audio"])],
            "video": [list(sample["video"].shape), sha256(sample["video"])],
            "features": sample["features"].tolist(),
        }
        for sample in stream_clips(index)
    }
    assert found == recorded["clips"]


def test_the_cache_gives_what_it_gave(index: ShardIndex, recorded: Any, tmp_path: Path) -> None:
    cache = open_cache(index, tmp_path)
    batch = cache.batch(np.arange(4), ["audio", "video", "features", "feature_sequence"])
    assert {
        kind: [list(values.shape), str(values.dtype).removeprefix("torch."), sha256(values.numpy())]
        for kind, values in batch.items()
    } == recorded["batch"]
    assert cache.soft_targets.tolist() == recorded["soft_targets"]
