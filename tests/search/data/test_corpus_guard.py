"""The search's own leak guard: recordings that are nearly the same on two sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from datasets.clips import Corpus, DataError
from datasets.join import join, read_part
from datasets.sharding.clip_cache import ClipCache
from datasets.sharding.writer import ShardSettings, prepare
from search.config import SearchConfig
from search.data.corpus import load_corpus


def _with_a_near_copy(corpus: Corpus, folder: Path) -> Corpus:
    """A clip of speaker_02 is a softer, later cut of one of speaker_00's."""
    first = next(r for r in corpus.clips if r.speaker == "speaker_00")
    other = next(r for r in corpus.clips if r.speaker == "speaker_02" and r.label == first.label)
    assert first.audio is not None
    sound, rate = soundfile.read(first.audio)
    copy = folder / "copy.wav"
    soundfile.write(copy, 0.5 * sound[800:], rate)
    clips = [replace(r, audio=copy, video=None) if r is other else r for r in corpus.clips]
    return replace(corpus, clips=tuple(replace(r, video=None) for r in clips))


@pytest.fixture(scope="module")
def copied(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus's sound, with that copy."""
    home = tmp_path_factory.mktemp("copied")
    prepare(_with_a_near_copy(tiny_corpus, home), home / "shards")
    return home / "shards"


@pytest.fixture(scope="module")
def joined(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two corpora of two speakers each: the copy is in the other one."""
    home = tmp_path_factory.mktemp("joined")
    clips = _with_a_near_copy(tiny_corpus, home).clips
    for name, speakers in (("one", "01"), ("two", "23")):
        own = tuple(r for r in clips if r.speaker[-1] in speakers)
        prepare(replace(tiny_corpus, name=name, clips=own), home / name)
    join([read_part(str(home / name)) for name in ("one", "two")], home / "both")
    return home / "both"


def _config(shards: Path, home: Path, **options: str) -> SearchConfig:
    return SearchConfig(data=str(shards), cache_dir=str(home / "cache"), **options)  # type: ignore[arg-type]


def test_a_near_copy_on_two_sides_is_refused_by_name(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"Leak: 's00-neutral-00' \(speaker_00\) and 's02-neutral-00' \(speaker_02\) are nearly",
    ):
        load_corpus(_config(copied, tmp_path), Console(quiet=True))


def test_a_near_copy_of_a_test_speaker_in_the_folds_is_refused(
    copied: Path, tmp_path: Path
) -> None:
    config = _config(copied, tmp_path, test_speakers="speaker_02", protocol="speaker-kfold:3")
    with pytest.raises(DataError, match=r"nearly the same .* \(folds \d and -1\)"):
        load_corpus(config, Console(quiet=True))
    both = replace(config, test_speakers="speaker_00,speaker_02", protocol="speaker-kfold:2")
    load_corpus(both, Console(quiet=True))  # on one side: none of both is trained on


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({"test_corpus": "two"}, r"folds \d and -1"),
        ({"protocol": "corpus-out"}, r"folds 0 and 1"),
    ],
)
def test_a_near_copy_in_the_other_corpus_is_refused(
    joined: Path, tmp_path: Path, options: dict[str, str], sides: str
) -> None:
    who = r"'s00-neutral-00' \(one:speaker_00\) and 's02-neutral-00' \(two:speaker_02\)"
    with pytest.raises(DataError, match=rf"Leak: {who} are nearly the same .* \({sides}\)"):
        load_corpus(_config(joined, tmp_path, **options), Console(quiet=True))


def test_the_same_pictures_without_sound_on_two_sides_are_refused(
    tiny_corpus: Corpus, tmp_path: Path
) -> None:
    seen = tuple(replace(r, audio=None, features=None) for r in tiny_corpus.clips)
    first, other = seen[0], next(r for r in seen if r.speaker == "speaker_02")
    twice = tuple(replace(r, video=first.video) if r is other else r for r in seen)
    for name, clips in (("once", seen), ("twice", twice)):
        corpus = replace(tiny_corpus, clips=clips, feature_names=())
        prepare(corpus, tmp_path / name, ShardSettings(frames=2, frame_size=(16, 16)))
    load_corpus(_config(tmp_path / "once", tmp_path), Console(quiet=True))
    with pytest.raises(DataError, match=f"'{first.clip}' .* and '{other.clip}' .* the same"):
        load_corpus(_config(tmp_path / "twice", tmp_path), Console(quiet=True))


def test_it_may_be_taken_for_a_coincidence_aloud(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_corpus(_config(copied, tmp_path, near_duplicates="warn"), Console())
    assert "warning: Leak: 's00-neutral-00'" in " ".join(capsys.readouterr().out.split())


def test_a_split_that_leaks_anyway_is_not_looked_at(copied: Path, tmp_path: Path) -> None:
    data = load_corpus(_config(copied, tmp_path, protocol="random"), Console(quiet=True))
    assert data.folds.leak


def test_recordings_are_compared_once_a_machine(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(copied, tmp_path, near_duplicates="warn")
    data = load_corpus(config, Console(quiet=True))
    pairs = data.cache.near_duplicates()
    assert pairs == [("s00-neutral-00", "s02-neutral-00")]
    monkeypatch.setattr(ClipCache, "_look_for_near_duplicates", None)
    assert load_corpus(config, Console(quiet=True)).cache.near_duplicates() == pairs
    fewer = replace(config, classes="happy,sad")
    assert load_corpus(fewer, Console(quiet=True)).cache.near_duplicates() == []
    assert np.isfinite(data.cache.targets).all()
