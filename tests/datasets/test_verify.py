from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from rich.console import Console

from datasets.checks.class_counts import describe_speakers, print_table
from datasets.clips import ClipRecord, Corpus
from datasets.sharding.index import ShardIndex, read_index, write_index
from datasets.sharding.stream import stream_clips
from datasets.sharding.writer import prepare
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


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Four speakers, one of them for tests; of ann's pictures one is frozen, one black, one too short."""
    tmp_path = tmp_path_factory.mktemp("doubtful")
    generator = np.random.default_rng(0)
    clips = []
    for number, speaker in enumerate(("ann", "bob", "cem", "dan")):
        for label in ("glad", "sad"):
            for take in (1, 2):
                name = f"{speaker}-{label}-{take}"
                moving = generator.integers(0, 255, (10, 4, 6, 3), dtype=np.uint8)
                pictures = {
                    "ann-glad-1": moving[:1].repeat(10, axis=0),
                    "ann-glad-2": moving * 0,
                    "ann-sad-1": moving[:4],
                }.get(name, moving)
                rate_hz = 8_000 if name == "ann-sad-2" else 16_000
                sound = generator.integers(-9000, 9000, rate_hz).astype(np.int16)
                soundfile.write(tmp_path / f"{name}.wav", sound, rate_hz)
                with av.open(str(tmp_path / f"{name}.mkv"), "w") as container:
                    stream = container.add_stream("libx264", rate=10)
                    stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
                    for image in pictures.repeat(8, axis=1).repeat(8, axis=2):
                        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                        container.mux(stream.encode(frame))
                    container.mux(stream.encode(None))
                clips.append(
                    ClipRecord(
                        clip=name,
                        speaker=speaker,
                        label=label,
                        audio=tmp_path / f"{name}.wav",
                        video=tmp_path / f"{name}.mkv",
                        attributes={"split": "test" if number == 3 else "train"},
                        votes={"glad": 0.5, "sad": 0.5} if name == "bob-sad-1" else {},
                    )
                )
    corpus = Corpus(name="doubtful", labels=("glad", "sad"), clips=tuple(clips))
    return prepare(corpus, tmp_path / "shards")


def test_what_is_doubtful_is_counted_and_named(doubtful: ShardIndex) -> None:
    findings = verify(doubtful)
    assert findings.violations == []
    assert findings.notes == [
        "1 clips have pictures that never change: ann-glad-1",
        "1 clips have black pictures: ann-glad-2",
        "1 clips have sound and pictures of different length: ann-sad-1 (1.00 and 0.40 s)",
        "1 clips have video of unusual length: ann-sad-1 (0.40 s)",
        "1 clips were recorded at less than 16000 Hz: ann-sad-2",
        "protocol manifest-split: 3 folds of 4/4/4 clips; 4 clips of 1 test speakers are in none",
    ]


def test_json_has_every_count(doubtful: ShardIndex, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([doubtful.root, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["per_class"] == {"glad": 8, "sad": 8}
    assert report["per_speaker"] == {"ann": 4, "bob": 4, "cem": 4, "dan": 4}
    assert report["per_speaker_and_class"]["cem"] == {"glad": 2, "sad": 2}
    assert report["protocol"] == "manifest-split"
    assert set(report["per_fold"]) == {"0", "1", "2", "test"}
    assert report["per_fold"]["test"] == {
        "clips": 4, "speakers": ["dan"], "per_class": {"glad": 2, "sad": 2},
    }  # fmt: skip
    assert report["durations"]["audio"] == {
        "min": 1.0, "median": 1.0, "max": 1.0, "sum": 16.0, "outliers": {},
    }  # fmt: skip
    assert report["durations"]["video"]["outliers"] == {"ann-sad-1": 0.4}
    assert report["source_rates_hz"] == {"8000": 1, "16000": 15}
    assert (report["frozen"], report["black"]) == (["ann-glad-1"], ["ann-glad-2"])
    assert (report["silent"], report["clipped"]) == ([], [])
    assert report["drifting"] == {"ann-sad-1": {"audio": 1.0, "video": 0.4}}
    assert report["published"] == report["differs_from_published"] == {}
    assert (report["violations"], len(report["notes"])) == ([], 6)


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_the_tables_fit_the_terminal(
    doubtful: ShardIndex,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: str,
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert main([doubtful.root]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if not line.startswith(("note", "with", "audio", "video"))]
    assert max(map(len, table)) <= int(width)
    assert [line.split() for line in table if line.split()[:1] in (["ann"], ["glad"], ["all"])] == [
        ["glad", "8", "2", "2", "2", "2"],
        ["all", "16", "4", "4", "4", "4"],
        ["ann", "4", "2", "2"],
    ]


def test_headings_are_shortened_before_anything_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["speaker", "clips", *(f"emotion{n}" for n in range(8))], ["Actor_01", *["9"] * 9]]
    for width, wanted in (
        (120, "emotion7"),
        (84, "emotio"),
        (66, "emot"),
        (40, "too many for this"),
    ):
        print_table(Console(width=width), rows, "clips of each speaker")
        printed = capsys.readouterr().out
        assert wanted in printed
        assert ("Actor_01" in printed) == (width > 40)


def test_of_many_speakers_the_table_says_the_spread() -> None:
    rows = [[f"s{n}", str(4 + n), "4", str(n) if n else "–"] for n in range(40)]
    assert describe_speakers(rows) == (
        "4 to 43 clips a speaker, median 24; 1 speakers have no clip of some class: s0 (--json has all)"
    )


def test_shards_of_before_are_read(small_index: ShardIndex) -> None:
    path = Path(small_index.root) / "index.json"
    document = json.loads(path.read_text())
    for clip in document["clips"]:
        for name in ("votes", "video_seconds", "source_rate_hz"):
            clip.pop(name, None)
    path.write_text(json.dumps(document))
    index = read_index(small_index.root)
    assert {(e.video_seconds, e.source_rate_hz) for e in index.clips} == {(0.0, 0)}
    assert verify(index).violations == []
