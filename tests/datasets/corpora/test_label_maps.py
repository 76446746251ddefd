from __future__ import annotations

import pytest

from datasets.clips import DataError
from datasets.corpora.label_maps import MAPS, VOCABULARIES, LabelMap, parse_map


def test_a_named_map_says_what_becomes_of_every_label_of_every_corpus() -> None:
    known = {label for of in VOCABULARIES.values() for label in of}
    assert all(set(of) == known for of in MAPS.values())


def test_the_common_four_of_each_corpus() -> None:
    common = parse_map("common4")
    became = {c: {label: common.label(label) for label in of} for c, of in VOCABULARIES.items()}
    four = {"angry": "angry", "happy": "happy", "neutral": "neutral", "sad": "sad"}
    assert {k: v for k, v in became["ravdess"].items() if v} == four
    assert {k: v for k, v in became["crema_d"].items() if v} == four
    assert {k: v for k, v in became["iemocap"].items() if v} == {**four, "excited": "happy"}


def test_calm_is_left_out_or_neutral() -> None:
    assert parse_map("common4").label("calm") == ""
    assert parse_map("common4-calm").label("calm") == "neutral"
    assert [k for k in MAPS["common4"] if MAPS["common4"][k] != MAPS["common4-calm"][k]] == ["calm"]


def test_a_map_that_is_written_out_leaves_other_labels_as_they_are() -> None:
    written = parse_map(" calm=neutral, surprised= ,")
    assert [written.label(label) for label in ("calm", "surprised", "sad")] == [
        "neutral",
        "",
        "sad",
    ]
    assert LabelMap().label("calm") == "calm"


def test_what_is_written_out_comes_before_a_named_map() -> None:
    both = parse_map("surprised=happy,common4")
    assert [both.label(label) for label in ("surprised", "fearful", "excited")] == [
        "happy",
        "",
        "happy",
    ]


def test_a_named_map_does_not_guess() -> None:
    with pytest.raises(
        DataError, match=r"'common4' does not know the label 'anger'\. .* --map common4,anger=angry"
    ):
        parse_map("common4").label("anger")
    assert parse_map("common4,anger=angry").label("anger") == "angry"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common5", r"Unknown map 'common5'\. Known: common4, common4-calm, common6; or write one"),
        ("=happy", r"has '=happy': every label is named once"),
        ("calm=neutral,calm=", r"has 'calm=': every label is named once"),
    ],
)
def test_a_map_that_is_none_is_told(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_map(text)


def test_votes_become_what_their_labels_become() -> None:
    votes = {"happy": 0.25, "excited": 0.25, "frustrated": 0.25, "sad": 0.25}
    became = parse_map("common4").votes(votes)
    assert became == pytest.approx({"happy": 2 / 3, "sad": 1 / 3})
    assert parse_map("common4").votes({"frustrated": 1.0}) == {}
