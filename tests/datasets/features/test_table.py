"""Clip-level features from a CSV: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.clips import DataError
from datasets.features import FeatureTable, read_features

RAVDESS = "-01-06-01-02-01-12"


def write(folder: Path, content: str, encoding: str = "utf-8") -> Path:
    path = folder / "features.csv"
    path.write_bytes(content.encode(encoding))
    return path


def test_each_row_is_a_clip_and_each_column_a_feature(tmp_path: Path) -> None:
    table = read_features(write(tmp_path, "clip,AU1, AU2 \nann-1,0.5,-2\nbob-1,1e-3,4\n"))
    assert table.names == ("AU1", "AU2")
    assert list(table.rows) == ["ann-1", "bob-1"]
    assert table.rows["ann-1"].dtype == np.float32
    np.testing.assert_array_equal(table.rows["ann-1"], np.float32([0.5, -2]))
    np.testing.assert_array_equal(table.rows["bob-1"], np.float32([1e-3, 4]))


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("clip,AU1\nann,1\n", "utf-8-sig"),  # as spreadsheets save it
        ("clip,AU1\r\nann,1\r\n", "utf-8"),
        ("\nclip,AU1\n\nann,1\n\n", "utf-8"),
        ("clip,AU1\nann,1", "utf-8"),
        ('"clip","AU1"\n" ann ","1"\n', "utf-8"),
    ],
)
def test_usual_ways_to_write_a_csv_are_read(tmp_path: Path, content: str, encoding: str) -> None:
    table = read_features(write(tmp_path, content, encoding))
    assert table.names == ("AU1",)
    assert {clip: row.tolist() for clip, row in table.rows.items()} == {"ann": [1.0]}


def test_a_clip_is_found_by_its_name(tmp_path: Path) -> None:
    table = read_features(write(tmp_path, "clip,AU1\nann,1\nbob,2\n"))
    found = table.find("bob")
    assert found is not None
    assert found.tolist() == [2.0]
    assert table.find("cem") is None


@pytest.mark.parametrize("asked", ["01", "02", "03"])
@pytest.mark.parametrize("there", ["01", "02", "03"])
def test_ravdess_sound_picture_and_both_are_one_clip(there: str, asked: str) -> None:
    table = FeatureTable(("AU1",), {there + RAVDESS: np.float32([7])})
    found = table.find(asked + RAVDESS)
    assert found is not None
    assert found.tolist() == [7.0]
    assert table.find(asked + RAVDESS[:-2] + "13") is None, "another actor"


def test_a_clips_own_row_comes_before_its_relatives() -> None:
    rows = {f"0{m}{RAVDESS}": np.float32([m]) for m in (1, 2, 3)}
    for modality in (1, 2, 3):
        found = FeatureTable(("AU1",), rows).find(f"0{modality}{RAVDESS}")
        assert found is not None
        assert found.tolist() == [modality]


@pytest.mark.parametrize("name", ["04" + RAVDESS, "01" + RAVDESS + "-01", "x01" + RAVDESS, "01"])
def test_names_that_only_resemble_ravdess_have_no_relatives(name: str) -> None:
    assert FeatureTable(("AU1",), {"02" + RAVDESS: np.float32([7])}).find(name) is None


def test_rows_are_kept_under_the_key_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "clip,AU1\nann_1,1\nbob_2,2\n")
    assert list(read_features(path, lambda clip: clip.partition("_")[0]).rows) == ["ann", "bob"]


def test_a_clip_without_a_key_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path, "clip,AU1\nann,1\nodd,2\n")
    with pytest.raises(DataError, match=r"has 1 bad rows: row 3 \(clip 'odd'\)\."):
        read_features(path, lambda clip: None if clip == "odd" else clip)


def test_two_clips_of_one_key_are_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path, "clip,AU1\nann_1,1\nann_2,2\n")
    with pytest.raises(DataError, match=r"row 3 \(clip 'ann_2' a second time\)"):
        read_features(path, lambda clip: clip.partition("_")[0])


LACKS = r"'AU2' lacks a finite value"


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("ann,1", "2 values, not 3"),
        ("ann,1,2,3", "4 values, not 3"),
        ("ann,1,", LACKS),
        ("ann,1,two", "'two' is no number"),
        ("ann,1,nan", LACKS),
        ("ann,1,-inf", LACKS),
        ("ann,1,1e39", LACKS),  # beyond float32
        ("ann,,2", "'AU1' lacks a finite value"),
        (",1,2", "no clip's name"),
        ("bob,1,2", "clip 'bob' a second time"),
    ],
)
@pytest.mark.filterwarnings("error:overflow:RuntimeWarning")
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: str, named: str) -> None:
    path = write(tmp_path, f"clip,AU1,AU2\nbob,1,2\n\n{row}\n")
    with pytest.raises(DataError, match=rf"features\.csv' has 1 bad rows: row 4 \({named}\)\."):
        read_features(path)


def test_the_remedy_is_told_only_where_it_is_one(tmp_path: Path) -> None:
    remedy = r"\(datasets\.prepare --missing-features skip leaves out what lacks one\.\)$"
    with pytest.raises(DataError, match=remedy):
        read_features(write(tmp_path, "clip,AU1\nann,\nbob,two\n"))
    with pytest.raises(DataError, match=r"row 2 \('two' is no number\)\.$"):
        read_features(write(tmp_path, "clip,AU1\nbob,two\n"))


def test_of_many_bad_rows_the_first_twenty_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "clip,AU1\n" + "".join(f"c{i},x\n" for i in range(30)))
    with pytest.raises(
        DataError, match=r"has 30 bad rows: row 2 \(.*, row 21 \('x' is no number\) and 10 more\.$"
    ):
        read_features(path)


@pytest.mark.parametrize(
    "content", ["", "\n", "clip\nann\n", "name,AU1\nann,1\n", "ann,1\nbob,2\n", "clip,frame\na,1\n"]
)
def test_a_file_without_header_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"must have a header 'clip,<feature>,…' and rows"):
        read_features(write(tmp_path, content))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"features\.csv' has no rows \(--features\)\.$"):
        read_features(write(tmp_path, "clip,AU1\n"))


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "clip,AU1\nJürgen,1\n", "latin-1")
    with pytest.raises(DataError, match=r"features\.csv' is not a CSV in UTF-8: .*\(--features\)"):
        read_features(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "none"):
        with pytest.raises(DataError, match=r"No such file: '.*' \(--features\)\."):
            read_features(path)


OPENFACE = "frame, face_id, timestamp, confidence, success, gaze_0_x, AU01_r, AU45_c\n"


def test_openface_files_give_the_frames_in_which_a_face_was_found(tmp_path: Path) -> None:
    folder = tmp_path / "openface"
    (folder / "Actor_12").mkdir(parents=True)
    (folder / "Actor_12" / f"01{RAVDESS}.csv").write_text(
        OPENFACE
        + "1, 0, 0.000, 0.98, 1, 0.1, 0.50, 1\n2, 0, 0.033, 0.00, 0, 0.0, 0.00, 0\n"
        + "2, 1, 0.033, 0.90, 1, 0.0, 4.00, 0\n3, 0, 0.067, 0.97, 1, 0.1, 1.25, 0\n"
    )
    (folder / f"01{RAVDESS[:-2]}11.csv").write_text(OPENFACE + "1, 0, 0.0, 0.0, 0, 0, 0, 0\n")
    table = read_features(folder)
    assert table.names == ("AU01_r", "AU45_c")
    assert list(table.rows) == [f"01{RAVDESS}"], "a clip without a face has no rows"
    found = table.find(f"03{RAVDESS}")
    assert found is not None
    np.testing.assert_array_equal(found, np.float32([[0.5, 1], [1.25, 0]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OPENFACE.replace("AU", "BU"), "without action units such as AU01_r"),
        (
            OPENFACE + "1, 0, 0, 0.9, 1, 0, nan, 1\n",
            r"row 2 \(an action unit lacks a finite value\)",
        ),
        (OPENFACE + "1, 0, 0, 0.9, , 0, 1, 1\n", r"row 2 \('success' is empty\)"),
        (OPENFACE + "1, 0, 0, 0.9, 1, 0\n", r"row 2 \(6 values, not 8\)"),
        (OPENFACE + "1, 0, 0, 0.9, 1, 0, x, 1\n", r"row 2 \('x' is no number\)"),
        (OPENFACE + "1, 0, 0, 0.9, 0, 0, 1, 1\n", "holds no features, or no face was found"),
        (OPENFACE, "holds no features, or no face was found"),
    ],
)
def test_what_openface_did_not_write_so_is_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "ann.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_features(tmp_path)


def test_a_frame_without_a_face_may_lack_everything(tmp_path: Path) -> None:
    rows = "1, 0, 0, 0.0, 0, 0, nan, nan\n2, 0, 0, 0.9, 1, 0, 2, 1\n"
    (tmp_path / "ann.csv").write_text(OPENFACE + rows)
    assert read_features(tmp_path).rows["ann"].tolist() == [[2, 1]]


def test_of_two_faces_in_as_many_frames_the_first_is_taken(tmp_path: Path) -> None:
    rows = "1, 7, 0, 0.9, 1, 0, 2, 1\n1, 3, 0, 0.9, 1, 0, 4, 1\n"
    (tmp_path / "ann.csv").write_text(OPENFACE + rows)
    assert read_features(tmp_path).rows["ann"].tolist() == [[2, 1]]


def test_openface_files_with_other_units_or_of_one_clip_twice_are_told(tmp_path: Path) -> None:
    row = "1, 0, 0, 0.9, 1, 0, 1, 1\n"
    (tmp_path / "ann.csv").write_text(OPENFACE + row)
    (tmp_path / "bob.csv").write_text(OPENFACE.replace("AU45", "AU26") + row)
    with pytest.raises(DataError, match=r"'bob\.csv' has other features than 'ann\.csv'"):
        read_features(tmp_path)
    (tmp_path / "again").mkdir()
    (tmp_path / "bob.csv").rename(tmp_path / "again" / "ann.csv")
    (tmp_path / "again" / "ann.csv").write_text(OPENFACE + row)
    with pytest.raises(DataError, match=r"'ann\.csv' is of clip 'ann' a second time"):
        read_features(tmp_path)
    with pytest.raises(DataError, match="is named after no clip"):
        read_features(tmp_path, lambda clip: None)
    (tmp_path / "again" / "ann.csv").unlink()
    (tmp_path / "cem.csv").write_text(OPENFACE)
    with pytest.raises(DataError, match=r"'cem\.csv' is named after no clip"):
        read_features(tmp_path, lambda clip: clip if clip == "ann" else None)
