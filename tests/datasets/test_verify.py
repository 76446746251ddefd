from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets.clips import ClipRecord, Corpus
from datasets.index import ShardIndex, read_index, write_index
from datasets.prepare import prepare
from datasets.stream import stream_clips
from datasets.verify import main, verify

ChangeMember = Callable[[Path, str, Callable[[bytes], bytes]], None]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def test_a_clean_corpus_passes(small_index: ShardIndex, capsys: pytest.CaptureFixture[str]) -> None:
    findings = verify(small_index)
    assert findings.violations == []
    assert findings.clips == 12
    assert findings.notes == ["protocol speaker-kfold:3: 3 folds of 4/4/4 clips"]
    assert main([small_index.root]) == 0
    printed = capsys.readouterr().out
    assert "small: 12 clips, 3 speakers" in printed
    assert printed.splitlines()[-1] == "ok"


def test_a_corpus_of_sound_and_pictures_passes(tiny_index: ShardIndex) -> None:
    findings = verify(tiny_index)
    assert (findings.violations, findings.clips) == ([], 24)


def test_one_flipped_byte_is_found(
    small_index: ShardIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = Path(small_index.root) / "shard-00001.tar"
    flip(shard, shard.stat().st_size // 2)
    assert main([small_index.root]) == 1
    printed = capsys.readouterr().out
    assert "violation: shard 'shard-00001.tar' does not match its checksum" in printed
    assert "violations" in printed.splitlines()[-1]


def test_a_clip_that_cannot_be_decoded_is_named(
    small_index: ShardIndex, change_member: ChangeMember
) -> None:
    shard = Path(small_index.root) / "shard-00001.tar"
    change_member(shard, "0000100002.flac", lambda content: content[:-3] + b"xyz")
    checksum, corrupt, lost = verify(small_index).violations
    assert checksum == "shard 'shard-00001.tar' does not match its checksum"
    assert corrupt.startswith(f"clip 0000100002 in shard '{shard}': ")
    assert lost.startswith("1 clips of the index are in no shard: ")


def test_a_clip_of_other_content_is_named(
    small_index: ShardIndex, change_member: ChangeMember
) -> None:
    shard = Path(small_index.root) / "shard-00001.tar"
    one = replace(small_index, shards=small_index.shards[1:2])
    third = [sample["clip"] for sample in stream_clips(one)][2]
    change_member(shard, "0000100002.features.npy", lambda c: c[:-4] + np.float32(77).tobytes())
    assert verify(small_index).violations == [
        "shard 'shard-00001.tar' does not match its checksum",
        f"clip '{third}' is not what the index says",
    ]


def test_a_lost_shard_is_found(small_index: ShardIndex) -> None:
    (Path(small_index.root) / "shard-00002.tar").unlink()
    findings = verify(small_index)
    assert findings.violations[0].startswith("shard 'shard-00002.tar' cannot be read: ")
    lost = [entry.clip for entry in small_index.clips if entry.shard == "shard-00002.tar"]
    assert findings.violations[-1] == f"4 clips of the index are in no shard: {', '.join(lost)}"


def test_a_shard_that_holds_clips_twice_is_found(small_index: ShardIndex) -> None:
    twice = replace(small_index, shards=(*small_index.shards, small_index.shards[0]))
    write_index(twice, Path(small_index.root))
    findings = verify(read_index(small_index.root))
    names = {e.clip for e in small_index.clips if e.shard == small_index.shards[0].name}
    (violation,) = findings.violations
    assert violation.startswith("4 clips are in the shards twice: ")
    assert set(violation.partition(": ")[2].split(", ")) == names


def test_a_leak_is_a_violation(
    small_corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Cem's clip is Ann's recording.
    one, other = small_corpus.clips[0], small_corpus.clips[-1]
    clips = (*small_corpus.clips[:-1], replace(other, audio=one.audio))
    index = prepare(replace(small_corpus, clips=clips), tmp_path / "out")
    findings = verify(index)
    assert "same recording: ann-glad-1 = cem-sad-2" in findings.notes
    (violation,) = findings.violations
    assert violation.startswith("Leak: 'ann-glad-1' (ann) and 'cem-sad-2' (cem) are the same")
    assert main([index.root]) == 1
    assert "Leak" in capsys.readouterr().out


def test_silent_and_clipped_sound_is_noted(small_corpus: Corpus, tmp_path: Path) -> None:
    quiet, loud = small_corpus.clips[0].audio, small_corpus.clips[1].audio
    assert quiet and loud
    soundfile.write(quiet, np.full(800, 32, np.int16), 16_000)
    soundfile.write(loud, np.full(800, -32768, np.int16), 16_000)
    findings = verify(prepare(small_corpus, tmp_path / "out"))
    assert findings.violations == []
    assert findings.notes[:2] == [
        "1 clips are silent (peak below -60 dB): ann-glad-1",
        "1 clips are clipped: ann-glad-2",
    ]


def test_what_some_clips_lack_is_noted(small_corpus: Corpus, tmp_path: Path) -> None:
    deaf = replace(small_corpus.clips[0], audio=None)
    index = prepare(replace(small_corpus, clips=(deaf, *small_corpus.clips[1:])), tmp_path / "out")
    assert "1 clips have no audio" in verify(index).notes


def test_counts_that_differ_from_those_published_are_noted(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    clips = tuple(
        ClipRecord(clip=r.clip, speaker=r.speaker, label="calm", audio=r.audio)
        for r in small_corpus.clips
    )
    index = prepare(Corpus(name="ravdess", labels=("calm",), clips=clips), tmp_path / "out")
    notes = verify(index).notes
    assert "class 'neutral' has 0 clips, published: 96" in notes
    assert "class 'calm' has 12 clips, published: 192" in notes


def test_another_protocol_can_be_asked_for(
    small_index: ShardIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([small_index.root, "--protocol", "speaker-kfold:2"]) == 0
    assert "protocol speaker-kfold:2: 2 folds of 8/4 clips" in capsys.readouterr().out
    assert main([small_index.root, "--protocol", "ravdess-luna5"]) == 1


def test_a_folder_that_is_not_prepared_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: No index.json in '{tmp_path}'. Make shards with: ")


@pytest.mark.parametrize("harm", [False, True])
def test_json_says_the_same(
    small_index: ShardIndex, capsys: pytest.CaptureFixture[str], harm: bool
) -> None:
    if harm:
        flip(Path(small_index.root) / "shard-00000.tar", -1)  # padding: every clip is intact
    assert main([small_index.root, "--json"]) == int(harm)
    report = json.loads(capsys.readouterr().out)
    assert report["clips"] == 12
    assert report["per_class"] == {"glad": 6, "sad": 6}
    assert report["skipped"] == 0
    assert report["violations"] == (
        ["shard 'shard-00000.tar' does not match its checksum"] if harm else []
    )


def test_brackets_in_a_name_are_printed_as_they_are(
    small_corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # rich reads [red] and [/a] as markup; the second would end the program.
    first, second = small_corpus.clips[:2]
    odd = (replace(first, clip="[red]x"), replace(second, clip="y[/a]", audio=first.audio))
    index = prepare(replace(small_corpus, clips=(*odd, *small_corpus.clips[2:])), tmp_path / "out")
    assert main([index.root]) == 0
    assert "same recording: [red]x = y[/a]" in capsys.readouterr().out
