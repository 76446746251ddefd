"""Copies are found however they were made, and different recordings are not taken for copies."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus
from datasets.media import fingerprint as module
from datasets.media.fingerprint import fingerprint, near_duplicates
from datasets.sharding.writer import prepare
from datasets.verify import verify

RATE = 16_000
Waveform = NDArray[np.int16]


def speech(seed: int, seconds: float = 2.5) -> Waveform:
    """Syllables of a gliding voice, of its own pitch and formants."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    steps = np.interp(time, np.linspace(0, seconds, 14), generator.uniform(90, 280, 14))
    phase = 2 * np.pi * np.cumsum(steps) / RATE
    wave = np.zeros_like(time)
    for harmonic in range(1, 18):
        loudness = np.interp(time, np.linspace(0, seconds, 17), generator.uniform(0, 1, 17) ** 3)
        wave += loudness / harmonic**0.5 * np.sin(harmonic * phase)
    noise = generator.normal(0, 0.003, len(time))
    return np.asarray(8000 * (wave / np.abs(wave).max() + noise), np.int16)


def as_mp3(wave: Waveform) -> Waveform:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="MP3")
    file.seek(0)
    return np.asarray(32767 * soundfile.read(file)[0], np.int16)


def alike(one: Waveform, other: Waveform) -> bool:
    prints = {"one": fingerprint(one, RATE), "other": fingerprint(other, RATE)}
    return near_duplicates(prints) == [("one", "other")]


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_is_found_however_it_was_made(seed: int) -> None:
    wave = speech(seed)
    assert alike(wave, (wave * 0.3).astype(np.int16))
    assert alike(wave, wave[5_000:])
    assert alike(wave, np.concatenate([np.zeros(7_001, np.int16), wave]))
    assert alike(wave, as_mp3(wave))


def test_different_recordings_are_not_copies() -> None:
    prints = {f"clip{seed}": fingerprint(speech(seed), RATE) for seed in range(60)}
    assert all(len(words) == 24 for words in prints.values())
    assert near_duplicates(prints) == []


def test_what_holds_nothing_has_no_fingerprint() -> None:
    assert fingerprint(np.zeros(RATE, np.int16), RATE) == frozenset()
    assert fingerprint(np.ones(100, np.int16), RATE) == frozenset()
    assert near_duplicates({"one": frozenset(), "other": frozenset()}) == []


def test_a_copy_on_another_side_is_a_violation(tmp_path: Path) -> None:
    clips = []
    for number, (speaker, label) in enumerate(
        (speaker, label) for speaker in ("ann", "bob", "cem") for label in ("glad", "sad")
    ):
        wave = speech(number)
        if number == 5:  # cem's second is ann's second, quieter and cut
            wave = np.asarray(speech(1)[3_000:] // 2, np.int16)
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, wave, RATE)
        clips.append(ClipRecord(clip=f"clip{number}", speaker=speaker, label=label, audio=path))
    corpus = Corpus(name="copied", labels=("glad", "sad"), clips=tuple(clips))
    index = prepare(corpus, tmp_path / "shards")
    assert not index.duplicates(), "not the same samples"
    (violation,) = verify(index).violations
    assert "Leak: 'clip1' and 'clip5' are nearly the same recording" in violation


def test_ravdess_has_one_recording_twice_and_no_others(corpora: Path) -> None:
    prints = {}
    for actor in ("Actor_07", "Actor_08", "Actor_23"):
        for path in sorted((corpora / "ravdess" / actor).glob("*.flac")):
            samples = soundfile.read(path, dtype="int16", always_2d=True)[0][:, 0]
            prints[path.stem] = fingerprint(samples, RATE)
    assert near_duplicates(prints) == [("03-01-03-01-02-01-07", "03-01-03-01-02-02-07")]


def test_pairs_are_the_same_however_many_are_counted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = np.random.default_rng(0)
    prints = {f"c{n}": frozenset(chance.choice(90, 24).tolist()) for n in range(60)}
    common = {
        frozenset((a, b))
        for a in prints
        for b in prints
        if a < b and len(prints[a] & prints[b]) >= module._ALIKE
    }
    assert 10 < len(common) < 60 * 59 / 2
    for size in (1, 50, 10**9):
        monkeypatch.setattr(module, "_PAIRS_AT_ONCE", size)
        found = near_duplicates(prints)
        assert found == sorted(found) and {frozenset(pair) for pair in found} == common
    assert near_duplicates({}) == near_duplicates({"a": frozenset(), "b": frozenset()}) == []
