"""Traces of windows joined to those of recordings, with the raters' delay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.clips import DataError
from datasets.sharding.index import ShardIndex
from datasets.targets import Traces, values_of


@pytest.fixture()
def two() -> Traces:
    """Recordings of 6 and 4 steps in windows of 4: clips a0 (0-3), a2 (2-5), b0 (6-9)."""
    return Traces(
        dimensions=("arousal",),
        step_seconds=0.04,
        recordings=("a", "b"),
        speakers=("a", "b"),
        offsets=np.asarray([0, 6, 10]),
        gold=np.arange(10, dtype=np.float32)[:, None],
        first=np.asarray([0, 2, 6]),
        steps=np.asarray([4, 4, 4]),
        recording_of=np.asarray([0, 0, 1]),
    )


def test_without_delay_a_clip_is_to_say_its_own_trace(two: Traces) -> None:
    values, known = two.targets(np.asarray([1, 2]))
    assert values[:, :, 0].tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    assert known.all()


def test_with_delay_it_is_to_say_what_raters_said_later_but_never_another_recordings(
    two: Traces,
) -> None:
    values, known = two.targets(np.asarray([0, 1]), delay=2)
    assert values[0, :, 0].tolist() == [2, 3, 4, 5]
    assert known.tolist() == [[True] * 4, [True, True, False, False]]
    assert values[1, :2, 0].tolist() == [4, 5]
    assert 6 not in values, "that is the next recording's"


def test_overlapping_windows_are_averaged(two: Traces) -> None:
    said = [np.full((4, 1), 1.0, np.float32), np.full((4, 1), 3.0, np.float32)]
    joined = two.join(np.asarray([0, 1]), said)
    assert joined[:6, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert np.isnan(joined[6:]).all(), "nothing was said of the other recording"


def test_what_is_said_is_told_as_much_later_as_raters_are_late(two: Traces) -> None:
    joined = two.join(np.asarray([2]), [np.asarray([[1], [2], [3], [4]], np.float32)], delay=2)
    assert joined[6:, 0].tolist() == [1, 1, 1, 2]


def test_a_perfect_network_with_delay_says_the_gold_standard(two: Traces) -> None:
    rows = np.asarray([0, 1, 2])
    values, known = two.targets(rows, delay=1)
    said = [v[: int(k.sum())] for v, k in zip(values, known, strict=True)]
    padded = [np.concatenate([s, np.full((4 - len(s), 1), 99, np.float32)]) for s in said]
    joined = two.join(rows, padded, delay=1)
    assert joined[1:6, 0].tolist() == [1, 2, 3, 4, 5]
    assert joined[7:, 0].tolist() == [7, 8, 9]


def test_steps_that_nobody_rated_are_not_learned(two: Traces) -> None:
    gold = two.gold.copy()
    gold[1] = np.nan
    values, known = replace(two, gold=gold).targets(np.asarray([0]))
    assert known.tolist() == [[True, False, True, True]]
    assert np.isfinite(values).all()


def test_numbers_of_whole_clips_are_traces_of_one_step(tiny_index: ShardIndex) -> None:
    clips = tuple(
        replace(e, attributes={"valence": str(n), "dominance": "1"})
        for n, e in enumerate(tiny_index.clips)
    )
    index = replace(tiny_index, clips=clips)
    traces = values_of(index, ("valence", "dominance"))
    assert traces.recordings == tuple(sorted({e.speaker for e in clips}))
    values, known = traces.targets(np.arange(len(clips)))
    assert known.all()
    np.testing.assert_array_equal(values[:, 0, 0], np.arange(len(clips)))
    joined = traces.join(np.arange(len(clips)), list(values))
    np.testing.assert_array_equal(joined, traces.gold)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"arousal": "1"}, r"has no 'valence'. It has: arousal"),
        ({"valence": "much"}, r"has 'valence' 'much', which is no number"),
        ({"valence": "inf"}, r"has 'valence' 'inf', which is no number"),
    ],
)
def test_a_clip_without_the_number_is_named(
    tiny_index: ShardIndex, attributes: dict[str, str], told: str
) -> None:
    clips = tuple(replace(e, attributes={"valence": "1"}) for e in tiny_index.clips)
    clips = (*clips[:3], replace(clips[3], attributes=attributes), *clips[4:])
    with pytest.raises(DataError, match=f"Clip '{clips[3].clip}' {told}"):
        values_of(replace(tiny_index, clips=clips), ("valence",))
