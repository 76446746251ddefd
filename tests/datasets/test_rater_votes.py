"""Several raters' labels: how they are written, who wins, and what training is to want of a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.clips import Corpus
from datasets.rater_votes import parse_votes, soft_targets, winners
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import read_index
from datasets.sharding.writer import prepare


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("happy", {}),
        ("very: happy", {}),  # a name, and no number of votes
        ("happy:3;sad:1", {"happy": 0.75, "sad": 0.25}),
        (" happy : 3 ; sad : 1 ", {"happy": 0.75, "sad": 0.25}),
        ("happy:0.5; sad:1.5", {"happy": 0.25, "sad": 0.75}),
        ("happy:3", {"happy": 1.0}),
        ("happy:3;sad:0", {"happy": 1.0}),
        ("happy:1;sad:2;happy:1", {"happy": 0.5, "sad": 0.5}),
        ("happy|sad", {"happy": 0.5, "sad": 0.5}),
        ("happy|sad| happy|fear", {"happy": 0.5, "sad": 0.25, "fear": 0.25}),
    ],
)
def test_votes_become_shares(text: str, wanted: dict[str, float]) -> None:
    assert parse_votes(text) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("happy;sad", "'happy' is no vote such as happy:3"),
        ("happy:3;sad", "'sad' is no vote such as happy:3"),
        ("happy:3;sad:x", "'x' is no number of votes"),
        ("happy:3;sad:-1", "'-1' is no number of votes"),
        ("happy:3;sad:inf", "'inf' is no number of votes"),
        ("happy:0", "there is no vote"),
        ("happy|", "a vote names no label"),
    ],
)
def test_what_is_no_vote_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_votes(text)


def test_the_label_with_most_votes_wins_and_a_tie_has_several_winners() -> None:
    assert winners({"sad": 0.25, "happy": 0.75}) == ["happy"]
    assert winners({"sad": 0.4, "fear": 0.2, "happy": 0.4}) == ["sad", "happy"]
    assert winners(parse_votes("c:0.1;b:0.1;a:0.1")) == ["c", "b", "a"]


def test_soft_targets_are_shares_of_the_classes_and_one_hot_without_votes() -> None:
    found = soft_targets(
        ("a", "b", "c"), ["a", "c", "b"], [{"a": 0.5, "b": 0.25, "other": 0.25}, {}, {"other": 1.0}]
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[2 / 3, 1 / 3, 0], [0, 0, 1], [0, 1, 0]])


def test_votes_go_through_shards_and_cache_to_the_classes_that_are_kept(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    first = replace(small_corpus.clips[0], votes={"glad": 0.6, "sad": 0.2, "odd": 0.2})
    clips = (first, *small_corpus.clips[1:])
    prepare(replace(small_corpus, clips=clips), tmp_path / "shards")
    index = read_index(tmp_path / "shards")
    assert [e.votes for e in index.clips if e.votes] == [first.votes]
    for labels in (("glad", "sad"), ("sad", "glad")):
        cache = open_cache(index.restrict(labels), tmp_path / "cache")
        row = [entry.clip for entry in index.clips].index(first.clip)
        assert cache.soft_targets.shape == (12, 2)
        glad = labels.index("glad")
        np.testing.assert_allclose(cache.soft_targets[row, [glad, 1 - glad]], [0.75, 0.25])
        others = np.delete(cache.soft_targets, row, axis=0)
        np.testing.assert_array_equal(others, np.eye(2)[np.delete(cache.targets, row)])
