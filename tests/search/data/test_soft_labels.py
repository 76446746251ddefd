"""A manifest's own split and its raters' votes, from the shards to a search's training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from datasets.clips import DataError
from datasets.sharding.index import ShardIndex, read_index, write_index
from search.config import ConfigError, SearchConfig, parse_arguments
from search.data.corpus import corpus_spec, load_corpus
from search.data.training_data import TrainingData
from search.execution.trial_process import open_data
from search.stages.nested_splits import outer_count
from search.training.distributed import Workers
from search.training.fold_builder import build_fold
from search.trial_config import TrialConfig


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture()
def rated(tiny_shards: Path, tmp_path: Path) -> ShardIndex:
    """The tiny corpus with a split (speaker_00 is test), and votes for the first clip of each speaker."""
    for shard in tiny_shards.glob("*.tar"):
        (tmp_path / shard.name).symlink_to(shard)
    index = read_index(tiny_shards)
    seen: set[str] = set()
    clips = []
    for entry in index.clips:
        other = next(label for label in index.labels if label != entry.label)
        votes = {} if entry.speaker in seen else {entry.label: 0.75, other: 0.25}
        seen.add(entry.speaker)
        split = {"split": "test" if entry.speaker == "speaker_00" else "train"}
        clips.append(replace(entry, votes=votes, attributes=entry.attributes | split))
    write_index(replace(index, clips=tuple(clips)), tmp_path)
    return read_index(tmp_path)


def config(index: ShardIndex, cache_folder: Path, **more: Any) -> SearchConfig:
    return SearchConfig(data=index.root, cache_dir=str(cache_folder), device="cpu", **more)


def load(index: ShardIndex, cache_folder: Path, **more: Any) -> TrainingData:
    return load_corpus(config(index, cache_folder, **more), Console(quiet=True))


def test_a_search_takes_the_manifests_split_and_its_workers_take_the_same(
    rated: ShardIndex, cache_folder: Path
) -> None:
    for protocol in ("manifest-split", None):
        data = load(rated, cache_folder, protocol=protocol)
        assert data.folds.protocol == "manifest-split"
        assert data.folds.test_speakers == ("speaker_00",)
        assert data.folds.count == 3
    trained = {rated.clips[row].speaker for f in range(3) for row in data.rows(f, training=True)}
    assert "speaker_00" not in trained
    opened = open_data(corpus_spec(config(rated, cache_folder), data), Workers())
    assert opened.folds.fingerprint == data.folds.fingerprint
    assert len(opened.folds.unseen_rows) == 6
    with pytest.raises(
        ConfigError, match="of which manifest-split has some of its own: take --protocol"
    ):
        outer_count(SearchConfig(outer=True), data.folds)


def test_a_search_refuses_a_split_that_shares_speakers(
    rated: ShardIndex, cache_folder: Path
) -> None:
    clips = list(rated.clips)
    row = next(n for n, entry in enumerate(clips) if entry.speaker == "speaker_02")
    clips[row] = replace(clips[row], attributes={"split": "test"})
    write_index(replace(rated, clips=tuple(clips)), Path(rated.root))
    with pytest.raises(DataError, match=r"Leak: the split has clips of 1 speakers .*: speaker_02"):
        load(rated, cache_folder)


def test_training_wants_the_votes_only_where_it_is_asked_to(
    rated: ShardIndex, cache_folder: Path
) -> None:
    hard, soft = (load(rated, cache_folder, soft_labels=asked) for asked in (False, True))
    rows = np.arange(len(rated.clips))
    one_hot = np.eye(6, dtype=np.float32)[hard.cache.targets]
    np.testing.assert_array_equal(hard.class_targets(rows), one_hot)
    wanted = soft.class_targets(rows).numpy()
    with_votes = np.asarray([bool(entry.votes) for entry in rated.clips])
    assert with_votes.sum() == 4
    np.testing.assert_array_equal(wanted[~with_votes], one_hot[~with_votes])
    np.testing.assert_array_equal(np.sort(wanted[with_votes], axis=1)[:, -2:], [[0.25, 0.75]] * 4)
    np.testing.assert_array_equal(wanted.argmax(axis=1), hard.cache.targets)
    assert wanted.dtype == np.float32


def test_votes_reach_the_loss_before_smoothing(rated: ShardIndex, cache_folder: Path) -> None:
    data = load(rated, cache_folder, soft_labels=True)
    plan = TrialConfig.of("functionals", {}, {"epochs": 1, "mixup": 0.0, "label_smoothing": 0.1})
    trainer = build_fold(plan, data, 0, seed=0)
    rows = trainer.rows[[bool(rated.clips[row].votes) for row in trainer.rows]][:1]
    _, wanted = trainer._examples(rows)
    np.testing.assert_allclose(
        np.sort(wanted.numpy()[0])[-2:], [0.9 * 0.25 + 0.1 / 6, 0.9 * 0.75 + 0.1 / 6], rtol=1e-6
    )
    trainer.step_epoch()


def test_a_worker_is_told_of_soft_labels(rated: ShardIndex, cache_folder: Path) -> None:
    asked = config(rated, cache_folder, soft_labels=True)
    corpus = corpus_spec(asked, load(rated, cache_folder, soft_labels=True))
    assert open_data(corpus, Workers()).soft_labels
    assert not open_data(replace(corpus, soft_labels=False), Workers()).soft_labels


def test_soft_labels_need_votes(tiny_shards: Path, cache_folder: Path) -> None:
    asked = SearchConfig(data=str(tiny_shards), cache_dir=str(cache_folder), soft_labels=True)
    with pytest.raises(ConfigError, match=r"soft_labels needs clips with votes; 'tiny' has none\."):
        load_corpus(asked, Console(quiet=True))


def test_soft_labels_are_a_bare_switch_and_off_unless_asked_for() -> None:
    assert parse_arguments(["--soft-labels"])[0].soft_labels
    assert not parse_arguments([])[0].soft_labels
