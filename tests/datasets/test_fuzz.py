"""Damaged media and label files: whatever is done to them, a clip is in the index or named, and nothing crashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus
from datasets.prepare import main
from datasets.sharding.index import read_index
from datasets.sharding.writer import ShardSettings, prepare

WriteVideo = Callable[..., Path]
Generator = np.random.Generator
Mutation = Callable[[bytes, bytes, Generator], bytes]
"""Content, another file's content, chance → what is written instead."""

SMALL = ShardSettings(frames=3, frame_size=(8, 8), clips_per_shard=32)
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".aiff")
CONTAINERS = (".mp4", ".mkv", ".avi", ".mov", ".mpg", ".flv", ".webm", ".m4v", ".3gp")
SEEDS = range(2)


def flip_bits(content: bytes, other: bytes, chance: Generator) -> bytes:
    data = bytearray(content)
    for place in chance.integers(0, len(data), int(chance.integers(1, 20))):
        data[place] ^= 1 << int(chance.integers(8))
    return bytes(data)


def damage_header(content: bytes, other: bytes, chance: Generator) -> bytes:
    data = bytearray(content)
    for place in chance.integers(0, min(len(data), 100), 4):
        data[place] = int(chance.choice([0, 0x7F, 0x80, 0xFF]))
    return bytes(data)


def truncate(content: bytes, other: bytes, chance: Generator) -> bytes:
    return content[: int(chance.integers(0, len(content)))]


def take_header_of_another(content: bytes, other: bytes, chance: Generator) -> bytes:
    size = int(chance.integers(4, 64))
    return other[:size] + content[size:]


def zero_a_run(content: bytes, other: bytes, chance: Generator) -> bytes:
    start = int(chance.integers(0, len(content)))
    size = int(chance.integers(1, len(content)))
    return content[:start] + bytes(min(size, len(content) - start)) + content[start + size :]


def remove_a_run(content: bytes, other: bytes, chance: Generator) -> bytes:
    start = int(chance.integers(0, len(content)))
    return content[:start] + content[start + int(chance.integers(1, 400)) :]


def insert_noise(content: bytes, other: bytes, chance: Generator) -> bytes:
    start = int(chance.integers(0, len(content)))
    return content[:start] + chance.bytes(int(chance.integers(1, 400))) + content[start:]


def be_another(content: bytes, other: bytes, chance: Generator) -> bytes:
    """A wrong extension."""
    return other


def repeat_a_run(content: bytes, other: bytes, chance: Generator) -> bytes:
    start = int(chance.integers(0, len(content)))
    return content[: start + 300] + content[start:]


MEDIA_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, damage_header, truncate, take_header_of_another, zero_a_run, remove_a_run, insert_noise,
    be_another, repeat_a_run,
)  # fmt: skip


@pytest.fixture()
def originals(tmp_path: Path, write_video: WriteVideo) -> dict[str, bytes]:
    """A small intact file of every usual format."""
    chance = np.random.default_rng(0)
    noise = chance.integers(-9000, 9000, 4000).astype(np.int16)
    found: dict[str, bytes] = {}
    for suffix in SOUNDS:
        soundfile.write(tmp_path / f"whole{suffix}", noise, 16_000)
        found[suffix] = (tmp_path / f"whole{suffix}").read_bytes()
    frames: NDArray[np.uint8] = chance.integers(0, 255, (8, 32, 48, 3)).astype(np.uint8)
    for suffix in CONTAINERS:
        if suffix in (".mpg", ".webm"):
            found[suffix] = _other_codec(tmp_path / f"whole{suffix}", frames)
            continue
        sound = None if suffix in (".flv", ".3gp") else noise
        found[suffix] = write_video(f"whole{suffix}", frames, sound=sound).read_bytes()
    return found


def _other_codec(path: Path, frames: NDArray[np.uint8]) -> bytes:
    import av

    codec, rate = ("mpeg1video", 25) if path.suffix == ".mpg" else ("libvpx", 10)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def damaged(originals: dict[str, bytes], folder: Path) -> list[ClipRecord]:
    """Every format under every mutation, with every seed; and one intact file of each."""
    folder.mkdir()
    records = []
    for number, (suffix, content) in enumerate(originals.items()):
        cases = [(m, seed) for m in MEDIA_MUTATIONS for seed in SEEDS]
        for mutation, seed in [(None, 0), *cases]:
            what = f"{mutation.__name__ if mutation else 'intact'}-{seed}"
            chance = np.random.default_rng([number, seed, len(what)])
            other = list(originals.values())[int(chance.integers(len(originals)))]
            path = folder / f"{what}{suffix}"
            path.write_bytes(mutation(content, other, chance) if mutation else content)
            pictures = path if suffix in CONTAINERS else None
            # Sound alone, pictures alone, and both: each file is decoded in the way it is made for.
            silent = suffix in (".flv", ".3gp", ".mpg", ".webm")
            records.append(
                ClipRecord(
                    clip=path.name, speaker=f"s{seed}", label="sad",
                    audio=None if silent else path, video=pictures,
                )
            )  # fmt: skip
    return records


def test_damaged_media_are_decoded_or_left_out_and_named(
    originals: dict[str, bytes], tmp_path: Path
) -> None:
    records = damaged(originals, tmp_path / "damaged")
    assert len(records) >= 250
    corpus = Corpus(name="damaged", labels=("sad",), clips=tuple(records))
    # In worker processes: a decoder that crashes ends one of them, and the clip's reason says so.
    index = prepare(corpus, tmp_path / "out", SMALL, workers=2)
    kept = {entry.clip for entry in index.clips}
    reasons = {skipped.clip: skipped.reason for skipped in index.skipped}
    assert kept | set(reasons) == {record.clip for record in records}
    assert not kept & set(reasons)
    assert {f"intact-0{suffix}" for suffix in originals} <= kept
    assert len(reasons) > len(records) / 5, "the damage is worth the name"
    for clip, reason in reasons.items():
        assert f"'{clip}'" in reason and "\n" not in reason, reason
    assert [reason for reason in reasons.values() if "ends the process" in reason] == []


def cut_a_line(text: bytes, other: bytes, chance: Generator) -> bytes:
    lines = text.split(b"\n")
    row = int(chance.integers(len(lines)))
    lines[row] = lines[row][: int(chance.integers(0, len(lines[row]) + 1))]
    return b"\n".join(lines)


def drop_a_line(text: bytes, other: bytes, chance: Generator) -> bytes:
    lines = text.split(b"\n")
    del lines[int(chance.integers(len(lines)))]
    return b"\n".join(lines)


def repeat_a_line(text: bytes, other: bytes, chance: Generator) -> bytes:
    lines = text.split(b"\n")
    lines.insert(int(chance.integers(len(lines))), lines[int(chance.integers(len(lines)))])
    return b"\n".join(lines)


def _fields(text: bytes, chance: Generator) -> tuple[list[bytes], int, bytes, list[bytes]]:
    """Lines, the number of one that is not empty, what separates its fields, and these."""
    lines = text.split(b"\n")
    row = int(chance.choice([n for n, line in enumerate(lines) if line]))
    mark = b"," if b"," in lines[row] and not lines[row].startswith(b"[") else b"\t"
    return lines, row, mark, lines[row].split(mark)


def swap_fields(text: bytes, other: bytes, chance: Generator) -> bytes:
    lines, row, mark, fields = _fields(text, chance)
    one, two = chance.integers(0, len(fields), 2)
    fields[one], fields[two] = fields[two], fields[one]
    lines[row] = mark.join(fields)
    return b"\n".join(lines)


STRANGE = (
    b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"-1", b"", b" ", b'"', b'""', b'"a', b"\0", b"\xe9",
    b"\xff\xfe", "\ufeff".encode(), "\ufeffa".encode(), b"9" * 5000, b"x" * 140_000, b"../../etc/passwd",
    b"/etc/passwd", b".", b"..", b"a;b", b"=1+1", b"\r", b"1_0", "٣".encode(), b"0x10", b"," * 500, b"[", b"None",
)  # fmt: skip


def put_something_strange(text: bytes, other: bytes, chance: Generator) -> bytes:
    lines, row, mark, fields = _fields(text, chance)
    fields[int(chance.integers(len(fields)))] = STRANGE[int(chance.integers(len(STRANGE)))]
    lines[row] = mark.join(fields)
    return b"\n".join(lines)


def encode_otherwise(text: bytes, other: bytes, chance: Generator) -> bytes:
    return text.decode().encode(str(chance.choice(["utf-16", "utf-8-sig", "utf-32", "cp037"])))


def end_lines_otherwise(text: bytes, other: bytes, chance: Generator) -> bytes:
    return text.replace(b"\n", [b"\r\n", b"\r", b"\n\n", b"\0\n"][int(chance.integers(4))])


def separate_otherwise(text: bytes, other: bytes, chance: Generator) -> bytes:
    return text.replace(b",", [b";", b"\t", b", ", b",,"][int(chance.integers(4))])


TEXT_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, truncate, zero_a_run, be_another, cut_a_line, drop_a_line, repeat_a_line, swap_fields,
    put_something_strange, put_something_strange, put_something_strange, put_something_strange,
    encode_otherwise, end_lines_otherwise, separate_otherwise,
)  # fmt: skip


@pytest.fixture()
def sound(tmp_path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(-9000, 9000, 400).astype(np.int16)
    soundfile.write(tmp_path / "sound.wav", noise, 16_000)
    return (tmp_path / "sound.wav").read_bytes()


def manifest_tree(root: Path, sound: bytes) -> tuple[Path, list[str]]:
    rows = ["clip,speaker,label,audio,start,end,feature:AU01,age"]
    for number in range(6):
        (root / f"{number}.wav").write_bytes(sound)
        rows.append(
            f"c{number},s{number % 2},{('sad', 'glad')[number % 3 > 0]},{number}.wav,0,0.02,{number}.5,30"
        )
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root / "manifest.csv", ["manifest"]


def features_tree(root: Path, sound: bytes) -> tuple[Path, list[str]]:
    manifest_tree(root, sound)
    text = (root / "manifest.csv").read_text().replace("feature:", "")
    (root / "manifest.csv").write_text(text)
    rows = [f"c{n},{f},{n}.25,-1e-3" for n in range(6) for f in range(3)]
    (root / "table.csv").write_text("\n".join(["clip,frame,AU01,AU12", *rows]) + "\n")
    return root / "table.csv", ["manifest", "--features", str(root / "table.csv")]


def openface_tree(root: Path, sound: bytes) -> tuple[Path, list[str]]:
    features_tree(root, sound)
    (root / "faces").mkdir()
    for number in range(6):
        rows = [f"{f + 1}, 0, {f / 25}, 0.9, {int(f != 1)}, 0.{number}, 1.5" for f in range(4)]
        header = "frame, face_id, timestamp, confidence, success, AU01_r, AU12_c"
        (root / "faces" / f"c{number}.csv").write_text("\n".join([header, *rows]) + "\n")
    return root / "faces" / "c3.csv", ["manifest", "--features", str(root / "faces")]


def iemocap_tree(root: Path, sound: bytes) -> tuple[Path, list[str]]:
    labels = root / "Session1" / "dialog" / "EmoEvaluation"
    wav = root / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    labels.mkdir(parents=True)
    wav.mkdir(parents=True)
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for number, code in enumerate(("ang", "hap", "neu", "sad", "xxx", "exc")):
        clip = f"Ses01F_impro01_{'FM'[number % 2]}{number:03d}"
        lines.append(f"[{number}.2901 - {number}.9500]\t{clip}\t{code}\t[2.5000, 2.5000, 2.5000]")
        lines += ["C-E2:\tNeutral;\t()", ""]
        (wav / f"{clip}.wav").write_bytes(sound)
    (labels / "Ses01F_impro01.txt").write_text("\n".join(lines) + "\n")
    return labels / "Ses01F_impro01.txt", ["iemocap"]


def crema_d_tree(
    root: Path, sound: bytes, file: str = "summaryTable.csv"
) -> tuple[Path, list[str]]:
    votes = [
        '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"'
    ]
    for number, code in enumerate(("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")):
        clip = f"{1001 + number % 2}_DFA_{code}_XX"
        (root / f"{clip}.wav").write_bytes(sound)
        votes.append(f'"{number}","{clip}","{code[0]}","60","N","70","{code[0]}","80"')
    (root / "summaryTable.csv").write_text("\n".join(votes) + "\n")
    people = [
        "ActorID,Age,Sex,Race,Ethnicity",
        "1001,51,Male,Caucasian,Not Hispanic",
        "1002,21,Female,x,y",
    ]
    (root / "VideoDemographics.csv").write_text("\n".join(people) + "\n")
    return root / file, ["crema_d", "--target", "both"]


def demographics_tree(root: Path, sound: bytes) -> tuple[Path, list[str]]:
    return crema_d_tree(root, sound, "VideoDemographics.csv")


TREES = (
    manifest_tree, features_tree, openface_tree, iemocap_tree, crema_d_tree, demographics_tree,
)  # fmt: skip


@pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__.removesuffix("_tree"))
def test_damaged_label_files_end_in_an_index_or_in_one_line(
    make: Callable[..., tuple[Path, list[str]]],
    sound: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "root").mkdir()
    file, arguments = make(tmp_path / "root", sound)
    original = file.read_bytes()
    out = tmp_path / "out"
    codes = []
    for number, mutation in enumerate(TEXT_MUTATIONS * 2):
        chance = np.random.default_rng([number, len(make.__name__)])
        file.write_bytes(mutation(original, sound, chance))
        call = [*arguments, "--root", str(tmp_path / "root"), "--out", str(out), "--workers", "1"]
        code = main(call)
        printed = capsys.readouterr()
        said = f"{mutation.__name__} {number}: {printed.err}"
        codes.append(code)
        if code == 2:
            first, *more = printed.err.splitlines()
            assert first.startswith("error: "), said
            assert all(line.startswith("  ") for line in more), said  # the manifest's rows
            assert len(printed.err) < 20_000, said
        else:
            assert code == 0, said
            index = read_index(out)
            named = " ".join(skipped.clip for skipped in index.skipped)
            clips = {entry.clip for entry in index.clips}
            for path in (tmp_path / "root").rglob("*.wav"):
                if make in (iemocap_tree, crema_d_tree, demographics_tree):
                    assert path.stem in clips or path.stem in named, said
            shutil.rmtree(out)
        assert not (out / "index.json").exists()
        shutil.rmtree(out, ignore_errors=True)
    assert {*codes} == {0, 2}, "some damage is harmless, some is not"
