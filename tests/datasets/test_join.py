"""Corpora of three layouts, prepared, joined, verified and split."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import join as join_module
from datasets.clips import ClipRecord, Corpus, DataError, Skipped
from datasets.corpora.label_maps import parse_map
from datasets.join import Part, join, main, read_part
from datasets.media.crop import Crop
from datasets.prepare import main as prepare_main
from datasets.protocols.split import corpus_speakers, make_folds
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import FILE_NAME, ShardIndex, read_index, write_index
from datasets.sharding.stream import stream_clips
from datasets.sharding.writer import ShardSettings, prepare
from datasets.verify import main as verify_main
from tests.corpora import write_crema_d, write_iemocap, write_ravdess

FOUR = ("angry", "happy", "neutral", "sad")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three corpora: 5 speakers of 8, 5 of 6 and 10 of 5 clips each."""
    home = tmp_path_factory.mktemp("prepared")
    trees = {
        "ravdess": write_ravdess(home / "media" / "ravdess"),
        "crema_d": write_crema_d(home / "media" / "crema_d"),
        "iemocap": write_iemocap(home / "media" / "iemocap"),
    }
    for corpus, root in trees.items():
        arguments = [corpus, "--root", str(root), "--out", str(home / corpus)]
        assert prepare_main([*arguments, "--clips-per-shard", "16"]) == 0
    return home


@pytest.fixture(scope="module")
def joined(prepared: Path) -> ShardIndex:
    parts = [read_part(str(prepared / name)) for name in ("ravdess", "crema_d", "iemocap")]
    return join(parts, prepared / "joined", parse_map("common4"))


def test_three_corpora_become_one(joined: ShardIndex, prepared: Path) -> None:
    assert joined.corpus == "ravdess+crema_d+iemocap"
    assert joined.labels == FOUR
    counts = Counter((e.attributes["corpus"], e.label) for e in joined.clips)
    of_ravdess = {("ravdess", label): 5 for label in FOUR}
    of_crema_d = {("crema_d", label): 5 for label in FOUR}
    of_iemocap = {("iemocap", label): 10 for label in FOUR} | {("iemocap", "happy"): 20}
    assert counts == of_ravdess | of_crema_d | of_iemocap
    clips = {entry.clip: entry for entry in joined.clips}
    assert clips["03-01-05-01-01-01-02"].speaker == "ravdess:Actor_02"
    assert clips["1003_DFA_SAD_XX"].speaker == "crema_d:1003"
    assert clips["Ses02F_impro01_M000"].speaker == "iemocap:Ses02M"
    assert joined.summary()["per_corpus"] == {"crema_d": 20, "iemocap": 50, "ravdess": 20}
    own = {name: read_index(prepared / name).checksum for name in ("ravdess", "crema_d", "iemocap")}
    assert {s.corpus: (s.checksum, s.label_map) for s in joined.sources} == {
        name: (checksum, "common4") for name, checksum in own.items()
    }


def test_clips_whose_label_becomes_nothing_are_named_by_corpus(joined: ShardIndex) -> None:
    reasons = Counter(skipped.reason for skipped in joined.left_out)
    of_ravdess = ("calm", "disgust", "fearful", "surprised")
    assert reasons == {
        f"'{label}' of {corpus} becomes nothing (map common4)": 5
        for corpus, labels in {"ravdess": of_ravdess, "crema_d": ("disgust", "fearful")}.items()
        for label in labels
    }


def test_votes_are_mapped(joined: ShardIndex) -> None:
    votes = [entry.votes for entry in joined.clips if entry.attributes["corpus"] == "iemocap"]
    # Two raters of three; the third said frustrated, which is left out.
    assert all(list(vote.values()) == [1.0] for vote in votes)
    assert {label for vote in votes for label in vote} == set(FOUR)


def test_shards_are_links_to_what_was_there(joined: ShardIndex, prepared: Path) -> None:
    names = {path.name for path in (prepared / "joined").iterdir()}
    assert names == {FILE_NAME, *(shard.name for shard in joined.shards)}
    assert "ravdess-shard-00000.tar" in names
    one, other = (
        prepared / "joined" / "ravdess-shard-00000.tar",
        prepared / "ravdess" / "shard-00000.tar",
    )
    assert one.samefile(other)


def test_what_is_left_out_is_neither_streamed_nor_a_violation(
    joined: ShardIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    streamed = [sample["clip"] for sample in stream_clips(joined)]
    assert sorted(streamed) == [entry.clip for entry in joined.clips]
    cache = open_cache(joined, tmp_path / "cache")
    assert not cache.missing.any()
    assert verify_main([joined.root, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["violations"] == []
    assert told["clips_in_shards"] == told["clips"] == 90
    assert len(told["left_out"]) == 30
    assert told["per_corpus"] == {"crema_d": 20, "iemocap": 50, "ravdess": 20}
    assert told["differs_from_published"] == {}
    assert "5 clips are left out: 'calm' of ravdess becomes nothing (map common4)" in told["notes"]


def test_a_clip_that_nobody_left_out_is_still_a_violation(
    joined: ShardIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(joined.root, tmp_path / "other")
    write_index(replace(joined, left_out=joined.left_out[1:]), tmp_path / "other")
    assert verify_main([str(tmp_path / "other")]) == 1
    assert f"'{joined.left_out[0].clip}' is not what the index says" in capsys.readouterr().out
    with pytest.raises(DataError, match=f"Corrupt clip '{joined.left_out[0].clip}'"):
        open_cache(read_index(tmp_path / "other"), tmp_path / "cache")


def test_a_joined_corpus_is_dealt_to_five_folds_with_every_corpus_in_each(
    joined: ShardIndex,
) -> None:
    folds = make_folds(joined)
    assert folds.protocol == "speaker-kfold:5"
    for fold in range(5):
        tested = {joined.clips[row].speaker for row in folds.test_rows(fold)}
        assert Counter(speaker.partition(":")[0] for speaker in tested) == {
            "ravdess": 1, "crema_d": 1, "iemocap": 2,
        }  # fmt: skip


def test_a_class_of_one_corpus_alone_is_in_every_fold(prepared: Path, tmp_path: Path) -> None:
    parts = [read_part(str(prepared / name)) for name in ("iemocap", "ravdess")]
    index = join(parts, tmp_path / "out")
    assert index.labels == (
        "angry", "calm", "disgust", "fearful", "happy", "neutral", "sad", "surprised",
    )  # fmt: skip
    folds = make_folds(index)
    for fold in range(folds.count):
        assert {index.clips[row].label for row in folds.test_rows(fold)} == set(index.labels)


def test_each_corpus_is_a_fold_of_corpus_out(joined: ShardIndex) -> None:
    folds = make_folds(joined, "corpus-out")
    assert folds.names == ("crema_d", "iemocap", "ravdess")
    for fold, name in enumerate(folds.names):
        tested = {joined.clips[row].attributes["corpus"] for row in folds.test_rows(fold)}
        trained = {joined.clips[row].attributes["corpus"] for row in folds.train_rows(fold)}
        assert (tested, trained) == ({name}, set(folds.names) - {name})


def test_corpus_out_needs_corpora_that_share_their_classes(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs clips of two corpora or more.* here: none\. Join"):
        make_folds(read_index(prepared / "ravdess"), "corpus-out")
    parts = [read_part(str(prepared / name)) for name in ("ravdess", "crema_d")]
    index = join(parts, tmp_path / "out")
    with pytest.raises(DataError, match=r"Fold 0 \(crema_d\) has no clip of class 'calm'"):
        make_folds(index, "corpus-out")


def test_what_is_left_of_a_joined_corpus_is_split_as_published(
    joined: ShardIndex, prepared: Path
) -> None:
    apart = corpus_speakers(joined, "crema_d") + corpus_speakers(joined, "iemocap")
    folds = make_folds(joined, test_speakers=apart)
    assert folds.protocol == "ravdess-luna5"
    assert {joined.clips[row].attributes["corpus"] for row in folds.unseen_rows} == {
        "crema_d", "iemocap",
    }  # fmt: skip
    alone = make_folds(read_index(prepared / "ravdess"))
    expected = {
        f"ravdess:{e.speaker}": int(fold)
        for e, fold in zip(read_index(prepared / "ravdess").clips, alone.fold_of_clip, strict=True)
    }
    found = {
        e.speaker: int(fold)
        for e, fold in zip(joined.clips, folds.fold_of_clip, strict=True)
        if fold >= 0
    }
    assert found == expected
    again = make_folds(joined, folds.protocol, folds.test_speakers)
    assert again.fingerprint == folds.fingerprint


def test_partners_of_what_is_left_are_kept_apart(joined: ShardIndex) -> None:
    apart = corpus_speakers(joined, "crema_d") + corpus_speakers(joined, "ravdess")
    folds = make_folds(joined, "iemocap-loso10", apart)
    for fold in range(10):
        (tested,) = {joined.clips[row].speaker for row in folds.test_rows(fold)}
        trained = {joined.clips[row].speaker for row in folds.train_rows(fold)}
        assert len(trained) == 8
        assert not {who for who in trained if who[:13] == tested[:13]}


def test_an_unknown_corpus_is_told(joined: ShardIndex, prepared: Path) -> None:
    with pytest.raises(
        DataError, match=r"Unknown corpus 'recola'\. Known: crema_d, iemocap, ravdess"
    ):
        corpus_speakers(joined, "recola")
    with pytest.raises(
        DataError, match=r"Unknown corpus 'ravdess'\. This one is not joined\. Join"
    ):
        corpus_speakers(read_index(prepared / "ravdess"), "ravdess")


def test_one_corpus_keeps_its_names_and_protocol(prepared: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "four"), str(prepared / "ravdess"), "--map", "common4-calm"]) == 0
    index = read_index(tmp_path / "four")
    assert index.corpus == "ravdess"
    assert Counter(entry.label for entry in index.clips) == {
        "neutral": 10, "happy": 5, "sad": 5, "angry": 5,
    }  # fmt: skip
    folds = make_folds(index)
    assert folds.protocol == "ravdess-luna5"
    further = join(
        [read_part(str(tmp_path / "four")), read_part(str(prepared / "crema_d"))],
        tmp_path / "both",
        parse_map("common4"),
    )
    assert [source.label_map for source in further.sources] == ["common4-calm; common4", "common4"]
    assert Counter(e.label for e in further.clips)["neutral"] == 15
    assert len([*stream_clips(further)]) == 45


def test_parts_of_one_corpus_are_of_the_same_speakers(prepared: Path, tmp_path: Path) -> None:
    halves = [write_ravdess(tmp_path / f"tree{n}", (n, n + 1)) for n in (1, 3)]
    for number, root in enumerate(halves):
        assert (
            prepare_main(["ravdess", "--root", str(root), "--out", str(tmp_path / f"{number}")])
            == 0
        )
    index = join([read_part(str(tmp_path / "0")), read_part(str(tmp_path / "1"))], tmp_path / "out")
    assert index.corpus == "ravdess"
    assert {entry.speaker for entry in index.clips} == {f"Actor_0{n}" for n in (1, 2, 3, 4)}
    assert [shard.name for shard in index.shards] == [
        "ravdess-shard-00000.tar", "ravdess-2-shard-00000.tar",
    ]  # fmt: skip
    with pytest.raises(DataError, match="'a' and 'b' are both of the corpus 'ravdess', and so of"):
        join([read_part(f"a={tmp_path / '0'}"), read_part(f"b={tmp_path / '1'}")], tmp_path / "two")


@pytest.fixture()
def own(prepared: Path, tmp_path: Path) -> Callable[..., Part]:
    """A corpus of three clips, made from a manifest's rows, with other settings where wanted."""

    def make(folder: str, **changes: Any) -> Part:
        settings = {k: changes.pop(k) for k in ("sample_rate_hz", "frames") if k in changes}
        sounds = sorted((prepared / "media" / "crema_d" / "AudioWAV").iterdir())[:3]
        prefix = changes.pop("prefix", folder)
        wanted = changes.pop("features", None)
        clips = tuple(
            ClipRecord(
                clip=f"{prefix}-{number}",
                speaker=f"speaker{number}",
                label=("happy", "sad", "angry")[number],
                audio=sound,
                features=None if wanted is None else np.ones(wanted, np.float32),
            )
            for number, sound in enumerate(sounds)
        )
        corpus = Corpus(
            name="manifest",
            labels=("angry", "happy", "sad"),
            clips=clips,
            feature_names=changes.pop("feature_names", ()),
        )
        prepare(corpus, tmp_path / folder, ShardSettings(**settings))
        if changes:
            index = read_index(tmp_path / folder)
            write_index(replace(index, **changes), tmp_path / folder)
        return read_part(f"{folder}={tmp_path / folder}")

    return make


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sample_rate_hz": 8000},
            r"same sample_rate_hz: 'one' has 16000, 'two' 8000\. .*\(--sample-rate\)",
        ),
        ({"dimensions": ("arousal",)}, r"same dimensions: 'one' has none, 'two' arousal\. Prepare"),
        (
            {"features": (2,), "feature_names": ("up", "down")},
            r"same feature_names: 'one' has up, 'two' up,down\. .*\(--features\)",
        ),
        (
            {"features": (4, 1), "feature_names": ("up",)},
            r"same features: 'one' has one row a clip, 'two' has one row a frame\. .*\(--features\)",
        ),
    ],
)
def test_corpora_that_were_prepared_otherwise_are_told(
    own: Callable[..., Part], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    one, two = own("one", features=(1,), feature_names=("up",)), own("two", **settings)
    with pytest.raises(DataError, match=message):
        join([one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_pictures(part: Part, frames: int, **changes: Any) -> Part:
    """As if its clips had pictures: what the index says is all that is compared."""
    clips = tuple(replace(entry, frames=frames) for entry in part.index.clips)
    return replace(part, index=replace(part.index, clips=clips, **changes))


@pytest.mark.parametrize(
    ("frames", "changes", "message"),
    [
        (8, {}, r"same frames of a video: 'one' has 20, 'two' has 8\. .*\(--frames\)"),
        (20, {"frame_size": (96, 96)}, r"same frame_size: 'one' has 60,100, 'two' 96,96\. "),
        (20, {"saliency_maps": True}, r"same saliency_maps: 'one' has False, 'two' True\. "),
        (
            20,
            {"crop": Crop(kind="face")},
            r"same crop: 'one' has .*centre.*, 'two' .*face.*\(--crop",
        ),
    ],
)
def test_pictures_that_were_taken_otherwise_are_told(
    own: Callable[..., Part], tmp_path: Path, frames: int, changes: dict[str, Any], message: str
) -> None:
    one, two = with_pictures(own("one"), 20), own("two")
    with pytest.raises(DataError, match=message):
        join([one, with_pictures(two, frames, **changes)], tmp_path / "out")
    blind = replace(two, index=replace(two.index, **changes))
    index, _ = join_module._joined([blind, one], parse_map(""))
    assert (index.frame_size, index.crop) == ((60, 100), Crop()), "who has pictures decides"


def test_a_corpus_without_features_joins_one_with(own: Callable[..., Part], tmp_path: Path) -> None:
    index = join([own("one"), own("two", features=(1,), feature_names=("up",))], tmp_path / "out")
    assert (index.feature_names, index.has("features"), len(index.clips)) == (("up",), 3, 6)
    assert not open_cache(index, tmp_path / "cache").missing.any()


def test_the_same_recording_in_two_corpora_is_a_leak(
    own: Callable[..., Part], tmp_path: Path
) -> None:
    index = join([own("one"), own("two")], tmp_path / "out")
    with pytest.raises(
        DataError, match=r"Leak: 'one-\d' \(one:speaker\d\) and 'two-\d' .* are the same"
    ):
        make_folds(index, "corpus-out")


def test_clips_of_one_name_are_told(own: Callable[..., Part], tmp_path: Path) -> None:
    one, two = own("one", prefix="a"), own("two", prefix="a")
    with pytest.raises(
        DataError, match=r"clip 'a-0' is in '.*one' and in '.*two'\. Clips of a joined"
    ):
        join([one, two], tmp_path / "out")
    # What the first left out would be passed over in the second's shards too.
    without = tuple(entry for entry in one.index.clips if entry.clip != "a-0")
    mapped = replace(one.index, clips=without, left_out=(Skipped("a-0", "was sad"),))
    two = own("three", prefix="b")
    renamed = replace(two.index, clips=(replace(two.index.clips[0], clip="a-0"),))
    with pytest.raises(DataError, match="clip 'a-0' is in"):
        join([Part("one", mapped), Part("three", renamed)], tmp_path / "out")


def test_mistakes_end_in_one_line(
    prepared: Path, joined: ShardIndex, own: Callable[..., Part], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    own("one")
    own("two")
    out, ravdess, crema_d = (
        str(tmp_path / "out"),
        str(prepared / "ravdess"),
        str(prepared / "crema_d"),
    )
    none_of_crema_d = "angry=,disgust=,fearful=,happy=,neutral=,sad="
    for arguments, message in (
        ([str(prepared / "crema_d"), ravdess], f"'{prepared / 'crema_d'}' is not empty. Name another"),
        ([out, str(tmp_path / "none")], f"No index.json in '{tmp_path / 'none'}'"),
        ([out, f"a b={ravdess}"], "A corpus is named with letters, digits and . _ -, got 'a b'"),
        ([out, joined.root, ravdess], f"'{joined.root}' is joined already. Join what it was made of."),
        ([out, ravdess, ravdess], "A corpus is named twice"),
        ([out, str(tmp_path / "one"), str(tmp_path / "two")], "Two corpora are called 'manifest'. Name them: NAME="),
        ([out, ravdess, "--map", "clam=neutral"], "No clip has the label 'clam' (--map). Known: angry, calm"),
        ([out, crema_d, "--map", "common4,happy=,neutral=,sad="], "leaves angry"),
        ([out, ravdess, crema_d, "--map", none_of_crema_d], "leaves no clip of 'crema_d'"),
        (["s3://bucket/out", ravdess], "is a folder of this machine, got 's3://bucket/out'"),
    ):  # fmt: skip
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.startswith("error: ")
        assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], "nothing is left"


def test_the_folder_appears_whole_or_not_at_all(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(prepared / "ravdess", tmp_path / "damaged")
    index = read_index(tmp_path / "damaged")
    with (tmp_path / "damaged" / index.shards[-1].name).open("ab") as file:
        file.write(b"more")
    parts = [read_part(str(tmp_path / "damaged"))]
    with pytest.raises(
        DataError, match=f"shard '.*{index.shards[-1].name}' is not what its index says"
    ):
        join(parts, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]

    monkeypatch.setattr(join_module, "write_index", _full)
    with pytest.raises(DataError, match=r"Cannot write '.*out': No space left on device"):
        join([read_part(str(prepared / "ravdess"))], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_shards_are_copied_where_they_cannot_be_linked(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(join_module.os, "link", refuse)
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    index = join([read_part(str(prepared / "crema_d"))], tmp_path / "out")
    shard = index.shards[0].name
    copy, source = tmp_path / "out" / shard, prepared / "crema_d" / shard.removeprefix("crema_d-")
    assert not copy.samefile(source)
    assert copy.read_bytes() == source.read_bytes()

    shutil.copytree(prepared / "crema_d", tmp_path / "damaged")
    shard = tmp_path / "damaged" / source.name
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"shard-00000\.tar' does not match its checksum"):
        join([read_part(str(tmp_path / "damaged"))], tmp_path / "other")


def test_shards_behind_a_url_are_fetched(object_store: Any, prepared: Path, tmp_path: Path) -> None:
    object_store.create_bucket(Bucket="corpora")
    for path in (prepared / "ravdess").iterdir():
        object_store.upload_file(str(path), "corpora", f"ravdess/{path.name}")
    parts = [read_part("s3://corpora/ravdess"), read_part(f"other={prepared / 'crema_d'}")]
    index = join(parts, tmp_path / "out", parse_map("common4"))
    assert index.corpus == "ravdess+other"
    assert sorted(sample["clip"] for sample in stream_clips(index)) == [e.clip for e in index.clips]
    object_store.delete_object(Bucket="corpora", Key="ravdess/shard-00000.tar")
    with pytest.raises(DataError, match=r"no shard 's3://corpora/ravdess/shard-00000\.tar'"):
        join([read_part("s3://corpora/ravdess")], tmp_path / "again")


def test_a_shard_is_never_put_outside_the_joined_folder(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(prepared / "ravdess", tmp_path / "theirs")
    name = "a/../../evil.tar"
    (tmp_path / "theirs" / "shard-00000.tar").rename(tmp_path / "evil.tar")
    (tmp_path / "ravdess-a").mkdir()
    path = tmp_path / "theirs" / FILE_NAME
    path.write_text(path.read_text().replace("shard-00000.tar", name))
    before = sorted(tmp_path.rglob("*"))
    assert main([str(tmp_path / "out"), str(tmp_path / "theirs")]) == 2
    error = capsys.readouterr().err
    assert f"index.json' lists '{name}', which lies outside its folder" in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
