"""IEMOCAP's layout: trees of it with real media, and with the published number of turns."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from datasets.clips import DataError
from datasets.corpora.iemocap import load_iemocap
from datasets.prepare import main as prepare_main
from datasets.protocols.split import make_folds
from datasets.sharding.index import read_index
from datasets.sharding.stream import stream_clips
from datasets.verify import main as verify_main
from tests.search.here import search_briefly

WriteSound = Callable[..., Path]
HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
FOUR = ("ang", "hap", "neu", "sad")
# Of every session: turns in the four classes, excited ones taken as happy (5531 in all).
PUBLISHED = (1085, 1023, 1151, 1031, 1241)


def line(clip: str, code: str, start: float = 0.5, end: float = 1.0) -> str:
    return (
        f"[{start:.4f} - {end:.4f}]\t{clip}\t{code}\t[2.5000, 3.0000, 3.5000]\n"
        "C-E1:\tNeutral;\t()\nA-E1:\tval 3; act 3;\t()\n\n"
    )


def write_labels(root: Path, dialogue: str, lines: list[str]) -> Path:
    path = root / f"Session{dialogue[4]}" / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(lines))
    return path


def sound_of(root: Path, clip: str) -> Path:
    return root / f"Session{clip[4]}" / "sentences" / "wav" / clip[:-5] / f"{clip}.wav"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sessions, an improvised and a scripted dialogue each, both actors, four classes."""
    root = tmp_path_factory.mktemp("whole")
    generator = np.random.default_rng(0)
    for session in range(1, 6):
        for dialogue in (f"Ses0{session}F_impro01", f"Ses0{session}M_script01_1"):
            lines = []
            for number, code in enumerate((*FOUR, "exc", "fru", "xxx")):
                for letter in "FM":
                    clip = f"{dialogue}_{letter}{number:03d}"
                    lines.append(line(clip, code, 0.1 * number, 0.1 * number + 0.4))
                    sound_of(root, clip).parent.mkdir(parents=True, exist_ok=True)
                    noise = generator.integers(-9000, 9000, 800).astype(np.int16)
                    soundfile.write(sound_of(root, clip), noise, 16_000)
            write_labels(root, dialogue, lines)
    return root


@pytest.fixture()
def tree(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole tree, to be changed as a test likes."""
    return shutil.copytree(whole, tmp_path / "IEMOCAP")


def test_turns_are_read_with_the_speaker_of_their_last_field(tree: Path) -> None:
    corpus = load_iemocap(tree)
    assert corpus.labels == ("angry", "happy", "neutral", "sad")
    clips = {record.clip: record for record in corpus.clips}
    assert len(clips) == 5 * 2 * 2 * 5  # sessions, dialogues, actors, labels with `exc`
    partner = clips["Ses03F_impro01_M001"]
    assert (partner.speaker, partner.label) == ("Ses03M", "happy")
    assert clips["Ses03M_script01_1_F004"].label == "happy"
    assert clips["Ses03M_script01_1_F004"].attributes["rated"] == "exc"
    assert partner.attributes["valence"] == "2.5000"
    assert partner.attributes["gender"] == "male"
    assert partner.video is None
    reasons = Counter(skipped.reason for skipped in corpus.skipped)
    assert reasons == {
        "its label 'fru' is none of the classes": 20,
        "its label 'xxx' is none of the classes": 20,
    }


def test_classes_and_parts_are_chosen(tree: Path) -> None:
    everything = load_iemocap(tree, classes="all", merge_excited=False)
    assert {r.label for r in everything.clips} >= {"excited", "frustrated", "happy"}
    assert len(everything.clips) == 120
    three = load_iemocap(tree, classes="3", part="script")
    assert three.labels == ("angry", "neutral", "sad")
    assert all("script" in record.clip for record in three.clips)
    assert len(three.clips) == 30
    with pytest.raises(DataError, match=r"Unknown classes '5'\. Known: 4, 3, all"):
        load_iemocap(tree, classes="5")


def test_media_without_labels_and_labels_without_media_are_named(tree: Path) -> None:
    lost = sound_of(tree, "Ses01F_impro01_F000")
    lost.rename(lost.with_name("Ses01F_impro01_F099.wav"))
    (lost.parent / "._Ses01F_impro01_F001.wav").write_bytes(b"a Macintosh was here")
    labels = tree / "Session1" / "dialog" / "EmoEvaluation"
    (labels / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    reasons = {s.clip: s.reason for s in load_iemocap(tree).skipped}
    assert reasons["Ses01F_impro01_F099"] == "has no label in 'Ses01F_impro01.txt'"
    assert "no such file 'Session1/sentences/wav" in reasons["Ses01F_impro01_F000"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1.0 - 2.0]\tSes01F_impro01_F000\n", "line 3, is no label"),
        ("[2.0 - 1.0]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]\n", "cannot go from 2.0 to 1.0 s"),
    ],
)
def test_a_label_line_that_is_none_is_told(tree: Path, text: str, message: str) -> None:
    write_labels(tree, "Ses01F_impro01", [text])
    with pytest.raises(DataError, match=message):
        load_iemocap(tree)


def test_a_folder_that_is_not_iemocap_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such folder"):
        load_iemocap(tmp_path / "none")
    with pytest.raises(DataError, match=r"No Session\*/dialog/EmoEvaluation/\*\.txt under"):
        load_iemocap(tmp_path)


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "mpeg4"), (".mp4", "libx264")])
def test_the_dialogue_is_cut_by_times_and_by_who_sits_where(
    tmp_path: Path, write_sound: WriteSound, suffix: str, codec: str
) -> None:
    root = tmp_path / "IEMOCAP"
    placed = root / "Session2" / "dialog" / "avi" / "DivX" / f"Ses02M_impro01{suffix}"
    placed.parent.mkdir(parents=True)
    with av.open(str(placed), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 96, "yuv420p"
        stream.options = {"g": "12", "bf": "0"}  # a key frame every 0.48 s
        stream.bit_rate = 8_000_000
        for number in range(60):
            image = np.full((32, 96, 3), 4 * number, np.uint8)
            image[:, 48:] = 255 - 4 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    lines = []
    for clip in ("Ses02M_impro01_M000", "Ses02M_impro01_F000"):
        lines.append(line(clip, "neu" if "_M0" in clip else "sad", 0.8, 1.6))
        sound_of(root, clip).parent.mkdir(parents=True, exist_ok=True)
        write_sound(f"{clip}.wav", seed=len(clip)).replace(sound_of(root, clip))
    write_labels(root, "Ses02M_impro01", lines)
    arguments = ["iemocap", "--root", str(root), "--out", str(tmp_path / "shards")]
    assert prepare_main([*arguments, "--frames", "4", "--frame-size", "16x24"]) == 0
    index = read_index(tmp_path / "shards")
    seen = {s["clip"]: s["video"] for s in stream_clips(index)}
    # Of 0.8 to 1.6 s the four quarters' middles: 0.9, 1.1, 1.3 and 1.5 s.
    shown = 4 * np.array([22, 27, 32, 37])
    lead, partner = seen["Ses02M_impro01_M000"], seen["Ses02M_impro01_F000"]
    assert lead.shape == (4, 16, 24, 3)
    np.testing.assert_allclose(lead.mean(axis=(1, 2, 3)), shown, atol=3)
    np.testing.assert_allclose(partner.mean(axis=(1, 2, 3)), 255 - shown, atol=3)


def test_sessions_have_the_published_numbers_of_turns(tmp_path: Path) -> None:
    root = tmp_path / "IEMOCAP"
    for session, count in enumerate(PUBLISHED, start=1):
        for letter in "FM":
            dialogue = f"Ses0{session}{letter}_impro01"
            own = count // 2 + (count % 2 if letter == "F" else 0)
            clips = [f"{dialogue}_{letter}{number:03d}" for number in range(own)]
            codes = ("ang", "exc", "hap", "neu", "sad")
            write_labels(root, dialogue, [line(clip, codes[n % 5]) for n, clip in enumerate(clips)])
            sound_of(root, clips[0]).parent.mkdir(parents=True)
            for clip in clips:
                sound_of(root, clip).touch()
    corpus = load_iemocap(root)
    assert len(corpus.clips) == 5531
    per_session = Counter(record.attributes["session"] for record in corpus.clips)
    assert tuple(per_session[f"Ses0{n}"] for n in range(1, 6)) == PUBLISHED


def test_a_tree_is_prepared_verified_and_split_by_session_or_speaker(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    assert prepare_main(["iemocap", "--root", str(tree), "--out", str(shards)]) == 0
    assert verify_main([str(shards)]) == 0
    assert "protocol iemocap-loso5: 5 folds of 20/20/20/20/20 clips" in capsys.readouterr().out
    index = read_index(shards)
    sessions = make_folds(index)
    speakers = np.asarray([entry.speaker for entry in index.clips])
    for fold in range(5):
        assert {*speakers[sessions.test_rows(fold)]} == {f"Ses0{fold + 1}F", f"Ses0{fold + 1}M"}
    alone = make_folds(index, "iemocap-loso10")
    assert alone.count == 10
    for fold in range(10):
        (tested,) = {*speakers[alone.test_rows(fold)]}
        trained = {*speakers[alone.train_rows(fold)]}
        assert not {speaker for speaker in trained if speaker[:5] == tested[:5]}, "nor the partner"
        assert len(trained) == 8


def test_the_raters_lines_are_votes_and_the_actors_own_opinion_is_none(
    tmp_path: Path, write_sound: WriteSound
) -> None:
    clip = "Ses01F_impro01_F000"
    own = (
        f"[0.1000 - 0.5000]\t{clip}\thap\t[2.5000, 3.0000, 3.5000]\n"
        "C-E2:\tHappiness;\t()\nC-E3:\tExcited; Surprise;\t(loud)\nC-E4:\tNeutral state;\t()\n"
        "C-E5:\tNonsense;\t()\nC-F1:\tAnger;\t()\nA-E3:\tval 3; act 3;\t()\n\n"
    )
    other = line("Ses01F_impro01_M000", "neu")
    write_labels(tmp_path, "Ses01F_impro01", [own, other])
    sound_of(tmp_path, clip).parent.mkdir(parents=True)
    for name in (clip, "Ses01F_impro01_M000"):
        write_sound("a.wav").replace(sound_of(tmp_path, name))
    merged, second = load_iemocap(tmp_path).clips
    third = pytest.approx(1 / 3)
    assert merged.votes == {
        "happy": pytest.approx(0.5),
        "surprised": pytest.approx(1 / 6),
        "neutral": third,
    }
    assert second.votes == {"neutral": 1.0}
    apart = load_iemocap(tmp_path, classes="all", merge_excited=False).clips[0]
    assert apart.votes == {
        "happy": third, "excited": pytest.approx(1 / 6), "surprised": pytest.approx(1 / 6), "neutral": third,
    }  # fmt: skip


def test_a_tree_is_searched_and_reported_under_its_protocol(tree: Path, tmp_path: Path) -> None:
    assert prepare_main(["iemocap", "--root", str(tree), "--out", str(tmp_path / "shards")]) == 0
    run = search_briefly(tmp_path / "shards", tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["protocol"], summary["clips"]) == ("iemocap-loso5", 100)
    assert len(summary["headline"]["fused"]["fold_scores"]) == 5
    assert set(summary["detail"]["fused"]["groups"]) == {"gender", "session"}
    assert "iemocap" in (run / "report.html").read_text()
