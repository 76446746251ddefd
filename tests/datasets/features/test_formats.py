"""Tables of features other than our CSV, and folders of files of one clip each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from datasets.clips import Corpus, DataError
from datasets.features import FeatureTable, read_features, with_features
from datasets.features.text import read_rows, read_table
from datasets.prepare import main
from datasets.sharding.index import read_index
from datasets.verify import verify

ONE_A_CLIP = {"ann": [0.5, -2.0], "bob": [1e-3, 4.0]}
FRAMES = {"ann": [[1.0, 2.0], [3.0, 4.0]], "bob": [[7.0, 8.0]]}
OPENSMILE_HEAD = """@relation openSMILE_features

@attribute name string
@attribute frameTime numeric
@attribute F0semitone_sma3nz_amean numeric
@attribute 'loudness sma3' numeric
@attribute class {happy,sad}

@data

"""


def lists(table: FeatureTable) -> dict[str, Any]:
    return {clip: values.tolist() for clip, values in table.rows.items()}


def as_float32(wanted: dict[str, Any]) -> dict[str, Any]:
    return {clip: np.asarray(values, np.float32).tolist() for clip, values in wanted.items()}


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def write_text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


TABLES: dict[str, Callable[[Path], Path]] = {
    "parquet": lambda d: write_parquet(
        d / "t.parquet", up=[0.5, 1e-3], clip=["ann", "bob"], down=pa.array([-2, 4], pa.int8())
    ),
    "npz": lambda d: write_npz(
        d / "t.npz", clips=["ann", "bob"], features=list(ONE_A_CLIP.values()), names=["up", "down"]
    ),
    "semicolons": lambda d: write_text(d / "t.csv", "clip;up;down\nann;0.5;-2\nbob;1e-3;4\n"),
    "tabs": lambda d: write_text(d / "t.tsv", "clip\tup\tdown\nann\t0.5\t-2\nbob\t1e-3\t4\n"),
    "openSMILE's CSV": lambda d: write_text(
        d / "t.csv", "name;frameTime;up;down\n'/a/ann.wav';0;0.5;-2\n'bob';0;1e-3;4\n"
    ),
    "openSMILE's package": lambda d: write_text(
        d / "t.csv",
        "file,start,end,up,down\n/a/ann.wav,0 days,0 days 00:00:02,0.5,-2\nbob.mp4,0 days,1 days,1e-3,4\n",
    ),
    "ARFF": lambda d: write_text(
        d / "t.arff",
        "% made by hand\n@RELATION r\n@attribute 'name' string\n@attribute up REAL\n"
        "@attribute down numeric\n@attribute class numeric\n@DATA\n"
        "'ann',0.5,-2,?\n% a remark\n\n'bob.wav',1e-3, 4,?\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_every_format_gives_a_row_a_clip(tmp_path: Path, kind: str) -> None:
    table = read_features(TABLES[kind](tmp_path))
    assert table.names == ("up", "down")
    assert lists(table) == as_float32(ONE_A_CLIP)
    assert all(values.dtype == np.float32 for values in table.rows.values())


SEQUENCES: dict[str, Callable[[Path], Path]] = {
    "parquet": lambda d: write_parquet(
        d / "t.parquet", frame=[1, 0, 0], clip=["ann", "bob", "ann"], x=[3.0, 7, 1], y=[4.0, 8, 2]
    ),
    "npz": lambda d: write_npz(
        d / "t.npz",
        clips=np.asarray([b"ann", b"bob", b"ann"]),
        features=[[3.0, 4], [7, 8], [1, 2]],
        frames=[0.2, 0, 0.1],
    ),
    "npz by clip": lambda d: write_npz(d / "t.npz", **FRAMES),
    "openSMILE's CSV": lambda d: write_text(
        d / "t.csv", "name;frameTime;x;y\nann;0.01;3;4\nann;0;1;2\nbob;0;7;8\n"
    ),
    "openSMILE's package": lambda d: write_text(
        d / "t.csv", "file,start,end,x,y\nann.wav,0,1,1,2\nann.wav,1,2,3,4\nbob.wav,0,1,7,8\n"
    ),
    "ARFF": lambda d: write_text(
        d / "t.arff",
        "@relation r\n@attribute name string\n@attribute frameIndex numeric\n@attribute frameTime numeric\n"
        "@attribute x numeric\n@attribute y numeric\n@attribute class {a,b}\n@data\n"
        "ann,1,0.01,3,4,a\nann,0,0,1,2,a\nbob,0,0,7,8,b\n",
    ),
    "a folder of npy": lambda d: [np.save(d / f"{c}.npy", v) for c, v in FRAMES.items()] and d,
    "a folder of npz": lambda d: [np.savez(d / f"{c}.npz", v) for c, v in FRAMES.items()] and d,
    "a folder of CSV": lambda d: [
        np.savetxt(d / f"{c}.csv", v, delimiter=",", header="x,y", comments="")
        for c, v in FRAMES.items() if c == "ann"
    ] and write_text(d / "bob.csv", "frame,x,y\n0,7,8\n").parent,
    "a folder of Parquet": lambda d: [
        write_parquet(d / f"{c}.parquet", frame=range(len(v)), x=[r[0] for r in v], y=[r[1] for r in v])
        for c, v in FRAMES.items()
    ] and d,
}  # fmt: skip


@pytest.mark.parametrize("kind", SEQUENCES)
def test_every_format_gives_a_row_a_frame_in_order(tmp_path: Path, kind: str) -> None:
    assert lists(read_features(SEQUENCES[kind](tmp_path))) == FRAMES


def test_an_arff_of_opensmiles_is_read_without_its_class(tmp_path: Path) -> None:
    path = write_text(tmp_path / "e.arff", OPENSMILE_HEAD + "'its.wav',0.0,1,2,?\n'b',0,3,4,sad\n")
    table = read_features(path)
    assert table.names == ("F0semitone_sma3nz_amean", "loudness sma3")
    assert lists(table) == {"its": [1, 2], "b": [3, 4]}


@pytest.mark.parametrize("fixed", [True, False])
def test_a_parquet_column_of_lists_is_an_embedding(tmp_path: Path, fixed: bool) -> None:
    kind = pa.list_(pa.float32(), 3) if fixed else pa.list_(pa.float64())
    column = pa.array([[1, 2, 3], [4, 5, 6]], kind)
    table = read_features(
        write_parquet(tmp_path / "e.parquet", clip=["ann", "bob"], wav2vec=column)
    )
    assert table.names == ("wav2vec_0", "wav2vec_1", "wav2vec_2")
    assert lists(table) == {"ann": [1, 2, 3], "bob": [4, 5, 6]}


def test_a_folder_may_hold_vectors(tmp_path: Path) -> None:
    (tmp_path / "session1").mkdir()
    np.save(tmp_path / "session1" / "ann.npy", np.float64([1, 2]))
    np.save(tmp_path / "bob.npy", np.float16([3, 4]))
    np.save(tmp_path / "._bob.npy", np.float16([3, 4]))  # as macOS leaves them
    table = read_features(tmp_path)
    assert table.names == ("feature_0", "feature_1")
    assert lists(table) == {"bob": [3, 4], "ann": [1, 2]}


def test_a_folder_of_opensmiles_files_takes_clips_from_the_files_names(tmp_path: Path) -> None:
    for clip, first in (("ann", 1), ("bob", 5)):
        write_text(tmp_path / f"{clip}.arff", OPENSMILE_HEAD + f"'unknown',0,{first},2,?\n")
    assert lists(read_features(tmp_path)) == {"ann": [1, 2], "bob": [5, 2]}


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a kind that is none": (
        lambda d: write_text(d / "t.xlsx", "x"),
        r"t\.xlsx' is of a kind that is not read as a table of features\. Known: \.csv, .*\.arff, or a folder",
    ),
    "npy names no clips": (lambda d: np.save(d / "t.npy", [1.0]) or d / "t.npy", "is of a kind"),
    "an empty folder": (lambda d: d, "No file of features under"),
    "objects in npz": (
        lambda d: write_npz(d / "t.npz", ann=np.asarray([{}], object)),
        r"t\.npz' is not readable as npz: Object arrays cannot be loaded",
    ),
    "no npz": (lambda d: write_text(d / "t.npz", "nothing"), r"t\.npz' is not readable as npz"),
    "text in npz": (lambda d: write_npz(d / "t.npz", ann=["x"]), "'ann' is of <U1, not numbers"),
    "a cube in npz": (
        lambda d: write_npz(d / "t.npz", ann=np.zeros((1, 2, 3))),
        r"'ann' has the shape \(1, 2, 3\); a clip's features are \(F,\) or \(S, F\)",
    ),
    "other widths in npz": (
        lambda d: write_npz(d / "t.npz", ann=[1.0, 2], bob=[1.0]),
        "'bob' has 1 features, 'ann' 2",
    ),
    "too few clips in npz": (
        lambda d: write_npz(d / "t.npz", clips=["a"], features=np.zeros((2, 3))),
        r"'clips' has the shape \(1,\), 'features' \(2, 3\)",
    ),
    "a clip twice in npz": (
        lambda d: write_npz(d / "t.npz", clips=["a", "b", "a"], features=np.zeros((3, 2))),
        r"has 1 bad rows: row 3 \(clip 'a' a second time\)",
    ),
    "NaN in npz": (
        lambda d: write_npz(d / "t.npz", ann=[[1.0, 2], [np.nan, 4]]),
        "'ann', row 2 lacks a finite value",
    ),
    "infinity in npz": (
        lambda d: write_npz(d / "t.npz", clips=["a", "b"], features=[[0.0, 1], [0, np.inf]]),
        r"row 2 \('feature_1' lacks a finite value\)",
    ),
    "no Parquet": (
        lambda d: write_text(d / "t.parquet", "nothing at all"),
        r"t\.parquet' is not readable as Parquet",
    ),
    "no clips in Parquet": (
        lambda d: write_parquet(d / "t.parquet", name=["a"], x=[1.0]),
        "must have a column 'clip' and columns of features, .* it has: name, x",
    ),
    "text in Parquet": (
        lambda d: write_parquet(d / "t.parquet", clip=["a"], x=["1"]),
        "column 'x' is string, not numbers",
    ),
    "two columns of lists": (
        lambda d: write_parquet(d / "t.parquet", clip=["a"], x=[[1.0]], y=[[2.0]]),
        "column 'x' is list<.*>, not numbers",
    ),
    "ragged lists": (
        lambda d: write_parquet(d / "t.parquet", clip=["a", "b"], x=[[1.0, 2], [3.0]]),
        r"t\.parquet', row 2, has a list of 1 values, the rows before 2",
    ),
    "null clips": (
        lambda d: write_parquet(d / "t.parquet", clip=["a", None], x=[1.0, 2]),
        r"t\.parquet', row 2, has no clip",
    ),
    "null values": (
        lambda d: write_parquet(d / "t.parquet", clip=["a", "b"], x=[1.0, None]),
        r"row 2 \('x' lacks a finite value\)",
    ),
    "null in a list": (
        lambda d: write_parquet(d / "t.parquet", clip=["a", "b"], x=[[1.0, 2], [3.0, None]]),
        r"row 2 \('x_1' lacks a finite value\)",
    ),
    "Parquet without rows": (
        lambda d: write_parquet(d / "t.parquet", clip=pa.array([], "string"), x=pa.array([], "double")),
        "has no rows",
    ),
    "no data in ARFF": (lambda d: write_text(d / "t.arff", "@relation r\n"), "it has no @data"),
    "no names in ARFF": (
        lambda d: write_text(d / "t.arff", "@attribute x numeric\n@data\n1\n"),
        "has no attribute 'name' that says each row's clip .* it has: x",
    ),
    "nothing numeric in ARFF": (
        lambda d: write_text(d / "t.arff", "@attribute name string\n@attribute class numeric\n@data\na,1\n"),
        "has no numeric attribute beside the class",
    ),
    "sparse ARFF": (
        lambda d: write_text(d / "t.arff", "@attribute name string\n@attribute x real\n@data\n{0 a}\n"),
        "is a sparse ARFF",
    ),
    "other text in ARFF": (
        lambda d: write_text(d / "t.arff", "@relation r\nclip,x\na,1\n"),
        r"t\.arff', line 2, is no ARFF: 'clip,x'",
    ),
    "a short row in ARFF": (
        lambda d: write_text(d / "t.arff", OPENSMILE_HEAD + "'a',0,1,2,sad\n'b',0,1,sad\n"),
        r"has 1 bad rows: row 12 \(4 values, not 5\)",
    ),
    "missing in ARFF": (
        lambda d: write_text(d / "t.arff", OPENSMILE_HEAD + "% one\n'a',0,1,?,sad\n"),
        r"row 12 \('loudness sma3' lacks a finite value\)",
    ),
    "a clip twice in a folder": (
        lambda d: [np.save(d / "ann.npy", [1.0]), np.savez(d / "ann.npz", [1.0])] and d,
        r"'ann\.npz' is of clip 'ann' a second time",
    ),
    "other widths in a folder": (
        lambda d: [np.save(d / "ann.npy", [1.0]), np.save(d / "bob.npy", [1.0, 2])] and d,
        r"'bob\.npy' has 2 features, 'ann\.npy' 1",
    ),
    "damaged npy in a folder": (
        lambda d: write_text(d / "ann.npy", "nothing").parent,
        r"ann\.npy' is not readable as npy",
    ),
    "a short row in a folder": (
        lambda d: write_text(d / "ann.csv", "x,y\n1,2\n3\n").parent,
        r"ann\.csv' has 1 bad rows: row 3 \(1 values, not 2\)",
    ),
    "NaN in a folder's CSV": (
        lambda d: write_text(d / "ann.csv", "x,y\n1,2\n3,nan\n").parent,
        r"ann\.csv' has 1 bad rows: row 3 \('y' lacks a finite value\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(DataError, match=message) as failure:
        read_features(make(tmp_path))
    assert len(str(failure.value).splitlines()) == 1


def test_rows_of_no_clip_and_clips_without_a_row_are_counted(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    first = small_corpus.clips[0].clip
    path = write_parquet(tmp_path / "t.parquet", clip=[first, "nobody"], x=[1.0, 2])
    corpus = with_features(small_corpus, path)
    told = {skipped.clip: skipped.reason for skipped in corpus.skipped}
    assert told["features row nobody"] == "no clip of that name"
    assert len(told) == 12
    assert first not in told


GAPS: dict[str, Callable[[Path], Path]] = {
    "csv": lambda d: write_text(
        d / "t.csv", "clip,frame,x,y\nann,0,1,2\nann,1,3,\nann,2,5,6\nbob,0,NA,8\n"
    ),
    "parquet": lambda d: write_parquet(
        d / "t.parquet", clip=["ann"] * 3 + ["bob"], frame=[0, 1, 2, 0], x=[1.0, 3, 5, None],
        y=[2.0, np.inf, 6, 8],
    ),
    "npz": lambda d: write_npz(d / "t.npz", ann=[[1, 2], [3, np.nan], [5, 6]], bob=[[np.nan, 8]]),
    "folder": lambda d: write_text(d / "ann.csv", "x,y\n1,2\n3,\n5,6\n").parent
    and write_text(d / "bob.csv", "frame,x,y\n0,?,8\n").parent,
    "OpenFace": lambda d: write_text(
        d / "ann.csv", "frame,confidence,success,AU01_r,AU02_r\n1,1,1,1,2\n2,1,1,3,nan\n3,1,1,5,6\n"
    ).parent and write_text(d / "bob.csv", "frame,confidence,success,AU01_r,AU02_r\n1,1,1,,2\n").parent,
}  # fmt: skip


@pytest.mark.parametrize("kind", GAPS)
def test_what_lacks_a_value_may_be_left_out_and_is_counted(tmp_path: Path, kind: str) -> None:
    path = GAPS[kind](tmp_path)
    with pytest.raises(DataError, match="lacks a finite value"):
        read_features(path)
    table = read_features(path, missing="skip")
    assert lists(table) == {"ann": [[1, 2], [5, 6]]}
    told = {s.clip: s.reason for s in table.without_partner({"ann": "ann", "bob": "bob"})}
    assert told == {
        "ann": "1 of 3 frames of its features lack a value (those are left out)",
        "bob": "its features lack a value (kept without features)",
    }
    with pytest.raises(DataError, match=r"Unknown missing_features 'guess'\. Known: error, skip"):
        read_features(path, missing="guess")


def test_skipping_forgives_missing_values_and_nothing_else(tmp_path: Path) -> None:
    for row, problem in (("ann,x", "'x' is no number"), ("ann", "1 values, not 2")):
        path = write_text(tmp_path / "t.csv", f"clip,x\nbob,1\n{row}\n")
        with pytest.raises(DataError, match=f"has 1 bad rows: row 3 \\({problem}\\)"):
            read_features(path, missing="skip")


ODD_TEXT = [
    "clip,x,y\nann,1,2\nbob,3,4\n",
    "\ufeffclip,x,y\r\nann,1,2\r\nbob,3,4\r\n",
    "clip,x,y\rann,1,2\rbob,3,4\r",
    "\n\nclip,x,y\n\nann,1,2\n\nbob,3,4",
    '"clip","x","y"\n" ann "," 1 ","2"\nbob, 3 ,4\n',
    'clip,"x","y"\n"ann",1,2\nbob,3,4\n',
    'clip,"x\ny",z\nann,1,2\nbob,3,4\n',
]


@pytest.mark.parametrize("content", ODD_TEXT)
def test_reading_fast_and_line_by_line_gives_the_same(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode())
    layout, fast = read_table(path)
    slow = read_rows(path, layout, numbered=True)
    assert slow.numbers is not None
    assert fast.clips == slow.clips == ["ann", "bob"]
    np.testing.assert_array_equal(fast.codes, slow.codes)
    np.testing.assert_array_equal(fast.values, slow.values)
    np.testing.assert_array_equal(slow.values, np.float32([[1, 2], [3, 4]]))


def random_table(seed: int) -> tuple[str, dict[str, NDArray[np.float32]]]:
    """A CSV of frames of several clips, mixed, and what it says."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(60, 3)).astype(np.float32)
    owner = generator.integers(0, 5, 60)
    order = generator.permutation(60)
    lines = [f"c{owner[i]},{i},{','.join(repr(float(v)) for v in values[i])}" for i in order]
    wanted = {f"c{c}": values[owner == c] for c in range(5)}
    return "clip,frame,a,b,c\n" + "\n".join(lines) + "\n", wanted


@pytest.mark.parametrize("seed", range(3))
def test_every_value_comes_back_under_its_clip_and_frame(tmp_path: Path, seed: int) -> None:
    content, wanted = random_table(seed)
    found = read_features(write_text(tmp_path / "t.csv", content)).rows
    assert found.keys() == wanted.keys()
    for clip, values in wanted.items():
        np.testing.assert_array_equal(found[clip], values)


def test_prepare_says_which_rows_lack_a_value_or_leaves_them_out(
    tmp_path: Path, write_sound: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(
        f"{s}{n},{s},{'sad' if n else 'glad'},{s}{n}.wav\n" for s in "ab" for n in (0, 1)
    )
    for number, clip in enumerate(("a0", "a1", "b0", "b1")):
        write_sound(f"{clip}.wav", seed=number)
    (tmp_path / "manifest.csv").write_text(f"clip,speaker,label,audio\n{rows}")
    table = write_text(tmp_path / "t.csv", "clip,x\na0,1\na1,\nb0,3\nb1,4\n")
    given = ["manifest", "--root", str(tmp_path), "--features", str(table), "--out"]
    assert main([*given, str(tmp_path / "one")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: '{table}' has 1 bad rows: row 3 ('x' lacks a finite value). (")
    assert main([*given, str(tmp_path / "two"), "--missing-features", "skip"]) == 0
    assert "a1: its features lack a value (kept without features)" in capsys.readouterr().out
    index = read_index(tmp_path / "two")
    assert [entry.features for entry in index.clips] == [1, 0, 1, 1]


def test_prepare_keeps_ties_where_they_are_to_be_soft(
    tmp_path: Path, write_sound: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("glad", "sad|glad", "glad:2;sad:1", "sad")
    for number in range(4):
        write_sound(f"{number}.wav", seed=number)
    rows = "".join(f"c{n},s{n // 2},{label},{n}.wav\n" for n, label in enumerate(labels))
    (tmp_path / "manifest.csv").write_text(f"clip,speaker,label,audio\n{rows}")
    given = ["manifest", "--root", str(tmp_path), "--out"]
    assert main([*given, str(tmp_path / "one")]) == 2
    assert "row 3: a tie of 'sad' and 'glad'" in capsys.readouterr().err
    assert main([*given, str(tmp_path / "two"), "--ties", "soft"]) == 0
    index = read_index(tmp_path / "two")
    assert [(e.label, e.votes) for e in index.clips[:3]] == [
        ("glad", {}),
        ("sad", {"sad": 0.5, "glad": 0.5}),
        ("glad", pytest.approx({"glad": 2 / 3, "sad": 1 / 3})),
    ]
    assert "1 clips have raters that tie: c1" in verify(index).notes


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """A file that was cut, or of which some bytes were changed, added, lost or zeroed."""
    place = int(generator.integers(len(content)))
    before, after = content[:place], content[place:]
    changes: list[Callable[[], bytes]] = [
        lambda: before,
        lambda: before + bytes([after[0] ^ (1 << int(generator.integers(8)))]) + after[1:],
        lambda: before + [b'"', b"'", b"\n", b"\0", b"\xff", b"1e999"][place % 6] + after,
        lambda: before + after[1 + place % 7 :],
        lambda: before + bytes(min(16, len(after))) + after[16:],
    ]
    return changes[int(generator.integers(len(changes)))]()


@pytest.mark.parametrize("kind", [*TABLES, *SEQUENCES])
@pytest.mark.filterwarnings("ignore:Reading .*:UserWarning")  # a header as of Python 2
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(len(kind))
    for number in range(15):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = ({**TABLES, **SEQUENCES}[kind])(folder)
        file = sorted(p for p in folder.rglob("*") if p.is_file())[0]
        file.write_bytes(mutated(file.read_bytes(), generator))
        try:
            rows = read_features(path).rows
        except DataError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert all(np.isfinite(values).all() for values in rows.values())


def test_text_is_read_without_pyarrow_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [TABLES[kind](tmp_path) for kind in ("ARFF", "tabs")]
    parquet = TABLES["parquet"](tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in paths:
        assert lists(read_features(path)) == as_float32(ONE_A_CLIP)
    with pytest.raises(DataError, match=r"t\.parquet' needs pyarrow: pip install pyarrow"):
        read_features(parquet)
