"""Features of every frame: from the table to a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.clips import Corpus, DataError
from datasets.corpora.manifest import load_manifest
from datasets.corpora.ravdess import load_ravdess
from datasets.features import clip_means, read_features
from datasets.prepare import main
from datasets.sharding.clip_cache import Batch, open_cache
from datasets.sharding.index import ShardIndex, read_index
from datasets.sharding.stream import stream_clips
from datasets.sharding.writer import ShardSettings, prepare
from datasets.verify import main as verify_main
from datasets.verify import verify

HEADER = "clip,frame,AU1,AU2\n"


def write(folder: Path, content: str) -> Path:
    path = folder / "features.csv"
    path.write_text(content)
    return path


def steps_of(clip: int) -> NDArray[np.float32]:
    """Clip n of `sequences` has n + 1 steps: (n, 0), (n, 1) …"""
    return np.asarray([[clip, step] for step in range(clip + 1)], np.float32)


@pytest.fixture()
def sequences(small_corpus: Corpus) -> Corpus:
    """`small_corpus` with features of every frame."""
    clips = tuple(replace(r, features=steps_of(n)) for n, r in enumerate(small_corpus.clips))
    return replace(small_corpus, clips=clips)


@pytest.fixture()
def sequence_index(sequences: Corpus, tmp_path: Path) -> ShardIndex:
    return prepare(sequences, tmp_path / "sequences", ShardSettings(clips_per_shard=4))


def test_a_column_frame_behind_the_clip_makes_sequences(tmp_path: Path) -> None:
    table = read_features(write(tmp_path, HEADER + "ann,0,1,2\nbob,0,7,8\nann,1,3,4\n"))
    assert table.names == ("AU1", "AU2")
    assert table.rows["ann"].dtype == np.float32
    assert {clip: rows.tolist() for clip, rows in table.rows.items()} == {
        "ann": [[1, 2], [3, 4]],
        "bob": [[7, 8]],
    }


def test_the_numbers_order_the_frames_not_the_rows(tmp_path: Path) -> None:
    table = read_features(write(tmp_path, HEADER + "ann,10,1,0\nann,2,2,0\nann,2.5,3,0\n"))
    assert table.rows["ann"][:, 0].tolist() == [2, 3, 1]


def test_a_column_frame_elsewhere_is_a_feature(tmp_path: Path) -> None:
    table = read_features(write(tmp_path, "clip,AU1,frame\nann,1,9\n"))
    assert table.names == ("AU1", "frame")
    assert table.rows["ann"].tolist() == [1, 9]
    with pytest.raises(DataError, match=r"row 3 \(clip 'ann' a second time\)"):
        read_features(write(tmp_path, "clip,AU1,frame\nann,1,9\nann,1,10\n"))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("bob,0,3,4", "frame 0 of clip 'bob' a second time"),
        ("bob,0.0,3,4", "frame 0 of clip 'bob' a second time"),
        ("bob,nan,3,4", "the frame's number is not finite"),
        ("bob,inf,3,4", "the frame's number is not finite"),
        ("bob,,3,4", "the frame's number is not finite"),
        ("bob,1,3", "3 values, not 4"),
        ("bob", "1 values, not 4"),
        ("bob,1,3,nan", "'AU2' lacks a finite value"),
    ],
)
def test_a_bad_frame_is_named_by_its_line(tmp_path: Path, row: str, named: str) -> None:
    with pytest.raises(DataError, match=rf"features\.csv' has 1 bad rows: row 3 \({named}\)\."):
        read_features(write(tmp_path, HEADER + f"bob,0,1,2\n{row}\n"))


def test_frames_of_two_names_do_not_make_one_clip(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "ann_1,0,1,2\nann_2,1,1,2\n")
    with pytest.raises(DataError, match=r"row 3 \(clip 'ann_2' a second time\)"):
        read_features(path, lambda clip: clip.partition("_")[0])


def test_a_table_of_frames_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"or 'clip,frame,<feature>,…' and a row a frame"):
        read_features(write(tmp_path, "clip,frame\nann,1\n"))
    with pytest.raises(DataError, match="has no rows"):
        read_features(write(tmp_path, HEADER))


def test_a_mean_is_taken_over_the_frames_and_a_row_stays_as_it_is() -> None:
    assert clip_means(np.float32([[1, 5], [3, 6], [5, 10]])).tolist() == [3, 7]
    assert clip_means(np.float32([1, 5])).tolist() == [1, 5]
    assert clip_means(np.float32([[1, 5]])).dtype == np.float32


def test_a_corpus_has_rows_or_frames_but_not_both(small_corpus: Corpus) -> None:
    mixed = (replace(small_corpus.clips[0], features=steps_of(3)), *small_corpus.clips[1:])
    with pytest.raises(DataError, match=r"clip 'cem-sad-2' has one row, clip 'ann-glad-1' one a"):
        replace(small_corpus, clips=mixed)
    lacking = tuple(replace(r, features=None) for r in small_corpus.clips[1:])
    replace(small_corpus, clips=(mixed[0], *lacking))  # some may have none


def test_ravdess_joins_frames_by_the_name_without_its_first_field(tmp_path: Path) -> None:
    name = "01-03-02-01-02-07"
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / f"03-{name}.wav").touch()
    table = write(tmp_path, HEADER + f"01-{name},1,3,4\n01-{name},0,1,2\n")
    corpus = load_ravdess(tmp_path / "corpus", features=table)
    np.testing.assert_array_equal(corpus.clips[0].features, [[1, 2], [3, 4]])


def manifest(tmp_path: Path, header: str = "", row: str = "") -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir(exist_ok=True)
    (folder / "a.wav").touch()
    rows = "".join(f"{clip},ann,sad,a.wav{row}\n" for clip in ("c1", "c2"))
    (folder / "manifest.csv").write_text(f"clip,speaker,label,audio{header}\n{rows}")
    return folder


def test_a_manifest_takes_a_table_too(tmp_path: Path) -> None:
    table = write(tmp_path, HEADER + "c1,0,1,2\nc1,1,3,4\nc9,0,1,2\n")
    corpus = load_manifest(manifest(tmp_path), features=table)
    assert corpus.feature_names == ("AU1", "AU2")
    np.testing.assert_array_equal(corpus.clips[0].features, [[1, 2], [3, 4]])
    assert corpus.clips[1].features is None
    assert [(s.clip, s.reason) for s in corpus.skipped] == [
        ("features row c9", "no clip of that name"),
        ("c2", "no row in the features table (kept without features)"),
    ]
    plain = load_manifest(manifest(tmp_path), features=write(tmp_path, "clip,AU1\nc1,1\nc2,2\n"))
    assert [record.features.tolist() for record in plain.clips] == [[1], [2]]  # type: ignore[union-attr]


def test_a_manifest_with_features_of_its_own_takes_no_table(tmp_path: Path) -> None:
    folder = manifest(tmp_path, ",feature:AU1", ",1")
    with pytest.raises(DataError, match=r"has columns of features \('feature:AU1'\); leave them"):
        load_manifest(folder, features=write(tmp_path, HEADER + "c1,0,1,2\n"))


def test_the_index_counts_the_steps(sequence_index: ShardIndex) -> None:
    assert read_index(sequence_index.root) == sequence_index
    assert {e.clip: (e.features, e.feature_steps) for e in sequence_index.clips} == {
        e.clip: (2, n + 1) for n, e in enumerate(sequence_index.clips)
    }
    assert sequence_index.has("features") == sequence_index.has("feature_sequence") == 12


def test_an_index_from_before_has_one_row_a_clip(small_index: ShardIndex) -> None:
    path = Path(small_index.root) / "index.json"
    document = json.loads(path.read_text())
    del document["saliency_maps"]
    for clip in document["clips"]:
        del clip["feature_steps"]
    path.write_text(json.dumps(document))
    index = read_index(small_index.root)
    assert (index.has("features"), index.has("feature_sequence")) == (12, 0)
    assert index.saliency_maps is False
    assert index == replace(small_index, checksum=index.checksum)


def test_a_shard_holds_every_frame(sequences: Corpus, sequence_index: ShardIndex) -> None:
    by_name = {record.clip: record.features for record in sequences.clips}
    for sample in stream_clips(sequence_index):
        np.testing.assert_array_equal(sample["features"], by_name[sample["clip"]])


def test_a_batch_has_the_steps_and_their_mean(sequence_index: ShardIndex, tmp_path: Path) -> None:
    cache = open_cache(sequence_index, tmp_path / "cache")
    batch = cache.batch(np.asarray([3, 1]), ["features", "feature_sequence"])
    assert batch["feature_sequence"].shape == (2, 4, 2)
    assert str(batch["feature_sequence"].dtype) == "torch.float32"
    assert batch["feature_sequence"][0].tolist() == [[3, 0], [3, 1], [3, 2], [3, 3]]
    assert batch["feature_sequence"][1].tolist() == [[1, 0], [1, 1], [0, 0], [0, 0]]
    assert batch["feature_sequence_lengths"].tolist() == [4, 2]
    assert batch["features"].tolist() == [[3, 1.5], [1, 0.5]]
    assert "features_lengths" not in batch


def test_a_clip_without_features_has_no_steps(sequences: Corpus, tmp_path: Path) -> None:
    first = replace(sequences.clips[0], features=None)
    index = prepare(replace(sequences, clips=(first, *sequences.clips[1:])), tmp_path / "out")
    assert index.has("feature_sequence") == 11
    batch = open_cache(index, tmp_path / "cache").batch(np.asarray([0, 1]), ["feature_sequence"])
    assert batch["feature_sequence_lengths"].tolist() == [0, 2]
    assert not batch["feature_sequence"][0].any()


@pytest.mark.parametrize("kind", ["features", "feature_sequence"])
def test_both_can_be_derived_from(sequence_index: ShardIndex, tmp_path: Path, kind: str) -> None:
    cache = open_cache(sequence_index, tmp_path / "cache")

    def double(batch: Batch):  # type: ignore[no-untyped-def]
        x = batch[kind] if kind == "feature_sequence" else batch[kind][:, None]
        return 2 * x, batch.get(f"{kind}_lengths", batch["target"] * 0 + 1)

    values, lengths = cache.derive("double", kind, double, batch_clips=5).gather(np.asarray([2, 0]))
    if kind == "features":
        assert (values.tolist(), lengths.tolist()) == ([[[4, 2]], [[0, 0]]], [1, 1])
    else:
        assert lengths.tolist() == [3, 1]
        assert values[0].tolist() == [[4, 0], [4, 2], [4, 4]]


def test_a_corpus_of_sequences_passes(
    sequence_index: ShardIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(sequence_index).violations == []
    assert verify_main([sequence_index.root]) == 0
    assert "features 12, feature_sequence 12; skipped" in capsys.readouterr().out


def test_steps_that_are_not_the_indexs_are_a_violation(sequence_index: ShardIndex) -> None:
    path = Path(sequence_index.root) / "index.json"
    document = json.loads(path.read_text())
    document["clips"][5]["feature_steps"] = 3
    path.write_text(json.dumps(document))
    name = document["clips"][5]["clip"]
    assert verify(read_index(sequence_index.root)).violations == [
        f"clip '{name}' has another shape than the index says"
    ]


def test_the_command_takes_a_table_for_a_manifest(
    small_corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = small_corpus.clips[0].audio
    assert first is not None
    rows = [f"{r.clip},{r.speaker},{r.label},{r.clip}.wav" for r in small_corpus.clips]
    (first.parent / "manifest.csv").write_text("clip,speaker,label,audio\n" + "\n".join(rows))
    lines = [f"{r.clip},{frame},{frame},1" for r in small_corpus.clips for frame in (0, 1)]
    table = write(tmp_path, HEADER + "\n".join(lines) + "\n")
    place = ["--root", str(first.parent), "--out", str(tmp_path / "out")]
    assert main(["manifest", *place, "--features", str(table)]) == 0
    assert "features 12, feature_sequence 12" in capsys.readouterr().out
    assert {e.feature_steps for e in read_index(tmp_path / "out").clips} == {2}


def test_the_synthetic_corpus_takes_no_other_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--root", str(tmp_path / "media"), "--out", str(tmp_path / "out")]
    assert main(["synthetic", *place, "--features", str(tmp_path / "features.csv")]) == 2
    assert "renders its own features; remove --features" in capsys.readouterr().err
