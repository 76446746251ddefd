"""RECOLA's two layouts, made here with real media; gold standard, windows, protocols."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets.clips import DataError
from datasets.corpora.recola import gold_standard, load_recola
from datasets.corpora.synthetic_traces import make_synthetic_traces
from datasets.features import with_features
from datasets.prepare import main
from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import ShardIndex
from datasets.sharding.writer import ShardSettings, prepare
from datasets.targets import traces_of

SECONDS = 9.0
STEPS = 225


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings of the original release's layout."""
    root = tmp_path_factory.mktemp("recola")
    make_synthetic_traces(root, speakers=4, minutes=SECONDS / 60, seed=1)
    return root


@pytest.fixture()
def challenge(tmp_path: Path) -> Path:
    """AVEC 2016's layout: train_1, train_2, dev_1, and a test recording without labels."""
    root = tmp_path / "avec"
    (root / "recordings_audio").mkdir(parents=True)
    for number, name in enumerate(("train_1", "train_2", "dev_1", "test_1")):
        sound = 0.1 * np.sin(np.arange(int(SECONDS * 16000)) / (20 + number))
        soundfile.write(root / "recordings_audio" / f"{name}.wav", sound, 16000)
    for place, dimension in enumerate(("arousal", "valence")):
        folder = root / "ratings_gold_standard" / dimension
        folder.mkdir(parents=True)
        for name in ("train_1", "train_2", "dev_1"):
            rows = [
                f"'{name}',{0.04 * step:.2f},{0.001 * step + place:.6f}"
                for step in range(STEPS + 1)
            ]
            header = ["@relation gold", "@attribute name string", "@attribute value numeric"]
            (folder / f"{name}.arff").write_text("\n".join([*header, "@DATA", *rows]) + "\n")
    return root


def test_the_gold_standard_centres_each_rater_and_keeps_the_mean() -> None:
    ratings = np.asarray([[0.0, 1.0], [0.2, 1.4], [0.4, 1.8]])
    gold = gold_standard(ratings, "mean")
    # Deviations -0.2,0,0.2 and -0.4,0,0.4: their mean; the middle is that of 0.2 and 1.4.
    np.testing.assert_allclose(gold, [0.5, 0.8, 1.1])


def test_a_rater_who_agrees_with_nobody_does_not_count_where_agreement_weighs() -> None:
    wave = np.sin(np.linspace(0, 6, 100))
    ratings = np.stack([wave, wave, -wave], axis=1)
    np.testing.assert_allclose(gold_standard(ratings, "ccc"), wave, atol=1e-12)
    assert np.abs(gold_standard(ratings, "mean") - wave).max() > 0.5


def test_raters_who_all_disagree_weigh_alike() -> None:
    ratings = np.asarray([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(gold_standard(ratings, "ccc"), [0.5, 0.5])


def test_windows_tile_a_recording_and_the_last_one_ends_with_it(original: Path) -> None:
    corpus = load_recola(original, window_seconds=4.0)
    of_one = [clip for clip in corpus.clips if clip.recording == "P01"]
    assert [clip.first_step for clip in of_one] == [0, 100, 125]
    assert all(clip.trace is not None and clip.trace.shape == (100, 2) for clip in of_one)
    part = of_one[2].audio_part
    assert part is not None
    assert (part.start_s, part.end_s) == (5.0, 9.0)
    assert {clip.speaker for clip in of_one} == {"P01"}, "a window holds one speaker"


def test_windows_slide_by_the_hop(original: Path) -> None:
    corpus = load_recola(original, window_seconds=4.0, hop_seconds=2.0)
    starts = [clip.first_step for clip in corpus.clips if clip.recording == "P02"]
    assert starts == [0, 50, 100, 125]


def test_the_challenge_drops_the_row_of_no_time_and_names_what_has_no_labels(
    challenge: Path,
) -> None:
    corpus = load_recola(challenge)
    assert {clip.recording for clip in corpus.clips} == {"train_1", "train_2", "dev_1"}
    first = corpus.clips[0]
    assert first.trace is not None
    np.testing.assert_allclose(first.trace[0], [0.001, 1.001], rtol=1e-5)
    assert [(s.clip, s.reason) for s in corpus.skipped] == [("test_1", "has no ratings")]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("train_1',0.08,0.002000", "train_1',0.08,nan", r"row 7: 'nan' is not a finite number"),
        ("train_1',0.08,", "train_1',0.10,", r"the one of 0.08 s is of 0.10 s"),
        ("'train_1',0.08,0.002000", "'train_2',0.08,0.002", r"row 7, is not 'train_1,SECONDS"),
        ("@DATA", "@nothing", r"has no @data"),
    ],
)
def test_a_bad_row_is_named(challenge: Path, old: str, new: str, told: str) -> None:
    path = challenge / "ratings_gold_standard" / "arousal" / "train_1.arff"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=told):
        load_recola(challenge)


def test_a_rater_who_lacks_a_number_is_named(original: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    make_synthetic_traces(root, speakers=2, minutes=0.1, seed=1)
    path = root / "RECOLA-Annotation" / "emotional_behaviour" / "valence" / "P02.csv"
    lines = path.read_text().splitlines()
    assert lines[0].split(";")[1] == "FM1 ", "headers end in a space, as in the release"
    lines[3] = ";".join(lines[3].split(";")[:-1])
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"P02.csv', row 4, has other fields"):
        load_recola(root)


def test_a_folder_of_another_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither 'ratings_gold_standard' \(AVEC 2016\) nor"):
        load_recola(tmp_path)
    with pytest.raises(DataError, match="the hop at most the window"):
        load_recola(_with_layout(tmp_path), window_seconds=2.0, hop_seconds=3.0)


def _with_layout(folder: Path) -> Path:
    (folder / "ratings_gold_standard").mkdir()
    return folder


@pytest.fixture(scope="module")
def shards(original: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    out = tmp_path_factory.mktemp("shards") / "recola"
    corpus = load_recola(original, window_seconds=4.0)
    return prepare(corpus, out, ShardSettings(frames=10, frame_size=(32, 32), clips_per_shard=4))


def test_traces_come_back_whole_from_the_shards(
    shards: ShardIndex, original: Path, tmp_path: Path
) -> None:
    traces = traces_of(open_cache(shards, tmp_path))
    assert traces.recordings == ("P01", "P02", "P03", "P04")
    assert (traces.dimensions, traces.step_seconds) == (("arousal", "valence"), 0.04)
    assert np.diff(traces.offsets).tolist() == [STEPS] * 4
    clip = next(c for c in load_recola(original, window_seconds=4.0).clips if c.first_step == 125)
    assert clip.trace is not None
    np.testing.assert_array_equal(traces.gold[125:225], clip.trace)


def test_the_sound_of_a_window_is_that_of_its_labels(shards: ShardIndex, original: Path) -> None:
    whole, rate = soundfile.read(original / "RECOLA-Audio-recordings" / "P01.wav", dtype="int16")
    cache = open_cache(shards, None)
    row = next(r for r, e in enumerate(cache.index.clips) if e.clip == "P01-00100")
    heard = cache.batch(np.asarray([row]), ["audio"])["audio"][0].numpy()
    first = round(100 * 0.04 * rate)
    np.testing.assert_allclose(heard * 32768, whole[first : first + len(heard)], atol=0.51)


def test_protocols_take_what_is_there_of_their_lists(shards: ShardIndex) -> None:
    folds = make_folds(shards)
    assert (folds.protocol, folds.count, folds.metric) == ("recola-open-kfold", 4, "ccc")
    with pytest.raises(DataError, match="Protocol recola-tzirakis does not know 'P01'"):
        make_folds(shards, "recola-tzirakis")


def test_the_challenges_parts_are_folds(challenge: Path, tmp_path: Path) -> None:
    index = prepare(load_recola(challenge), tmp_path / "out")
    folds = make_folds(index, "recola-avec")
    speakers = np.asarray([entry.speaker for entry in index.clips])
    assert {*speakers[folds.test_rows(0)]} == {"train_1", "train_2"}
    assert {*speakers[folds.test_rows(1)]} == {"dev_1"}


def test_windows_of_a_recording_on_two_sides_are_a_leak(shards: ShardIndex) -> None:
    from dataclasses import replace

    from datasets.protocols.leakage import guard_against_leaks

    clips = tuple(replace(e, speaker=e.clip) for e in shards.clips)
    folds = np.arange(len(clips)) % 2
    with pytest.raises(DataError, match="windows of the recording 'P01' are on several sides"):
        guard_against_leaks(replace(shards, clips=clips), folds)


def test_the_command_prepares_a_recola(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = main(
        ["recola", "--root", str(original), "--out", str(out), "--window", "3", "--gold", "mean"]
    )
    told = capsys.readouterr().out
    assert code == 0
    assert re.search(r"12 clips of 4 speakers", told)
    assert "traces of arousal, valence every 40 ms, of 4 recordings" in told
    assert "classes:" not in told


def test_silent_windows_of_two_speakers_are_not_the_same_recording(
    challenge: Path, tmp_path: Path
) -> None:
    for name in ("train_1", "dev_1"):
        path = challenge / "recordings_audio" / f"{name}.wav"
        sound, rate = soundfile.read(path)
        sound[: 3 * rate] = 0.0
        soundfile.write(path, sound, rate)
    index = prepare(load_recola(challenge, window_seconds=3.0), tmp_path / "out")
    assert index.duplicates() == []
    assert make_folds(index).count == 3


def test_features_of_a_recording_are_dealt_to_its_windows(original: Path, tmp_path: Path) -> None:
    """A row every 20 ms of P01, so that a window of 4 s has 200 of 450; other recordings have none."""
    np.savez(tmp_path / "lld.npz", P01=np.arange(450, dtype=np.float32)[:, None])
    corpus = with_features(load_recola(original, window_seconds=4.0), tmp_path / "lld.npz")
    mine = {c.first_step: c.features for c in corpus.clips if c.recording == "P01"}
    for first, features in mine.items():
        assert features is not None
        assert features[:, 0].tolist() == list(range(2 * first, 2 * first + 200))
    named = {s.clip for s in corpus.skipped}
    assert "P02-00000" in named
    assert not any(name.startswith("P01") or "features row" in name for name in named)


def test_another_synthetic_corpus_is_not_mixed_with_the_one_that_is_there(tmp_path: Path) -> None:
    make_synthetic_traces(tmp_path, speakers=1, minutes=0.1)
    before = (tmp_path / "RECOLA-Audio-recordings" / "P01.wav").read_bytes()
    make_synthetic_traces(tmp_path, speakers=1, minutes=0.1)
    with pytest.raises(DataError, match="holds another synthetic corpus"):
        make_synthetic_traces(tmp_path, speakers=2, minutes=0.1)
    assert (tmp_path / "RECOLA-Audio-recordings" / "P01.wav").read_bytes() == before
