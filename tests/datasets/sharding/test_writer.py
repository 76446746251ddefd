from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.clips import ClipRecord, Corpus, DataError
from datasets.prepare import main
from datasets.sharding import writer as module
from datasets.sharding.index import ShardIndex, read_index
from datasets.sharding.stream import Sample, stream_clips
from datasets.sharding.writer import ShardSettings, prepare

FOUR = ShardSettings(clips_per_shard=4)


class Stopped(Exception):
    """The interruption that a test makes."""


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stop(done: int, total: int) -> None:
    raise Stopped


def stop_while_decoding(patch: pytest.MonkeyPatch, clip: str) -> None:
    """The process ends when it comes to decode `clip`."""
    real = module.decode_record

    def decode(record: ClipRecord, settings: ShardSettings) -> Sample:
        if record.clip == clip:
            raise KeyboardInterrupt
        return real(record, settings)

    patch.setattr(module, "decode_record", decode)


def test_every_clip_is_in_the_shards_and_in_the_index(small_corpus: Corpus, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    index = prepare(
        small_corpus,
        tmp_path / "out",
        FOUR,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 12), (8, 12), (12, 12)]
    assert [shard.clips for shard in index.shards] == [4, 4, 4]
    assert index.corpus == "small"
    assert index.labels == ("glad", "sad")
    assert index.feature_names == ("up", "down")
    assert index == read_index(tmp_path / "out")
    # In the order of their names, as here.
    assert [(e.clip, e.speaker, e.label) for e in index.clips] == [
        (r.clip, r.speaker, r.label) for r in small_corpus.clips
    ]
    assert {(e.samples, e.frames, e.features) for e in index.clips} == {(800, 0, 2)}
    for shard in index.shards:
        tar = (tmp_path / "out" / shard.name).read_bytes()
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard.bytes, shard.sha256)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "index.json", "shard-00000.tar", "shard-00001.tar", "shard-00002.tar",
    ]  # fmt: skip


def test_what_was_decoded_comes_back(tiny_corpus: Corpus, tiny_index: ShardIndex) -> None:
    settings = ShardSettings()
    sample = next(iter(stream_clips(tiny_index)))
    (record,) = (r for r in tiny_corpus.clips if r.clip == sample["clip"])
    (entry,) = (e for e in tiny_index.clips if e.clip == sample["clip"])
    decoded = module.decode_record(record, settings)
    np.testing.assert_array_equal(sample["audio"], decoded["audio"])
    np.testing.assert_array_equal(sample["video"], decoded["video"])
    assert (entry.samples, entry.frames) == (len(decoded["audio"]), 20)
    assert sample["video"].shape == (20, 60, 100, 3)


def test_two_preparations_are_the_same_to_the_byte(small_corpus: Corpus, tmp_path: Path) -> None:
    prepare(small_corpus, tmp_path / "one", FOUR)
    prepare(small_corpus, tmp_path / "two", FOUR)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_pictures_too_are_prepared_the_same_twice(tiny_corpus: Corpus, tmp_path: Path) -> None:
    few = replace(tiny_corpus, clips=tiny_corpus.clips[:3])
    prepare(few, tmp_path / "one")
    prepare(few, tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_worker_processes_write_the_same_shards(small_corpus: Corpus, tmp_path: Path) -> None:
    prepare(small_corpus, tmp_path / "one", FOUR, workers=1)
    prepare(small_corpus, tmp_path / "two", FOUR, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_speakers_are_spread_over_the_shards(tiny_index: ShardIndex) -> None:
    for shard in tiny_index.shards:
        speakers = {e.speaker for e in tiny_index.clips if e.shard == shard.name}
        assert len(speakers) > 1


def test_media_that_cannot_be_read_are_left_out_and_named(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    empty, text, gone = (small_corpus.clips[n].audio for n in (0, 1, 2))
    assert empty and text and gone
    empty.write_bytes(b"")
    text.write_text("no sound")
    gone.unlink()
    prepare(small_corpus, tmp_path / "out", FOUR)
    document = json.loads((tmp_path / "out" / "index.json").read_text())
    reasons = {skipped["clip"]: skipped["reason"] for skipped in document["skipped"]}
    assert reasons.pop("ann-sad-1") == "'ann-sad-1.wav' no such file"
    assert reasons.pop("ann-glad-1") == "'ann-glad-1.wav' is empty"
    assert reasons.pop("ann-glad-2").startswith("'ann-glad-2.wav' cannot be decoded: ")
    assert reasons == {}
    assert document["summary"]["clips"] == 9
    assert len(list(stream_clips(read_index(tmp_path / "out")))) == 9


def test_a_clip_of_nothing_is_left_out(small_corpus: Corpus, tmp_path: Path) -> None:
    clips = (*small_corpus.clips, ClipRecord(clip="void", speaker="ann", label="sad"))
    index = prepare(replace(small_corpus, clips=clips), tmp_path / "out")
    assert [(s.clip, s.reason) for s in index.skipped] == [
        ("void", "has neither audio, video nor features")
    ]


def test_an_interrupted_preparation_is_taken_up(small_corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        prepare(small_corpus, out, FOUR, on_progress=stop)
    assert not (out / "index.json").exists()
    assert [path.name for path in out.glob("shard*")] == ["shard-00000.tar"]
    written = (out / "shard-00000.tar").stat().st_mtime_ns
    prepare(small_corpus, out, FOUR)
    assert (out / "shard-00000.tar").stat().st_mtime_ns == written
    prepare(small_corpus, tmp_path / "undisturbed", FOUR)
    assert content(out) == content(tmp_path / "undisturbed")


def test_half_a_shard_never_has_a_final_name(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    last = module._deal(small_corpus, 4)[1][-1].clip
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_while_decoding(patch, last)
        prepare(small_corpus, out, FOUR)
    assert sorted(path.name for path in out.iterdir()) == [".prepare", "shard-00000.tar"]
    prepare(small_corpus, out, FOUR)
    prepare(small_corpus, tmp_path / "undisturbed", FOUR)
    assert content(out) == content(tmp_path / "undisturbed")


def test_a_preparation_killed_before_its_first_shard_is_taken_up(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    # All that lies there if the process dies before it could say what it prepares.
    (tmp_path / "out" / ".prepare").mkdir(parents=True)
    prepare(small_corpus, tmp_path / "out", FOUR)
    assert len(read_index(tmp_path / "out").clips) == 12


def test_a_folder_of_something_else_is_refused(small_corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"'.*/out' is not empty\. Name another --out"):
        prepare(small_corpus, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_taken(small_corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert len(prepare(small_corpus, tmp_path / "out").clips) == 12


def test_a_prepared_folder_is_not_prepared_again(small_corpus: Corpus, tmp_path: Path) -> None:
    prepare(small_corpus, tmp_path / "out", FOUR)
    before = content(tmp_path / "out")
    with pytest.raises(DataError, match=r"already holds prepared shards\. Name another --out"):
        prepare(small_corpus, tmp_path / "out", FOUR)
    assert content(tmp_path / "out") == before


def changed_features(corpus: Corpus) -> Corpus:
    first = replace(corpus.clips[0], features=np.asarray([7, 7], np.float32))
    return replace(corpus, clips=(first, *corpus.clips[1:]))


def changed_label(corpus: Corpus) -> Corpus:
    return replace(corpus, clips=(replace(corpus.clips[0], label="sad"), *corpus.clips[1:]))


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (lambda corpus: corpus, replace(FOUR, sample_rate_hz=8_000)),
        (lambda corpus: corpus, replace(FOUR, frames=7)),
        (lambda corpus: replace(corpus, clips=corpus.clips[1:]), FOUR),
        (changed_features, FOUR),
        (changed_label, FOUR),
    ],
)
def test_an_unfinished_preparation_of_something_else_is_refused(
    small_corpus: Corpus,
    tmp_path: Path,
    change: Callable[[Corpus], Corpus],
    settings: ShardSettings,
) -> None:
    with pytest.raises(Stopped):
        prepare(small_corpus, tmp_path / "out", FOUR, on_progress=stop)
    with pytest.raises(
        DataError, match="unfinished preparation of another corpus or with other settings"
    ):
        prepare(change(small_corpus), tmp_path / "out", settings)


def test_a_corpus_of_which_nothing_can_be_read_is_refused(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    saved = {r.audio: r.audio.read_bytes() for r in small_corpus.clips if r.audio}
    for path in saved:
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"None of the 12 clips could be read\. First: .*: '.*\.wav' is empty"
    ):
        prepare(small_corpus, tmp_path / "out", FOUR)
    # Mended, the same command works: no report of the failure is left to be taken up.
    for path, sound in saved.items():
        path.write_bytes(sound)
    assert len(prepare(small_corpus, tmp_path / "out", FOUR).clips) == 12


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_a_place_that_cannot_be_written_is_named(
    small_corpus: Corpus, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(DataError, match=rf"Cannot write to '.*/{out}': Not a directory"):
        prepare(small_corpus, tmp_path / out)


def test_a_full_disk_is_a_data_error(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.sharding.writer.os.fsync", full)
    with pytest.raises(DataError, match=r"Cannot write to '.*/out': No space left on device"):
        prepare(small_corpus, tmp_path / "out")
    assert list((tmp_path / "out").glob("*.tar")) == []


def write_manifest(corpus: Corpus) -> Path:
    """The corpus as a user would hand it in; one clip is a copy of another."""
    first = corpus.clips[0].audio
    assert first is not None
    folder = first.parent
    (folder / "copy.wav").write_bytes(first.read_bytes())
    (folder / "bad.wav").touch()
    rows = [f"{r.clip},{r.speaker},{r.label},{r.clip}.wav" for r in corpus.clips]
    rows += ["zoe-copy,ann,glad,copy.wav", "zoe-bad,ann,glad,bad.wav"]
    (folder / "manifest.csv").write_text("clip,speaker,label,audio\n" + "\n".join(rows) + "\n")
    return folder


def test_the_command_reports_what_it_made(
    small_corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    root = write_manifest(small_corpus)
    assert main(["manifest", "--root", str(root), "--out", str(out), "--clips-per-shard", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"13 clips of 3 speakers in 2 shards: {out}",
        "classes: glad 7, sad 6",
        "with audio 13, video 0, features 0, feature_sequence 0",
        "same recording: ann-glad-1 = zoe-copy",
        "skipped 1 (all in index.json): zoe-bad: 'bad.wav' is empty",
    ]
    assert len(read_index(out).clips) == 13


def test_the_options_reach_the_shards(tmp_path: Path) -> None:
    settings = ["--sample-rate", "8000", "--frames", "3", "--frame-size", "12x20", "--workers", "1"]
    size = ["--speakers", "1", "--repetitions", "1", "--seed", "5"]
    place = ["--root", str(tmp_path / "media"), "--out", str(tmp_path / "out")]
    assert main(["synthetic", *place, *size, *settings]) == 0
    index = read_index(tmp_path / "out")
    assert (index.corpus, len(index.clips), index.sample_rate_hz) == ("synthetic", 6, 8_000)
    sample = next(iter(stream_clips(index)))
    assert sample["video"].shape == (3, 12, 20, 3)
    assert 1.2 * 8_000 <= len(sample["audio"]) <= 1.8 * 8_000


@pytest.mark.parametrize("corpus", ["ravdess", "manifest"])
def test_a_wrong_root_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus: str
) -> None:
    arguments = [corpus, "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: No ")
    assert "nowhere" in line
    assert not (tmp_path / "out").exists()


def test_a_root_that_cannot_be_written_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = ["--root", str(tmp_path / "file" / "media"), "--out", str(tmp_path / "out")]
    assert main(["synthetic", *place]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: Cannot write to '{tmp_path}/file/media': Not a directory."


def test_an_interrupted_command_says_how_to_go_on(
    small_corpus: Corpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["manifest", "--root", str(write_manifest(small_corpus))]
    arguments += ["--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        stop_while_decoding(patch, "cem-sad-2")
        assert main(arguments) == 130
    assert "the same command takes up where it stopped" in capsys.readouterr().err
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--frames", "0"], "expected a positive number, got '0'"),
        (["--frame-size", "60"], "expected HEIGHTxWIDTH such as 60x100, got '60'"),
        (["--frame-size", "0x9"], "expected HEIGHTxWIDTH such as 60x100, got '0x9'"),
        (["--sample-rate", "-1"], "expected a positive number, got '-1'"),
    ],
)
def test_senseless_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], message: str
) -> None:
    place = ["--root", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        main(["manifest", *place, *option])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
