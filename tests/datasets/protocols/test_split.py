from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from datasets.clips import DataError
from datasets.protocols.leakage import guard_against_leaks
from datasets.protocols.split import default_protocol, make_folds
from datasets.sharding.index import ShardIndex

MakeIndex = Callable[..., ShardIndex]

# Luna-Jiménez et al. 2021, test actors of the folds (their table of folds).
LUNA5 = {
    0: {2, 5, 14, 15, 16},
    1: {3, 6, 7, 13, 18},
    2: {10, 11, 12, 19, 20},
    3: {8, 17, 21, 23, 24},
    4: {1, 4, 9, 22},
}


def rows(speakers: dict[str, int]) -> list[tuple[str, str, str]]:
    """So many clips of each speaker in each of two classes."""
    return [
        (f"{speaker}-{label}-{take}", speaker, label)
        for speaker, takes in speakers.items()
        for label in ("glad", "sad")
        for take in range(takes)
    ]


def actors(*numbers: int) -> list[tuple[str, str, str]]:
    return rows({f"Actor_{number:02d}": 1 for number in numbers})


def fold_of_speaker(index: ShardIndex, protocol: str) -> dict[str, int]:
    folds = make_folds(index, protocol).fold_of_clip
    return {e.speaker: int(fold) for e, fold in zip(index.clips, folds, strict=True)}


def test_ravdess_is_split_as_published(make_index: MakeIndex) -> None:
    index = make_index(actors(*range(1, 25)), corpus="ravdess")
    folds = make_folds(index)
    assert folds.protocol == "ravdess-luna5"
    assert folds.metric == "accuracy"
    assert folds.count == 5
    for fold, expected in LUNA5.items():
        tested = {int(index.clips[row].speaker[-2:]) for row in folds.test_rows(fold)}
        trained = {int(index.clips[row].speaker[-2:]) for row in folds.train_rows(fold)}
        assert tested == expected
        assert trained == set(range(1, 25)) - expected


def test_ravdess_is_split_in_six_as_emobox_does(make_index: MakeIndex) -> None:
    index = make_index(actors(*range(1, 25)), corpus="ravdess")
    folds = make_folds(index, "ravdess-emobox6")
    tested = [{int(index.clips[row].speaker[-2:]) for row in folds.test_rows(f)} for f in range(6)]
    assert tested == [
        {1, 11, 20, 21}, {4, 10, 12, 14}, {8, 9, 19, 23}, {3, 5, 7, 24}, {2, 15, 16, 18}, {6, 13, 17, 22},
    ]  # fmt: skip


def test_every_clip_is_tested_once(make_index: MakeIndex) -> None:
    index = make_index(rows({"a": 1, "b": 2, "c": 3, "d": 1}))
    folds = make_folds(index, "speaker-kfold:3")
    tested = np.concatenate([folds.test_rows(fold) for fold in range(folds.count)])
    assert sorted(tested.tolist()) == list(range(len(index.clips)))
    for fold in range(folds.count):
        assert not set(folds.test_rows(fold)) & set(folds.train_rows(fold))


def test_ravdess_folds_need_ravdess_actors(make_index: MakeIndex) -> None:
    with pytest.raises(
        DataError, match=r"knows Actor_01 to Actor_24, not 'ann'\. For another corpus take"
    ):
        make_folds(make_index(rows({"ann": 1, "Actor_01": 1})), "ravdess-luna5")


def test_ravdess_folds_that_stay_empty_are_told(make_index: MakeIndex) -> None:
    with pytest.raises(DataError, match=r"has 5 folds; the speakers here fill only \[0, 4\]"):
        make_folds(make_index(actors(1, 2, 4, 5)), "ravdess-luna5")


def test_speaker_folds_are_balanced(make_index: MakeIndex) -> None:
    # 14 clips in two folds: the largest speaker alone, the other three together.
    index = make_index(rows({"large": 4, "a": 1, "b": 1, "c": 1}))
    speakers = fold_of_speaker(index, "speaker-kfold:2")
    assert speakers["a"] == speakers["b"] == speakers["c"] != speakers["large"]
    sizes = [
        len(make_folds(make_index(rows(dict.fromkeys("abcdefgh", 2))), "speaker-kfold:4").test_rows(k))
        for k in range(4)
    ]  # fmt: skip
    assert sizes == [8, 8, 8, 8]


def test_speaker_folds_do_not_depend_on_the_order_of_the_clips(make_index: MakeIndex) -> None:
    clips = rows({"a": 1, "b": 2, "c": 2, "d": 2, "e": 1})
    forward, backward = make_index(clips), make_index(clips[::-1])
    name = "speaker-kfold:3"
    assert fold_of_speaker(forward, name) == fold_of_speaker(backward, name)
    assert make_folds(forward, name).fingerprint == make_folds(backward, name).fingerprint


def test_the_fingerprint_tells_splits_apart(make_index: MakeIndex) -> None:
    clips = rows({"a": 2, "b": 2, "c": 2, "d": 2})
    index = make_index(clips)
    prints = {
        make_folds(index, "speaker-kfold:2").fingerprint,
        make_folds(index, "speaker-kfold:4").fingerprint,  # another protocol
        make_folds(make_index(clips[1:]), "speaker-kfold:2").fingerprint,  # a clip less
        make_folds(
            make_index([("renamed", *clips[0][1:]), *clips[1:]]), "speaker-kfold:2"
        ).fingerprint,
    }
    assert len(prints) == 4
    assert make_folds(make_index(clips), "speaker-kfold:2").fingerprint in prints


def test_the_same_folds_under_another_protocol_have_another_fingerprint(
    make_index: MakeIndex,
) -> None:
    # One actor of each published fold; larger speakers come first in speaker-kfold.
    sizes = {"Actor_02": 5, "Actor_03": 4, "Actor_10": 3, "Actor_08": 2, "Actor_01": 1}
    index = make_index(rows(sizes))
    published, counted = make_folds(index, "ravdess-luna5"), make_folds(index, "speaker-kfold:5")
    assert published.fold_of_clip.tolist() == counted.fold_of_clip.tolist()
    assert published.fingerprint != counted.fingerprint


@pytest.mark.parametrize(("speakers", "folds"), [(2, 2), (4, 4), (9, 5)])
def test_without_a_protocol_there_are_at_most_five_folds(
    make_index: MakeIndex, speakers: int, folds: int
) -> None:
    index = make_index(rows({f"s{n}": 1 for n in range(speakers)}))
    assert default_protocol(index) == f"speaker-kfold:{folds}"
    assert make_folds(index).count == folds


def test_an_unknown_protocol_lists_those_known(make_index: MakeIndex) -> None:
    with pytest.raises(
        DataError, match=r"Unknown protocol 'fair'\. Known: ravdess-luna5, .*speaker-kfold:K"
    ):
        make_folds(make_index(rows({"a": 1, "b": 1})), "fair")


@pytest.mark.parametrize("count", ["", "1", "0", "-3", "two", "²"])
def test_senseless_numbers_of_folds_are_refused(make_index: MakeIndex, count: str) -> None:
    with pytest.raises(
        DataError, match=f"speaker-kfold:K needs K of 2 or more, got 'speaker-kfold:{count}'"
    ):
        make_folds(make_index(rows({"a": 1, "b": 1})), f"speaker-kfold:{count}")


def test_fewer_speakers_than_folds_are_told(make_index: MakeIndex) -> None:
    with pytest.raises(
        DataError, match=r"speaker-kfold:3 needs 3 speakers or more, the corpus has 2\. Take"
    ):
        make_folds(make_index(rows({"a": 1, "b": 1})), "speaker-kfold:3")


def test_one_speaker_alone_cannot_be_split(make_index: MakeIndex) -> None:
    with pytest.raises(DataError, match="needs 2 speakers or more, the corpus has 1"):
        make_folds(make_index(rows({"a": 3})))


def test_a_class_that_a_fold_lacks_is_told(make_index: MakeIndex) -> None:
    # The speaker with fewest clips comes last, alone.
    clips = [*rows({"a": 1, "b": 1}), ("c-glad", "c", "glad")]
    with pytest.raises(DataError, match=r"Fold 2 has no clip of class 'sad'\. Take fewer folds"):
        make_folds(make_index(clips), "speaker-kfold:3")


def test_a_class_of_one_speaker_alone_cannot_be_trained_and_tested(make_index: MakeIndex) -> None:
    clips = [("c1", "a", "glad"), ("c2", "a", "sad"), ("c3", "b", "glad")]
    with pytest.raises(
        DataError, match="Outside fold 0 no clip of class 'sad' is left to train on"
    ):
        make_folds(make_index(clips), "speaker-kfold:2")


def test_a_class_of_no_clip_at_all_is_told(make_index: MakeIndex) -> None:
    index = replace(make_index(rows({"a": 1, "b": 1})), labels=("glad", "odd", "sad"))
    with pytest.raises(DataError, match="Fold 0 has no clip of class 'odd'"):
        make_folds(index, "speaker-kfold:2")


def test_a_speaker_on_two_sides_is_a_leak(make_index: MakeIndex) -> None:
    index = make_index([("c1", "ann", "glad"), ("c2", "bob", "glad"), ("c3", "ann", "sad")])
    with pytest.raises(DataError, match=r"Leak: speaker 'ann' is on several sides, folds \[0, 2\]"):
        guard_against_leaks(index, np.asarray([0, 1, 2]))
    guard_against_leaks(index, np.asarray([0, 1, 0]))


def test_a_recording_on_two_sides_is_a_leak(make_index: MakeIndex) -> None:
    clips = rows({"ann": 1, "bob": 1})
    index = make_index(clips, same_sound=("ann-sad-0", "bob-sad-0"))
    with pytest.raises(
        DataError,
        match=r"Leak: 'ann-sad-0' \(ann\) and 'bob-sad-0' \(bob\) are the same recording",
    ):
        make_folds(index, "speaker-kfold:2")


def test_a_recording_twice_within_a_speaker_is_no_leak(make_index: MakeIndex) -> None:
    index = make_index(rows({"ann": 2, "bob": 2}), same_sound=("ann-sad-0", "ann-sad-1"))
    assert make_folds(index, "speaker-kfold:2").count == 2


def test_a_split_of_another_length_is_refused(make_index: MakeIndex) -> None:
    with pytest.raises(DataError, match="The split has 1 clips, the corpus 4"):
        guard_against_leaks(make_index(rows({"a": 1, "b": 1})), np.zeros(1, np.int64))


TEN = dict.fromkeys("abcdefghij", 2)


def test_a_test_speaker_is_in_no_fold_and_the_others_in_one_each(make_index: MakeIndex) -> None:
    index = make_index(rows(TEN))
    folds = make_folds(index, "speaker-kfold:3", ["d", "h"])
    apart = {row for row, entry in enumerate(index.clips) if entry.speaker in ("d", "h")}
    assert set(folds.unseen_rows.tolist()) == apart
    assert folds.test_speakers == ("d", "h")
    assert folds.count == 3
    sides = [folds.test_rows(fold).tolist() for fold in range(3)]
    assert sorted(row for side in sides for row in side) == sorted(
        set(range(len(index.clips))) - apart
    )
    for fold in range(3):
        assert not set(folds.train_rows(fold).tolist()) & (apart | set(sides[fold]))
        assert len(folds.train_rows(fold)) + len(sides[fold]) + len(apart) == len(index.clips)


def test_the_others_are_split_as_if_the_test_speakers_were_not_there(make_index: MakeIndex) -> None:
    whole = make_index(rows(TEN))
    without = make_index(rows({name: 2 for name in TEN if name not in "dh"}))
    expected = fold_of_speaker(without, "speaker-kfold:4")
    folds = make_folds(whole, "speaker-kfold:4", ["h", "d"]).fold_of_clip
    found = {e.speaker: int(fold) for e, fold in zip(whole.clips, folds, strict=True)}
    assert found == expected | {"d": -1, "h": -1}


def test_the_fingerprint_tells_test_speakers_apart(make_index: MakeIndex) -> None:
    index = make_index(rows(TEN))
    asked = [[], ["a"], ["b"], ["a", "b"]]
    prints = [make_folds(index, "speaker-kfold:3", names).fingerprint for names in asked]
    assert len(set(prints)) == 4
    again = make_folds(index, "speaker-kfold:3", ["b", "a", "b"])
    assert again.fingerprint == prints[3]
    assert again.test_speakers == ("a", "b")
    assert make_folds(index, "speaker-kfold:3").test_speakers == ()
    assert not len(make_folds(index, "speaker-kfold:3").unseen_rows)


def test_published_folds_keep_their_actors_without_a_test_actor(make_index: MakeIndex) -> None:
    index = make_index(actors(*range(1, 25)), corpus="ravdess")
    folds = make_folds(index, test_speakers=["Actor_02"])
    assert folds.protocol == "ravdess-luna5"
    for fold, expected in LUNA5.items():
        tested = {int(index.clips[row].speaker[-2:]) for row in folds.test_rows(fold)}
        assert tested == expected - {2}


def test_the_default_number_of_folds_counts_no_test_speaker(make_index: MakeIndex) -> None:
    index = make_index(rows(dict.fromkeys("abcd", 1)))
    assert make_folds(index, test_speakers=["a"]).protocol == "speaker-kfold:3"


def test_an_unknown_test_speaker_is_told_with_those_known(make_index: MakeIndex) -> None:
    with pytest.raises(DataError, match=r"Unknown test speaker 'zoe'\. Known: a, b, c\."):
        make_folds(make_index(rows({"a": 1, "b": 1, "c": 1})), test_speakers=["a", "zoe"])


@pytest.mark.parametrize("apart", [["a", "b"], ["a", "b", "c"]])
def test_too_many_test_speakers_leave_nothing_to_split(
    make_index: MakeIndex, apart: list[str]
) -> None:
    with pytest.raises(
        DataError, match=f"needs 2 speakers or more, the corpus has {3 - len(apart)}"
    ):
        make_folds(make_index(rows({"a": 1, "b": 1, "c": 1})), test_speakers=apart)


def test_a_test_speakers_recording_in_a_fold_is_a_leak(make_index: MakeIndex) -> None:
    clips = rows({"ann": 1, "bob": 1, "cem": 1})
    index = make_index(clips, same_sound=("ann-sad-0", "cem-sad-0"))
    with pytest.raises(DataError, match=r"Leak: 'ann-sad-0' \(ann\) and 'cem-sad-0' \(cem\)"):
        make_folds(index, "speaker-kfold:2", ["cem"])


def test_a_class_that_only_a_test_speaker_has_cannot_be_scored(make_index: MakeIndex) -> None:
    clips = [*rows({"a": 1, "b": 1, "c": 1}), ("c-odd", "c", "odd")]
    with pytest.raises(DataError, match="Fold 0 has no clip of class 'odd'"):
        make_folds(make_index(clips), "speaker-kfold:2", ["c"])


def test_a_test_speaker_needs_no_clip_of_every_class(make_index: MakeIndex) -> None:
    clips = [*rows({"a": 1, "b": 1}), ("c-glad", "c", "glad")]
    assert make_folds(make_index(clips), "speaker-kfold:2", ["c"]).unseen_rows.tolist() == [4]


def test_a_random_split_shares_speakers_and_says_so(make_index: MakeIndex) -> None:
    index = make_index(rows({"a": 30, "b": 30}))
    folds = make_folds(index, "random")
    assert folds.leak
    assert "the same speakers are trained on and scored" in folds.leak
    assert folds.count == 5
    speakers = np.asarray([entry.speaker for entry in index.clips])
    labels = np.asarray([entry.label for entry in index.clips])
    for fold in range(5):
        assert {*speakers[folds.test_rows(fold)]} == {"a", "b"}
        assert (labels[folds.test_rows(fold)] == "sad").sum() == 12
    assert make_folds(index, "speaker-kfold:2").leak is None
    apart = make_folds(index, "random", ["b"])
    assert {*speakers[apart.unseen_rows]} == {"b"}


def split_index(make_index: MakeIndex, splits: dict[str, str], takes: int = 1) -> ShardIndex:
    """Speaker → the split of all clips; a speaker of several has them by turns."""
    index = make_index(rows(dict.fromkeys(splits, takes)))
    turn = dict.fromkeys(splits, 0)
    clips = []
    for entry in index.clips:
        named = splits[entry.speaker].split("+")
        of_clip = named[turn[entry.speaker] % len(named)]
        turn[entry.speaker] += 1
        clips.append(replace(entry, attributes={"split": of_clip} if of_clip else {}))
    return replace(index, clips=tuple(clips))


SPLIT = {"ann": "train", "bob": "train", "cem": "dev", "dan": "test", "eve": "test"}


def test_a_corpuss_own_split_makes_test_speakers_and_folds_of_the_others(
    make_index: MakeIndex,
) -> None:
    index = split_index(make_index, SPLIT)
    folds = make_folds(index)
    assert folds.protocol == "manifest-split"
    assert folds.test_speakers == ("dan", "eve")
    assert folds.count == 3
    assert {index.clips[row].speaker for row in folds.unseen_rows} == {"dan", "eve"}
    for fold in range(3):
        tested = {index.clips[row].speaker for row in folds.test_rows(fold)}
        trained = {index.clips[row].speaker for row in folds.train_rows(fold)}
        assert len(tested) == 1
        assert tested | trained == {"ann", "bob", "cem"}
        assert not tested & trained


def test_a_worker_that_is_told_the_protocol_and_its_test_speakers_splits_the_same(
    make_index: MakeIndex,
) -> None:
    index = split_index(make_index, SPLIT)
    folds = make_folds(index, "manifest-split")
    again = make_folds(index, folds.protocol, folds.test_speakers)
    assert again.fingerprint == folds.fingerprint
    further = make_folds(index, "manifest-split", ["cem"])
    assert further.test_speakers == ("cem", "dan", "eve")
    assert further.count == 2


def test_another_protocol_may_be_taken_instead_of_the_corpuss_split(make_index: MakeIndex) -> None:
    folds = make_folds(split_index(make_index, SPLIT), "speaker-kfold:5")
    assert (folds.count, folds.test_speakers) == (5, ())


def test_a_split_without_test_is_no_default(make_index: MakeIndex) -> None:
    index = split_index(make_index, {"ann": "train", "bob": "dev"})
    assert default_protocol(index) == "speaker-kfold:2"
    with pytest.raises(DataError, match=r"manifest-split needs clips of the split test\."):
        make_folds(index, "manifest-split")


def test_speakers_in_test_and_elsewhere_are_a_leak_that_names_them(make_index: MakeIndex) -> None:
    index = split_index(make_index, SPLIT | {"bob": "train+test", "cem": "dev+test"})
    with pytest.raises(
        DataError,
        match=r"^Leak: the split has clips of 2 speakers in test and in train or dev: bob, cem\. Mend it",
    ):
        make_folds(index)
    dev = split_index(make_index, SPLIT | {"bob": "train+dev"})
    assert make_folds(dev).test_speakers == ("dan", "eve"), "train and dev may share speakers"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"ann": "test", "bob": "test"}, "needs clips of the split train; all are test"),
        ({"ann": "test", "bob": "train+"}, r"for every clip; 'bob-sad-0' has none\. Take speaker"),
        ({"ann": "test", "bob": "eval"}, "for every clip; 'bob-glad-0' has 'eval'"),
        (
            {"ann": "test", "bob": "train"},
            "speaker-kfold:2 needs 2 speakers or more, the corpus has 1",
        ),
    ],
)
def test_a_split_that_is_not_whole_is_told(
    make_index: MakeIndex, splits: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_folds(split_index(make_index, splits))


def test_one_recording_in_train_and_test_is_a_leak(make_index: MakeIndex) -> None:
    index = split_index(make_index, SPLIT)
    clips = tuple(
        replace(e, audio_hash="same") if e.clip in ("ann-sad-0", "eve-sad-0") else e
        for e in index.clips
    )
    with pytest.raises(DataError, match=r"Leak: 'ann-sad-0' \(ann\) and 'eve-sad-0' \(eve\)"):
        make_folds(replace(index, clips=clips))


def test_a_session_is_kept_for_validation(make_index: MakeIndex) -> None:
    index = make_index(
        rows({f"Ses{n:02d}{x}": 1 for n in range(1, 6) for x in "FM"}), corpus="iemocap"
    )
    folds = make_folds(index, "iemocap-loso5-validation")
    for fold in range(5):
        tested = {index.clips[row].speaker[:5] for row in folds.test_rows(fold)}
        trained = {index.clips[row].speaker[:5] for row in folds.train_rows(fold)}
        assert tested == {f"Ses{fold + 1:02d}"}
        kept = {f"Ses{(fold + 1) % 5 + 1:02d}"}  # session 1 is kept for session 5
        assert trained == {f"Ses{n:02d}" for n in range(1, 6)} - tested - kept
    usual = make_folds(index, "iemocap-loso5")
    assert usual.fold_of_clip.tolist() == folds.fold_of_clip.tolist()
    assert usual.fingerprint != folds.fingerprint


def test_speakers_of_every_corpus_are_spread_over_the_folds(make_index: MakeIndex) -> None:
    # By size alone the three large ones of `b` would fill two folds and all of `a` the third.
    sizes = {"a:1": 2, "a:2": 2, "a:3": 2, "b:1": 20, "b:2": 20, "b:3": 20}
    index = make_index(rows(sizes), corpus="a+b")
    clips = [replace(e, attributes={"corpus": e.speaker[0]}) for e in index.clips]
    speakers = fold_of_speaker(replace(index, clips=tuple(clips)), "speaker-kfold:3")
    for corpus in "ab":
        assert sorted(f for who, f in speakers.items() if who[0] == corpus) == [0, 1, 2]


def test_a_speaker_in_two_corpora_is_a_leak(make_index: MakeIndex) -> None:
    index = make_index(rows({"ann": 1, "bob": 1}))
    clips = [replace(e, attributes={"corpus": f"c{n % 2}"}) for n, e in enumerate(index.clips)]
    with pytest.raises(DataError, match="Leak: speaker 'ann' is in two corpora, 'c0' and 'c1'"):
        make_folds(replace(index, clips=tuple(clips)), "corpus-out")
