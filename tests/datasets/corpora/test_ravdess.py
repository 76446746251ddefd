from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.clips import Corpus, DataError
from datasets.corpora.ravdess import LABELS, load_ravdess
from datasets.sharding.index import read_index
from datasets.sharding.writer import ShardSettings, prepare

CLIP = "01-03-02-01-02-07"  # speech, happy, strong, sentence 1, repetition 2, actor 7


def tree(root: Path, *names: str) -> Path:
    """A corpus of empty files: the loader looks at names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def load_with_table(root: Path, text: str, encoding: str = "utf-8") -> Corpus:
    table = root.parent / "features.csv"
    table.write_bytes(text.encode(encoding))
    return load_ravdess(root, features=table)


@pytest.mark.parametrize("folder", ["Actor_07/", "ACTOR07/", "", "audio/speech/Actor_07/"])
def test_files_are_found_in_every_layout(tmp_path: Path, folder: str) -> None:
    corpus = load_ravdess(tree(tmp_path / "corpus", f"{folder}03-{CLIP}.wav"))
    (record,) = corpus.clips
    assert corpus.name == "ravdess"
    assert corpus.labels == LABELS
    assert record.clip == f"03-{CLIP}"
    assert record.speaker == "Actor_07"
    assert record.label == "happy"
    assert record.audio == tmp_path / "corpus" / f"{folder}03-{CLIP}.wav"
    assert record.video is None
    assert record.attributes == {
        "gender": "male",
        "intensity": "strong",
        "sentence": "01",
        "repetition": "02",
    }


def test_the_third_field_names_the_emotion(tmp_path: Path) -> None:
    names = [f"03-01-{emotion:02d}-01-01-01-01.wav" for emotion in range(1, 9)]
    corpus = load_ravdess(tree(tmp_path / "corpus", *names))
    assert [record.label for record in corpus.clips] == [
        "neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised",
    ]  # fmt: skip


def test_odd_actors_are_male(tmp_path: Path) -> None:
    names = [f"03-01-01-01-01-01-{actor:02d}.wav" for actor in (1, 2, 23, 24)]
    corpus = load_ravdess(tree(tmp_path / "corpus", *names))
    assert [record.attributes["gender"] for record in corpus.clips] == [
        "male", "female", "male", "female",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("present", "audio", "video"),
    [
        (("03.wav", "01.mp4", "02.mp4"), "03.wav", "01.mp4"),
        (("03.wav", "02.mp4"), "03.wav", "02.mp4"),
        (("01.mp4", "02.mp4"), "01.mp4", "01.mp4"),
        (("02.mp4",), None, "02.mp4"),
        (("01.flac",), "01.flac", None),
    ],
)
def test_sound_and_pictures_are_paired_by_name(
    tmp_path: Path, present: tuple[str, ...], audio: str | None, video: str | None
) -> None:
    def name(short: str) -> str:
        modality, suffix = short.split(".")
        folder = "Actor_07" if modality == "03" else "video/Actor_07"
        return f"{folder}/{modality}-{CLIP}.{suffix}"

    root = tree(tmp_path / "corpus", *map(name, present))
    (record,) = load_ravdess(root).clips
    assert record.clip == f"03-{CLIP}"
    assert record.audio == (root / name(audio) if audio else None)
    assert record.video == (root / name(video) if video else None)


def test_clips_of_other_repetitions_are_not_paired(tmp_path: Path) -> None:
    other = CLIP.replace("-02-07", "-01-07")
    corpus = load_ravdess(tree(tmp_path / "corpus", f"03-{CLIP}.wav", f"01-{other}.mp4"))
    assert [(r.clip, r.audio is None, r.video is None) for r in corpus.clips] == [
        (f"03-{other}", False, False),
        (f"03-{CLIP}", False, True),
    ]


def test_a_paired_clip_holds_the_sound_of_one_file_and_the_pictures_of_the_other(
    tmp_path: Path,
    write_sound: Callable[..., Path],
    write_video: Callable[..., Path],
    grey_frames: Callable[[int], NDArray[np.uint8]],
) -> None:
    write_sound(f"corpus/Actor_07/03-{CLIP}.wav", samples=700)
    sound = np.zeros(16_000, np.int16)
    write_video(f"corpus/Actor_07/01-{CLIP}.mp4", grey_frames(4), sound=sound)
    settings = ShardSettings(frames=2)
    (entry,) = prepare(load_ravdess(tmp_path / "corpus"), tmp_path / "out", settings).clips
    assert (entry.samples, entry.frames) == (700, 2)


def test_speech_and_song_are_told_apart(tmp_path: Path) -> None:
    sung = CLIP.replace("01-", "02-", 1)
    root = tree(tmp_path / "corpus", f"03-{CLIP}.wav", f"03-{sung}.wav")
    assert [record.clip for record in load_ravdess(root).clips] == [f"03-{CLIP}"]
    assert [record.clip for record in load_ravdess(root, song=True).clips] == [f"03-{sung}"]


def test_media_of_other_names_are_skipped_and_named(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "corpus", f"03-{CLIP}.wav", "a/intro.mp4", "03-01-09-01-01-01-01.wav", "note.txt"
    )
    corpus = load_ravdess(root)
    assert [(s.clip, s.reason) for s in corpus.skipped] == [
        ("03-01-09-01-01-01-01.wav", "the name is not MM-VC-EE-II-SS-RR-AA"),
        ("a/intro.mp4", "the name is not MM-VC-EE-II-SS-RR-AA"),
    ]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No such folder: '.*/nowhere' \(--root\)"):
        load_ravdess(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"No usable clip in corpus 'ravdess'\. First skipped: song\.mp3: the name"
    ):
        load_ravdess(tree(tmp_path / "corpus", "song.mp3"))


def test_features_are_joined_by_the_name_without_its_first_field(tmp_path: Path) -> None:
    other = CLIP.replace("-07", "-08")
    root = tree(tmp_path / "corpus", f"03-{CLIP}.wav", f"03-{other}.wav")
    corpus = load_with_table(root, f"clip, AU01 ,AU02\n01-{other},3,4\n01-{CLIP},1,2.5\n")
    assert corpus.feature_names == ("AU01", "AU02")
    first, second = (record.features for record in corpus.clips)
    np.testing.assert_array_equal(first, np.asarray([1, 2.5], np.float32))
    np.testing.assert_array_equal(second, np.asarray([3, 4], np.float32))
    assert corpus.skipped == ()


def test_rows_and_clips_without_a_partner_are_listed(tmp_path: Path) -> None:
    other, stranger = CLIP.replace("-07", "-08"), CLIP.replace("-07", "-09")
    root = tree(tmp_path / "corpus", f"03-{CLIP}.wav", f"03-{other}.wav")
    corpus = load_with_table(root, f"clip,AU01\n01-{CLIP},1\n01-{stranger},1\n")
    assert [(s.clip, s.reason) for s in corpus.skipped] == [
        (f"features row {stranger}", "no clip of that name"),
        (f"03-{other}", "no row in the features table (kept without features)"),
    ]
    assert corpus.clips[1].features is None


def test_every_bad_row_of_the_table_is_numbered(tmp_path: Path) -> None:
    root = tree(tmp_path / "corpus", f"03-{CLIP}.wav")
    rows = [
        "clip,AU01,AU02",
        f"01-{CLIP},1,2",
        f"01-{CLIP},1,many",  # row 3
        f"01-{CLIP},1",
        f"01-{CLIP[:-2]}08,nan,1",
        "actor seven,1,2",
        "",  # a blank line counts as a row
        f"03-{CLIP},1,2",
    ]
    with pytest.raises(DataError) as failure:
        load_with_table(root, "\n".join(rows) + "\n")
    assert (
        "features.csv' has 5 bad rows: row 3 ('many' is no number), row 4 (2 values, not 3), "
        "row 5 ('AU01' lacks a finite value), row 6 (clip 'actor seven'), "
        f"row 8 (clip '03-{CLIP}' a second time). (" in str(failure.value)
    )


@pytest.mark.parametrize("text", ["", f"name,AU01\n01-{CLIP},1\n", f"clip\n{CLIP}"])
def test_a_table_without_header_or_rows_is_refused(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path / "corpus", f"03-{CLIP}.wav")
    with pytest.raises(DataError, match="must have a header 'clip,<feature>,…' and rows"):
        load_with_table(root, text)


@pytest.mark.parametrize("text", ["\nclip,AU01\n{row}\n", "\ufeffclip,AU01\n{row}\n\n"])
def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path / "corpus", f"03-{CLIP}.wav")
    corpus = load_with_table(root, text.format(row=f"01-{CLIP},1"))
    np.testing.assert_array_equal(corpus.clips[0].features, [1])


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "corpus", f"03-{CLIP}.wav")
    with pytest.raises(DataError, match=r"features\.csv' is not a CSV in UTF-8"):
        load_with_table(root, f"clip,fröhlich\n01-{CLIP},1\n", "latin-1")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "corpus", f"03-{CLIP}.wav")
    with pytest.raises(DataError, match=r"No such file: '.*none\.csv' \(--features\)"):
        load_ravdess(root, features=tmp_path / "none.csv")


def test_the_real_corpus_has_its_published_counts(corpora: Path) -> None:
    folder = corpora / "ravdess"
    corpus = load_ravdess(folder, features=folder / "action_units.csv")
    assert len(corpus.clips) == 1440
    # Livingstone & Russo 2018: no strong neutral, hence half as many.
    assert Counter(record.label for record in corpus.clips) == {
        label: 96 if label == "neutral" else 192 for label in LABELS
    }
    assert Counter(record.speaker for record in corpus.clips) == {
        f"Actor_{actor:02d}": 60 for actor in range(1, 25)
    }
    assert len(corpus.feature_names) == 35
    assert all(r.features is not None and r.features.shape == (35,) for r in corpus.clips)
    assert corpus.skipped == ()
    # First row of the table, by hand.
    first = corpus.clips[0]
    assert first.clip == "03-01-01-01-01-01-01"
    assert first.features is not None
    assert first.features[0] == np.float32(0.071939)


def test_the_recording_that_actor_7_has_twice_is_found(corpora: Path, tmp_path: Path) -> None:
    corpus = load_ravdess(corpora / "ravdess" / "Actor_07")
    assert len(corpus.clips) == 60
    prepare(corpus, tmp_path / "out", workers=1)
    index = read_index(tmp_path / "out")
    assert [[entry.clip for entry in group] for group in index.duplicates()] == [
        ["03-01-03-01-02-01-07", "03-01-03-01-02-02-07"]
    ]
