"""CREMA-D's layout, and the three original clips."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets.clips import DataError
from datasets.corpora.crema_d import load_crema_d
from datasets.features import with_features
from datasets.prepare import main as prepare_main
from datasets.protocols.split import make_folds
from datasets.sharding.index import read_index
from datasets.sharding.writer import ShardSettings, prepare
from tests.search.here import search_briefly

WriteSound = Callable[..., Path]
CODES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
ACTORS = (1001, 1002, 1003, 1004, 1005, 1076)


@pytest.fixture()
def tree(tmp_path: Path, write_sound: WriteSound) -> Path:
    """Six actors, one sentence, every emotion; votes and demographics."""
    root = tmp_path / "CREMA-D"
    for folder in ("AudioWAV", "processedResults"):
        (root / folder).mkdir(parents=True)
    votes = [
        '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"'
    ]
    number = 0
    for actor in ACTORS:
        for code in CODES:
            clip = f"{actor}_{'MTI' if actor == 1076 else 'DFA'}_{code}_XX"
            write_sound(f"{clip}.wav", seed=number).replace(root / "AudioWAV" / f"{clip}.wav")
            number += 1
            voice = "A:D" if (actor, code) == (1001, "DIS") else code[0]
            votes.append(f'"{number}","{clip}","{voice}","60","N","70","{code[0]}","80"')
    (root / "processedResults" / "summaryTable.csv").write_text("\n".join(votes))
    people = [
        "ActorID,Age,Sex,Race,Ethnicity",
        *(f"{a},30,{'Male' if a % 2 else 'Female'},x,y" for a in ACTORS),
    ]
    (root / "VideoDemographics.csv").write_text("\n".join(people))
    (root / "AudioWAV" / "notes.wav").write_bytes(b"nothing")
    return root


def test_the_intended_emotion_is_in_the_name(tree: Path) -> None:
    corpus = load_crema_d(tree)
    clips = {record.clip: record for record in corpus.clips}
    assert len(clips) == 35
    assert clips["1002_DFA_FEA_XX"].label == "fearful"
    assert clips["1002_DFA_FEA_XX"].speaker == "1002"
    assert clips["1002_DFA_FEA_XX"].attributes == {
        "sentence": "DFA", "intensity": "XX", "intended": "fearful", "gender": "female",
    }  # fmt: skip
    reasons = {s.clip: s.reason for s in corpus.skipped}
    assert "silent" in reasons["1076_MTI_SAD_XX"]
    assert "the name is not" in reasons["AudioWAV/notes.wav"]


def test_the_crowd_may_say_otherwise(tree: Path) -> None:
    heard = load_crema_d(tree, target="voice")
    assert len(heard.clips) == 34
    assert "'A:D', not one emotion" in {s.clip: s.reason for s in heard.skipped}["1001_DFA_DIS_XX"]
    assert {record.label for record in load_crema_d(tree, target="face").clips} == {"neutral"}
    assert len(load_crema_d(tree, target="both").clips) == 35
    (tree / "processedResults" / "summaryTable.csv").unlink()
    with pytest.raises(DataError, match=r"No summaryTable\.csv under"):
        load_crema_d(tree, target="voice")
    with pytest.raises(DataError, match="Unknown target 'ears'"):
        load_crema_d(tree, target="ears")


def test_a_table_without_its_columns_is_told(tree: Path) -> None:
    (tree / "VideoDemographics.csv").write_text("ActorID,Age\n1001,51\n")
    with pytest.raises(DataError, match=r"VideoDemographics.csv', row 2, has no column 'Sex'"):
        load_crema_d(tree)


def test_features_are_joined_by_clip(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "features.csv").write_text("clip,AU1\n1001_DFA_ANG_XX,2.5\n1001_DFA_ANG_HI,1\n")
    corpus = with_features(load_crema_d(tree), tmp_path / "features.csv")
    found = {r.clip: r.features for r in corpus.clips if r.features is not None}
    assert {clip: values.tolist() for clip, values in found.items()} == {"1001_DFA_ANG_XX": [2.5]}
    reasons = [skipped.reason for skipped in corpus.skipped]
    assert reasons.count("no row in the features table (kept without features)") == 34
    assert "no clip of that name" in reasons


def test_every_fifth_actor_is_tested_together(tree: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    arguments = ["crema_d", "--root", str(tree), "--out", str(shards), "--target", "both"]
    assert prepare_main(arguments) == 0
    index = read_index(shards)
    folds = make_folds(index)
    assert folds.protocol == "crema-d-speakers5"
    speakers = np.asarray([entry.speaker for entry in index.clips])
    tested = [sorted({*speakers[folds.test_rows(fold)]}) for fold in range(5)]
    assert tested == [["1001", "1076"], ["1002"], ["1003"], ["1004"], ["1005"]]


def test_the_original_clips_hold_sound_and_pictures(corpora: Path, tmp_path: Path) -> None:
    corpus = load_crema_d(corpora / "crema_d")
    assert [record.label for record in corpus.clips] == ["angry", "happy", "neutral"]
    index = prepare(corpus, tmp_path / "shards", ShardSettings(frames=8))
    assert index.has("audio") == index.has("video") == 3
    assert not index.skipped


def write_counts(tree: Path, **votes: tuple[int, ...]) -> None:
    """`tabulatedVotes.csv`: per clip the votes for A D F H N S of voices, and others of faces."""
    lines = ['"","A","D","F","H","N","S","fileName","numResponses","agreement","emoVote"']
    for number, (clip, counts) in enumerate(votes.items(), start=1):
        for query, of_query in ((1, counts), (2, (0, 0, 0, 0, 9, 0)), (3, (9, 0, 0, 0, 0, 0))):
            listed = ",".join(map(str, of_query))
            lines.append(
                f'"{query}{number:05d}",{listed},"{clip.strip("c")}",{sum(of_query)},0.5,"x"'
            )
    (tree / "processedResults" / "tabulatedVotes.csv").write_text("\n".join(lines))


def test_a_tie_may_stay_as_a_soft_label(tree: Path) -> None:
    clips = {
        record.clip: record for record in load_crema_d(tree, target="voice", ties="soft").clips
    }
    assert len(clips) == 35
    tied = clips["1001_DFA_DIS_XX"]
    assert (tied.label, tied.attributes["tie"]) == ("angry", "angry|disgust")
    assert tied.votes == {"angry": 0.5, "disgust": 0.5}
    assert clips["1001_DFA_SAD_XX"].votes == {}
    with pytest.raises(
        DataError, match=r"'1001_DFA_DIS_XX': the vote is 'A:D', not one emotion\. Leave"
    ):
        load_crema_d(tree, target="voice", ties="error")
    with pytest.raises(DataError, match="Unknown ties 'coin'"):
        load_crema_d(tree, ties="coin")


def test_the_crowds_votes_are_those_of_the_target(tree: Path) -> None:
    write_counts(tree, c1001_DFA_DIS_XX=(5, 5, 0, 0, 0, 0), c1001_DFA_SAD_XX=(0, 1, 0, 0, 2, 7))
    heard = {r.clip: r for r in load_crema_d(tree, target="voice", ties="soft").clips}
    assert heard["1001_DFA_SAD_XX"].votes == {"disgust": 0.1, "neutral": 0.2, "sad": 0.7}
    assert heard["1001_DFA_DIS_XX"].votes == {"angry": 0.5, "disgust": 0.5}
    assert heard["1001_DFA_HAP_XX"].votes == {}, "no row"
    seen = {r.clip: r for r in load_crema_d(tree, target="face").clips}
    assert seen["1001_DFA_SAD_XX"].votes == {"neutral": 1.0}
    assert not any(r.votes for r in load_crema_d(tree).clips), "the actor's intention has no raters"


def test_counts_that_are_none_are_told(tree: Path) -> None:
    path = tree / "processedResults" / "tabulatedVotes.csv"
    head = '"","A","D","F","H","N","S","fileName"\n'
    path.write_text(head + '"100001",1,NA,0,0,0,0,"1001_DFA_SAD_XX"\n')
    with pytest.raises(DataError, match=r"'tabulatedVotes\.csv', row 2, has no numbers of votes"):
        load_crema_d(tree, target="voice")
    path.write_text('"","A","fileName"\n"100001",1,"1001_DFA_SAD_XX"\n')
    with pytest.raises(DataError, match=r"row 2, has no column 'D'"):
        load_crema_d(tree, target="voice")


def test_a_tree_is_searched_and_reported_under_its_protocol(tree: Path, tmp_path: Path) -> None:
    assert prepare_main(["crema_d", "--root", str(tree), "--out", str(tmp_path / "shards")]) == 0
    run = search_briefly(tmp_path / "shards", tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["protocol"], summary["clips"]) == ("crema-d-speakers5", 35)
    assert (run / "report.html").exists()
