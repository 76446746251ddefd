"""CREMA-D's layout, and the three original clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets.clips import DataError
from datasets.crema_d import load_crema_d
from datasets.features import with_features
from datasets.index import read_index
from datasets.prepare import ShardSettings, prepare
from datasets.prepare import main as prepare_main
from datasets.splits import make_folds

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
