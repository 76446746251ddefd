from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datasets.clips import ClipRecord, Corpus, DataError
from datasets.corpora import synthetic
from datasets.corpora.synthetic import ACTION_UNITS, FRAME_RATE_HZ, LABELS, load_synthetic
from datasets.features import clip_means
from datasets.media.audio import read_audio
from datasets.media.video import read_frames


def sound(record: ClipRecord) -> NDArray[np.int16]:
    assert record.audio is not None
    return read_audio(record.audio, 16_000)


def home(corpus: Corpus) -> Path:
    """The folder that it was written to."""
    assert corpus.clips[0].audio is not None
    return corpus.clips[0].audio.parents[1]


def pictures(record: ClipRecord) -> NDArray[np.uint8]:
    assert record.video is not None
    return read_frames(record.video, 4, (60, 100))


@pytest.fixture(scope="module")
def one_speaker(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_synthetic(tmp_path_factory.mktemp("one"), speakers=1, repetitions=1, seed=3)


@pytest.fixture(scope="module")
def many_takes(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_synthetic(tmp_path_factory.mktemp("many"), speakers=1, repetitions=10, seed=0)


def test_every_speaker_expresses_every_emotion(tiny_corpus: Corpus) -> None:
    assert tiny_corpus.name == "synthetic"
    assert tiny_corpus.labels == LABELS
    pairs = Counter((record.speaker, record.label) for record in tiny_corpus.clips)
    assert pairs == {(f"speaker_{s:02d}", label): 1 for s in range(4) for label in LABELS}


def test_clips_are_short_and_hold_sound_and_pictures(one_speaker: Corpus) -> None:
    for record in one_speaker.clips:
        assert 1.2 * 16_000 <= len(sound(record)) <= 1.8 * 16_000
        assert np.abs(sound(record).astype(np.int32)).max() > 300
        assert pictures(record).std() > 10


def test_the_same_seed_makes_the_same_clips(one_speaker: Corpus, tmp_path: Path) -> None:
    again = load_synthetic(tmp_path / "again", speakers=1, repetitions=1, seed=3)
    assert [r.clip for r in again.clips] == [r.clip for r in one_speaker.clips]
    for first, second in zip(one_speaker.clips, again.clips, strict=True):
        np.testing.assert_array_equal(sound(first), sound(second))
        np.testing.assert_array_equal(pictures(first), pictures(second))
        assert first.video is not None
        assert second.video is not None
        assert first.video.read_bytes() == second.video.read_bytes()


def test_another_seed_makes_other_clips(one_speaker: Corpus, tiny_corpus: Corpus) -> None:
    others = [record for record in tiny_corpus.clips if record.speaker == "speaker_00"]
    assert [r.clip for r in others] == [r.clip for r in one_speaker.clips]
    for first, second in zip(one_speaker.clips, others, strict=True):
        assert not np.array_equal(sound(first), sound(second))
        assert not np.array_equal(pictures(first), pictures(second))


def test_speakers_of_one_seed_differ(tiny_corpus: Corpus) -> None:
    neutral = [record for record in tiny_corpus.clips if record.label == "neutral"]
    backgrounds = {tuple(pictures(record)[0, 0, 0].tolist()) for record in neutral}
    assert len(backgrounds) == len(neutral) == 4


def test_a_corpus_that_is_there_is_not_written_again(one_speaker: Corpus) -> None:
    def written(corpus: Corpus) -> list[int]:
        return [r.audio.stat().st_mtime_ns for r in corpus.clips if r.audio]

    before = written(one_speaker)
    again = load_synthetic(home(one_speaker), speakers=1, repetitions=1, seed=3)
    assert written(again) == before and len(before) == 6


def test_an_interrupted_corpus_is_written_again(
    one_speaker: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = synthetic._write_video

    def stop_at_the_third(path: Path, frames: NDArray[np.uint8]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        real(path, frames)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthetic, "_write_video", stop_at_the_third)
        load_synthetic(tmp_path, speakers=1, repetitions=1, seed=3)
    assert not (tmp_path / "manifest.csv").exists()
    again = load_synthetic(tmp_path, speakers=1, repetitions=1, seed=3)
    assert len(again.clips) == 6
    np.testing.assert_array_equal(sound(again.clips[0]), sound(one_speaker.clips[0]))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Cannot write to '.*/file/corpus': Not a directory"):
        load_synthetic(tmp_path / "file" / "corpus", speakers=1, repetitions=1)


def test_happy_and_surprised_sound_alike_and_sad_does_not(many_takes: Corpus) -> None:
    def level_db(label: str) -> float:
        takes = [sound(r) / 32768.0 for r in many_takes.clips if r.label == label]
        return float(np.mean([10 * np.log10(np.mean(take**2)) for take in takes]))

    assert abs(level_db("happy") - level_db("surprised")) < 3
    assert level_db("happy") - level_db("sad") > 5


def test_sad_and_fearful_look_alike_and_happy_and_surprised_do_not(many_takes: Corpus) -> None:
    def face(label: str) -> NDArray[np.float64]:
        takes = [pictures(r).astype(np.float64) for r in many_takes.clips if r.label == label]
        return np.asarray(np.mean(takes, axis=(0, 1)))

    def distance(one: str, other: str) -> float:
        return float(np.sqrt(np.mean((face(one) - face(other)) ** 2)))

    assert distance("happy", "surprised") > 1.5 * distance("sad", "fearful")


def units(record: ClipRecord) -> NDArray[np.float32]:
    assert record.features is not None
    return record.features


def test_action_units_come_frame_by_frame(one_speaker: Corpus) -> None:
    assert one_speaker.feature_names == ACTION_UNITS
    assert one_speaker.skipped == ()
    for record in one_speaker.clips:
        steps = len(sound(record)) / 16_000 * FRAME_RATE_HZ
        assert units(record).shape == (int(steps), len(ACTION_UNITS))


def test_action_units_follow_the_face(many_takes: Corpus) -> None:
    def mean(label: str, unit: str) -> float:
        takes = [units(r) for r in many_takes.clips if r.label == label]
        return float(np.mean([take[:, ACTION_UNITS.index(unit)].mean() for take in takes]))

    assert mean("happy", "mouth_corners") > mean("sad", "mouth_corners") + 0.3
    assert mean("surprised", "eye_opening") > mean("neutral", "eye_opening") + 0.2
    assert abs(mean("sad", "brow_tilt") - mean("fearful", "brow_tilt")) < 0.1


def test_a_lost_frame_repeats_the_one_before(many_takes: Corpus) -> None:
    still = [(np.diff(units(r), axis=0) == 0).all(axis=1).mean() for r in many_takes.clips]
    assert 0.02 < np.mean(still) < 0.1  # 5 % are lost


def test_the_tracker_changes_no_picture_and_no_sound(
    one_speaker: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_much(
        tracker: object, movement: NDArray[np.float64], generator: np.random.Generator
    ) -> NDArray[np.float64]:
        return movement + generator.normal(size=(5, *movement.shape)).sum(axis=0)

    monkeypatch.setattr(synthetic._Tracker, "see", draw_much)
    other = load_synthetic(tmp_path / "other", speakers=1, repetitions=1, seed=3)
    for first, second in zip(one_speaker.clips, other.clips, strict=True):
        assert first.audio and first.video and second.audio and second.video
        assert first.audio.read_bytes() == second.audio.read_bytes()
        assert first.video.read_bytes() == second.video.read_bytes()
        assert not np.array_equal(units(first), units(second))


def test_a_corpus_from_before_it_had_action_units_is_completed(
    one_speaker: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(home(one_speaker), tmp_path / "old")
    (tmp_path / "old" / "action_units.csv").unlink()
    again = load_synthetic(tmp_path / "old", speakers=1, repetitions=1, seed=3)
    for first, second in zip(one_speaker.clips, again.clips, strict=True):
        np.testing.assert_array_equal(units(first), units(second))


def test_a_linear_model_on_their_means_is_right_about_half_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Twelve speakers, three repetitions, speakers left out; nothing is drawn or spoken.
    monkeypatch.setattr(synthetic._Face, "_frame", lambda *_: np.zeros((1, 1, 3)))
    monkeypatch.setattr(synthetic, "FRAME_SIZE", (1, 1))
    scores = []
    for seed in range(2):
        values, labels, speakers = [], [], []
        for speaker in range(12):
            face = synthetic._Face(np.random.default_rng((seed, speaker, 2)))
            tracker = synthetic._Tracker(np.random.default_rng((seed, speaker, 100)))
            for emotion, label in enumerate(LABELS):
                for take in range(3):
                    generator = np.random.default_rng((seed, speaker, 3 + emotion, take))
                    _, movement = face.draw(synthetic._EXPRESSION[label], 1.5, generator)
                    values.append(clip_means(tracker.see(movement, generator)))  # type: ignore[arg-type]
                    labels.append(emotion)
                    speakers.append(speaker)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        split = LeaveOneGroupOut()
        scores.append(
            cross_val_score(model, np.stack(values), labels, groups=speakers, cv=split).mean()
        )
    # Two pairs of emotions look alike, so that no face gives more than 4 of 6.
    assert 0.45 < np.mean(scores) < 0.62
