from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets.clips import Corpus, DataError
from datasets.corpora.manifest import load_manifest
from datasets.media.containers import MediaError
from datasets.sharding.writer import ShardSettings, decode_record


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A corpus folder with two sounds and a video; the loader does not open them."""
    for name in ("corpus/a.wav", "corpus/sub/b.wav", "corpus/a.mp4", "outside.wav"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "corpus"


def load(folder: Path, text: str, labels: tuple[str, ...] | None = None) -> Corpus:
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return load_manifest(folder, labels=labels)


def test_rows_become_clips(folder: Path) -> None:
    corpus = load(
        folder,
        "clip,speaker,label,audio,video,feature:AU01,age,feature:AU12\n"
        "c2, ann ,sad,a.wav,,1.5,44,-2\n"
        "c1,bob,glad, sub/b.wav ,a.mp4,0, 7 ,1e3\n",
    )
    assert corpus.name == "manifest"
    assert corpus.labels == ("glad", "sad")
    assert corpus.feature_names == ("AU01", "AU12")
    second, first = corpus.clips
    assert (second.clip, second.speaker, second.label) == ("c2", "ann", "sad")
    assert (second.audio, second.video) == (folder / "a.wav", None)
    assert second.attributes == {"age": "44"}
    np.testing.assert_array_equal(second.features, np.asarray([1.5, -2], np.float32))
    assert (first.audio, first.video) == (folder / "sub" / "b.wav", folder / "a.mp4")
    assert first.attributes == {"age": "7"}
    np.testing.assert_array_equal(first.features, np.asarray([0, 1000], np.float32))


def test_the_csv_itself_may_be_named(folder: Path) -> None:
    (folder / "mine.csv").write_text("clip,speaker,label,audio\nc1,ann,sad,a.wav\n")
    corpus = load_manifest(folder / "mine.csv", name="mine", labels=("sad", "glad"))
    assert corpus.name == "mine"
    assert corpus.labels == ("sad", "glad")
    assert corpus.clips[0].audio == folder / "a.wav"
    assert corpus.clips[0].features is None


def test_a_byte_order_mark_and_spaced_columns_do_no_harm(folder: Path) -> None:
    corpus = load(folder, "\ufeffclip, speaker ,label,audio\nc1,ann,sad,a.wav\n")
    assert corpus.clips[0].speaker == "ann"


def test_every_bad_row_is_listed_with_its_number(folder: Path) -> None:
    rows = [
        "clip,speaker,label,audio,video,feature:AU01",
        "c1,ann,sad,a.wav,,1",  # row 2 is the only good one
        "c1,ann,sad,a.wav,,1",
        ",ann,sad,a.wav,,1",
        "c5, ,sad,a.wav,,1",
        "c6,ann,,a.wav,,1",
        "c7,ann,sad,,,1",
        "c8,ann,sad,none.wav,,1",
        "",
        "c10,ann,sad,../outside.wav,,1",
        "c11,ann,sad,a.wav,/etc/hostname,1",
        "c12,ann,sad,a.wav,,much",
        "c13,ann,sad,a.wav,,inf",
        "c14,ann,sad,a.wav,,1e39",
        "c15,ann,sad,a.wav,,",
        "c16,ann,sad,a.wav",
        "c17,ann,sad,a.wav,,1,2",
        "c18,ann,mad,a.wav,,1",
        "c19,ann,sad,sub,,1",
    ]
    with pytest.raises(DataError) as failure:
        load(folder, "\n".join(rows) + "\n", labels=("glad", "sad"))
    header, *problems = str(failure.value).splitlines()
    assert header == f"'{folder}/manifest.csv' has 16 bad rows:"
    assert [problem.strip() for problem in problems] == [
        "row 3: clip 'c1' was already in row 2",
        "row 4: 'clip' is empty",
        "row 5: 'speaker' is empty",
        "row 6: 'label' is empty",
        "row 7: neither audio nor video is given",
        "row 8: no such file 'none.wav'",
        "row 10: '../outside.wav' lies outside the manifest's folder",
        "row 11: '/etc/hostname' lies outside the manifest's folder",
        "row 12: 'feature:AU01' is 'much', not a finite number",
        "row 13: 'feature:AU01' is 'inf', not a finite number",
        "row 14: 'feature:AU01' is '1e39', not a finite number",
        "row 15: 'feature:AU01' is '', not a finite number",
        "row 16: the number of fields differs from the header's",
        "row 17: the number of fields differs from the header's",
        "row 18: unknown label 'mad' (known: glad, sad)",
        "row 19: no such file 'sub'",
    ]


def test_a_link_that_leads_outside_is_refused(folder: Path) -> None:
    (folder / "link.wav").symlink_to(folder.parent / "outside.wav")
    with pytest.raises(DataError, match=r"row 2: 'link\.wav' lies outside"):
        load(folder, "clip,speaker,label,audio\nc1,ann,sad,link.wav\n")


@pytest.mark.parametrize("name", ["a\0.wav", "a" * 5000], ids=["nul", "too long"])
def test_a_name_that_no_file_can_have_is_a_bad_row(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"row 2: 'a.* cannot be the name of a file"):
        load(folder, f"clip,speaker,label,audio\nc1,ann,sad,{name}\n")


def test_a_long_list_of_bad_rows_is_cut(folder: Path) -> None:
    rows = "".join(f"c{n},ann,,a.wav\n" for n in range(60))
    with pytest.raises(DataError, match="has 60 bad rows") as failure:
        load(folder, f"clip,speaker,label,audio\n{rows}")
    assert str(failure.value).splitlines()[-1].strip() == "… and 10 more"


@pytest.mark.parametrize(
    "header", ["clip,speaker,audio", "clip,speaker,label", "clip;speaker;label;audio", ""]
)
def test_missing_columns_are_told(folder: Path, header: str) -> None:
    with pytest.raises(
        DataError,
        match="needs the columns clip,speaker,label and audio and/or video; "
        f"it has: {header.replace(',', ', ') or 'none'}",
    ):
        load(folder, f"{header}\n")


def test_a_manifest_without_rows_has_no_usable_clip(folder: Path) -> None:
    with pytest.raises(DataError, match="No usable clip in corpus 'manifest'"):
        load(folder, "clip,speaker,label,audio\n")


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No manifest at '.*/manifest\.csv' \(--root"):
        load_manifest(tmp_path)


def test_another_encoding_is_refused(folder: Path) -> None:
    text = "clip,speaker,label,audio\nc1,Jürgen,sad,a.wav\n"
    (folder / "manifest.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"manifest\.csv' is not a CSV in UTF-8"):
        load_manifest(folder)


def test_a_clip_may_be_a_part_of_longer_files(
    tmp_path: Path, write_sound: Callable[..., Path], write_video: Callable[..., Path]
) -> None:
    write_sound("long.wav", samples=32_000, seed=3)
    frames = np.repeat(10 * np.arange(20, dtype=np.uint8), 32 * 48 * 3).reshape(20, 32, 48, 3)
    write_video("long.mp4", frames)  # ten a second
    (tmp_path / "manifest.csv").write_text(
        "clip,speaker,label,audio,video,start,end\n"
        "a,ann,glad,long.wav,long.mp4,0.5,1.5\n"
        "b,bob,sad,long.wav,long.mp4,,\n"
        "c,bob,sad,long.wav,long.mp4,1.0,5.0\n"
    )
    corpus = load_manifest(tmp_path)
    assert corpus.clips[0].attributes == {}
    first, whole, late = corpus.clips
    settings = ShardSettings(frames=2, frame_size=(32, 48))
    sample, everything = decode_record(first, settings), decode_record(whole, settings)
    np.testing.assert_array_equal(sample["audio"], everything["audio"][8_000:24_000])
    # The middles of two halves of 0.5 to 1.5 s are shown at 0.75 and 1.25 s.
    np.testing.assert_allclose(sample["video"].mean(axis=(1, 2, 3)), [70, 120], atol=3)
    with pytest.raises(MediaError, match=r"'long\.wav' lasts 2\.00 s, its part ends at 5\.00 s"):
        decode_record(late, settings)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("1", "", "'start' is given, but not the other of start and end"),
        ("", "2", "'end' is given, but not"),
        ("2", "1", r"cannot go from 2\.0 to 1\.0 s"),
        ("-1", "1", r"cannot go from -1\.0 to 1\.0 s"),
        ("soon", "1", "'start' is 'soon', not a finite number"),
        ("0", "nan", "'end' is 'nan', not a finite number"),
    ],
)
def test_times_that_are_none_are_told(
    tmp_path: Path, write_sound: Callable[..., Path], start: str, end: str, message: str
) -> None:
    write_sound("a.wav")
    (tmp_path / "manifest.csv").write_text(
        f"clip,speaker,label,audio,start,end\na,ann,glad,a.wav,{start},{end}\n"
    )
    with pytest.raises(DataError, match=f"row 2: .*{message}"):
        load_manifest(tmp_path)


def with_column(folder: Path, column: str, *values: str) -> Corpus:
    """A manifest of one more column."""
    rows = "".join(f"c{n},ann,sad,a.wav,{value}\n" for n, value in enumerate(values, start=1))
    return load(folder, f"clip,speaker,label,audio,{column}\n{rows}")


def test_split_ratings_and_session_are_kept_as_attributes(folder: Path) -> None:
    corpus = load(
        folder,
        "clip,speaker,label,audio,split,session,arousal,valence,dominance\n"
        "c1,ann,sad,a.wav, train ,S1,0.5,-1,1e-3\n",
    )
    assert corpus.clips[0].attributes == {
        "split": "train", "session": "S1", "arousal": "0.5", "valence": "-1", "dominance": "1e-3",
    }  # fmt: skip


@pytest.mark.parametrize("column", ["arousal", "valence", "dominance"])
def test_a_rating_that_is_no_number_is_told_with_its_row(folder: Path, column: str) -> None:
    with pytest.raises(DataError) as failure:
        with_column(folder, column, "0.5", "high", "", "nan", "inf")
    assert [line.strip() for line in str(failure.value).splitlines()[1:]] == [
        f"row 3: '{column}' is 'high', not a finite number",
        f"row 4: '{column}' is '', not a finite number",
        f"row 5: '{column}' is 'nan', not a finite number",
        f"row 6: '{column}' is 'inf', not a finite number",
    ]


def test_a_split_that_is_none_is_told_with_its_row(folder: Path) -> None:
    with pytest.raises(DataError) as failure:
        with_column(folder, "split", "train", "dev", "test", "training", "")
    assert [line.strip() for line in str(failure.value).splitlines()[1:]] == [
        "row 5: 'split' is 'training', not one of train, dev, test",
        "row 6: 'split' is '', not one of train, dev, test",
    ]


VOTED = (
    "clip,speaker,label,audio\n"
    "c1,ann,happy:3;sad:1,a.wav\n"
    "c2,ann,sad|happy,a.wav\n"
    "c3,bob,sad,a.wav\n"
    "c4,bob,sad|sad|fear,a.wav\n"
)


def test_the_label_is_what_most_raters_said(folder: Path) -> None:
    (folder / "manifest.csv").write_text(VOTED)
    corpus = load_manifest(folder, ties="soft")
    assert [record.label for record in corpus.clips] == ["happy", "sad", "sad", "sad"]
    assert corpus.labels == ("happy", "sad"), "a label that never wins is no class"
    assert [record.votes for record in corpus.clips] == [
        {"happy": 0.75, "sad": 0.25},
        {"sad": 0.5, "happy": 0.5},
        {},
        pytest.approx({"sad": 2 / 3, "fear": 1 / 3}),
    ]
    assert [record.attributes.get("tie") for record in corpus.clips] == [
        None,
        "sad|happy",
        None,
        None,
    ]


def test_a_tie_is_an_error_or_left_out_and_named(folder: Path) -> None:
    (folder / "manifest.csv").write_text(VOTED)
    with pytest.raises(
        DataError, match=r"row 3: a tie of 'sad' and 'happy'; .*\(--ties drop, soft\)"
    ):
        load_manifest(folder)
    corpus = load_manifest(folder, ties="drop")
    assert [record.clip for record in corpus.clips] == ["c1", "c3", "c4"]
    assert [(s.clip, s.reason) for s in corpus.skipped] == [
        ("c2", "its raters tie: 'sad' and 'happy' (--ties drop)")
    ]
    with pytest.raises(DataError, match=r"Unknown ties 'coin'\. Known: error, drop, soft"):
        load_manifest(folder, ties="coin")


def test_bad_votes_are_told_with_their_row(folder: Path) -> None:
    (folder / "manifest.csv").write_text(
        "clip,speaker,label,audio\nc1,ann,happy:3;sad,a.wav\nc2,ann,happy:1;mad:2,a.wav\n"
    )
    with pytest.raises(DataError) as failure:
        load_manifest(folder, labels=("happy", "sad"))
    assert [line.strip() for line in str(failure.value).splitlines()[1:]] == [
        "row 2: 'label' is 'happy:3;sad': 'sad' is no vote such as happy:3",
        "row 3: unknown label 'mad' (known: happy, sad)",
    ]


def with_files(folder: Path, *names: str, missing: str = "error") -> Corpus:
    rows = "".join(f"c{n},ann,sad,a.wav,{name}\n" for n, name in enumerate(names, start=2))
    (folder / "manifest.csv").write_text(f"clip,speaker,label,audio,features\n{rows}")
    return load_manifest(folder, missing_features=missing)


def test_each_row_may_name_its_file_of_features(folder: Path) -> None:
    np.save(folder / "sub" / "a.npy", np.float64([[1, 2], [3, 4]]))
    np.savez(folder / "b.npz", np.float32([[5, 6]]))
    corpus = with_files(folder, "sub/a.npy", "", "b.npz")
    first, without, last = corpus.clips
    assert corpus.feature_names == ("feature_0", "feature_1")
    assert first.features is not None
    assert last.features is not None
    assert (first.features.tolist(), last.features.tolist()) == ([[1, 2], [3, 4]], [[5, 6]])
    assert without.features is None
    assert first.attributes == {}
    assert [s.reason for s in corpus.skipped] == [
        "no file of features is given (kept without features)"
    ]


def test_files_of_features_that_cannot_be_used_are_told_with_their_rows(folder: Path) -> None:
    np.save(folder / "a.npy", [1.0, 2])
    np.save(folder / "wide.npy", [1.0, 2, 3])
    np.save(folder / "nan.npy", [[1, 2], [np.nan, 2]])
    (folder / "odd.npy").write_text("nothing")
    (folder / "x.csv").write_text("x,y\n1,two\n")
    names = (
        "a.npy",
        "none.npy",
        "../outside.wav",
        "wide.npy",
        "nan.npy",
        "odd.npy",
        "x.csv",
        "a.wav",
    )
    with pytest.raises(DataError) as failure:
        with_files(folder, *names)
    problems = [line.strip() for line in str(failure.value).splitlines()[1:]]
    assert [problem.partition(": ")[0] for problem in problems] == [
        f"row {n}" for n in range(3, 10)
    ]
    for problem, wanted in zip(
        problems,
        (
            "no such file 'none.npy'",
            "'../outside.wav' lies outside the manifest's folder",
            "'wide.npy' has 3 features, 'a.npy' other ones: 2",
            "'nan.npy', row 2, lacks a finite value (--missing-features skip leaves it out)",
            "odd.npy' is not readable as npy",
            "x.csv' has 1 bad rows: row 2 ('two' is no number)",
            "a.wav' is of a kind that is not read as a clip's features",
        ),
        strict=True,
    ):
        assert wanted in problem


def test_frames_of_a_file_that_lack_a_value_may_be_left_out(folder: Path) -> None:
    np.save(folder / "a.npy", [[1, 2], [np.nan, 2], [5, 6]])
    np.save(folder / "b.npy", [[np.nan, 2]])
    corpus = with_files(folder, "a.npy", "b.npy", missing="skip")
    first, second = corpus.clips
    assert first.features is not None
    assert first.features.tolist() == [[1, 2], [5, 6]]
    assert second.features is None
    assert [s.reason for s in corpus.skipped] == [
        "1 of 3 frames of its features lack a value (those are left out)",
        "its features lack a value (kept without features)",
    ]


def test_features_come_from_one_place(folder: Path) -> None:
    (folder / "table.csv").write_text("clip,x\nc1,1\n")
    for column, given, message in (
        ("features,feature:x", None, "a column 'features' of files; leave it out, or feature:x"),
        (
            "features",
            folder / "table.csv",
            "a column 'features' of files; leave it out, or --features",
        ),
        ("feature:x", folder / "table.csv", r"columns of features \('feature:x'\); leave them out"),
    ):
        (folder / "manifest.csv").write_text(f"clip,speaker,label,audio,{column}\n")
        with pytest.raises(DataError, match=message):
            load_manifest(folder, features=given)
