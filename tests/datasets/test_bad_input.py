"""What is wrong with a corpus is counted and named, or ends in one line, whichever loader reads it."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets.corpora.crema_d import load_crema_d
from datasets.corpora.iemocap import load_iemocap
from datasets.corpora.ravdess import load_ravdess
from datasets.media.audio import read_audio
from datasets.media.containers import MediaError
from datasets.prepare import main
from datasets.sharding.index import read_index
from datasets.verify import main as verify_main

Tree = Callable[[Path], None]


def sound(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-9000, 9000, 800).astype(np.int16)
    soundfile.write(path, noise, 16_000)
    return path


def ravdess(root: Path) -> None:
    for number in (1, 3, 4):
        sound(root / "Actor_01" / f"03-01-0{number}-01-01-01-01.wav", number)


def crema_d(root: Path) -> None:
    for number, code in enumerate(("ANG", "HAP", "SAD")):
        sound(root / "AudioWAV" / f"1001_DFA_{code}_XX.wav", number)


def iemocap(root: Path) -> None:
    lines = []
    for number, code in enumerate(("ang", "hap", "neu")):
        clip = f"Ses01F_impro01_F{number:03d}"
        sound(root / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / f"{clip}.wav", number)
        lines.append(f"[{number}.0 - {number}.5]\t{clip}\t{code}\t[2.5, 2.5, 2.5]")
    labels = root / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text("\n".join(lines) + "\n")


def manifest(root: Path) -> None:
    rows = ["clip,speaker,label,audio"]
    for number, label in enumerate(("sad", "glad", "sad")):
        rows.append(f"c{number},ann,{label},{sound(root / f'{number}.wav', number).name}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")


TREES: tuple[Tree, ...] = (ravdess, crema_d, iemocap, manifest)
of_every_layout = pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__)


def prepare_tree(make: Tree, root: Path) -> int:
    return main([make.__name__, "--root", str(root), "--out", str(root.parent / "out")])


@of_every_layout
def test_media_that_hold_nothing_are_named(make: Tree, tmp_path: Path) -> None:
    make(tmp_path / "root")
    first, second, _ = sorted((tmp_path / "root").rglob("*.wav"))
    first.write_bytes(b"")
    second.write_bytes(b"\x7fELF" + bytes(1000))
    assert prepare_tree(make, tmp_path / "root") == 0
    index = read_index(tmp_path / "out")
    reasons = [skipped.reason for skipped in index.skipped]
    assert len(index.clips) == 1 and len(reasons) == 2
    assert f"'{first.name}' is empty" in reasons
    assert any(f"'{second.name}' cannot be decoded" in reason for reason in reasons)


@of_every_layout
def test_a_corpus_of_one_speaker_is_prepared_but_cannot_be_split(
    make: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "root")
    assert prepare_tree(make, tmp_path / "root") == 0
    capsys.readouterr()
    assert verify_main([str(tmp_path / "out"), "--protocol", "speaker-kfold:2"]) == 1
    printed = capsys.readouterr().out
    assert (
        "violation: Protocol speaker-kfold:2 needs 2 speakers or more, the corpus has 1." in printed
    )


@of_every_layout
def test_a_folder_that_cannot_be_read_is_one_line(
    make: Tree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Permissions do not stop root, which the tests may run as: the system call is refused.
    root = tmp_path / "root"
    make(root)
    closed = {
        "ravdess": "Actor_01",
        "crema_d": "AudioWAV",
        "iemocap": "Session1/sentences/wav/Ses01F_impro01",
    }
    refused = root / closed.get(make.__name__, "manifest.csv")
    scandir, open_file = os.scandir, builtins.open

    def refuse(path: object) -> None:
        if Path(str(path)) == refused:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path=".": (refuse(path), scandir(path))[1])
    monkeypatch.setattr(
        "io.open", lambda path, *a, **k: (refuse(path), open_file(path, *a, **k))[1]
    )
    assert prepare_tree(make, root) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: Cannot read '{refused}': Permission denied."


def test_a_file_in_a_folder_that_cannot_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sound(tmp_path / "a.wav")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(MediaError, match=r"^cannot be read: Permission denied$"):
        read_audio(path, 16_000)


def test_the_same_clip_in_two_places_is_named(tmp_path: Path) -> None:
    ravdess(tmp_path / "R")
    sound(tmp_path / "R" / "again" / "03-01-01-01-01-01-01.wav")
    sound(tmp_path / "R" / "again" / "03-01-03-01-01-01-01.flac")
    corpus = load_ravdess(tmp_path / "R")
    assert len(corpus.clips) == 3
    assert [(s.clip, s.reason) for s in corpus.skipped] == [
        (f"again/{name}", f"is there already: 'Actor_01/{stem}.wav'")
        for name, stem in (
            ("03-01-01-01-01-01-01.wav", "03-01-01-01-01-01-01"),
            ("03-01-03-01-01-01-01.flac", "03-01-03-01-01-01-01"),
        )
    ]
    crema_d(tmp_path / "C")
    sound(tmp_path / "C" / "Copy" / "1001_DFA_ANG_XX.wav")
    sound(tmp_path / "C" / "AudioMP3" / "1001_DFA_ANG_XX.mp3")  # as in the release
    reasons = {s.clip: s.reason for s in load_crema_d(tmp_path / "C").skipped}
    assert reasons == {
        "Copy/1001_DFA_ANG_XX.wav": "is there already: 'AudioWAV/1001_DFA_ANG_XX.wav'"
    }


def test_votes_without_a_file_are_named(tmp_path: Path) -> None:
    crema_d(tmp_path)
    rows = [f"1001_DFA_{code}_XX,{code[0]}" for code in ("ANG", "HAP", "SAD", "NEU")]
    (tmp_path / "summaryTable.csv").write_text("FileName,VoiceVote\n" + "\n".join(rows) + "\n")
    corpus = load_crema_d(tmp_path, target="voice")
    assert len(corpus.clips) == 3
    assert [(s.clip, s.reason) for s in corpus.skipped] == [
        ("1001_DFA_NEU_XX", "is in summaryTable.csv, but has no file")
    ]
    assert not load_crema_d(tmp_path).skipped  # their names say what the actors meant


def test_turns_of_a_dialogue_without_a_label_file_are_named(tmp_path: Path) -> None:
    iemocap(tmp_path)
    wav = tmp_path / "Session2" / "sentences" / "wav" / "Ses02F_impro01"
    sound(wav / "Ses02F_impro01_F000.wav")
    (wav / "._Ses02F_impro01_F000.wav").write_bytes(b"of a Mac")
    corpus = load_iemocap(tmp_path)
    assert len(corpus.clips) == 3
    assert [(s.clip, s.reason) for s in corpus.skipped] == [
        ("Ses02F_impro01_F000", "its dialogue has no label file 'Ses02F_impro01.txt'")
    ]
