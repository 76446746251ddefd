"""The search's own leak guard: recordings that are nearly the same on two sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from datasets.cache import ClipCache
from datasets.clips import Corpus, DataError
from datasets.shards import prepare
from search.config import SearchConfig
from search.corpus import load_corpus


@pytest.fixture()
def copied(tiny_corpus: Corpus, tmp_path: Path) -> Path:
    """The tiny corpus, in which a clip of speaker_02 is a softer, later cut of one of speaker_00's."""
    first = next(r for r in tiny_corpus.clips if r.speaker == "speaker_00")
    other = next(
        r for r in tiny_corpus.clips if r.speaker == "speaker_02" and r.label == first.label
    )
    assert first.audio is not None
    sound, rate = soundfile.read(first.audio)
    copy = tmp_path / "copy.wav"
    soundfile.write(copy, 0.5 * sound[800:], rate)
    clips = [replace(r, audio=copy) if r is other else r for r in tiny_corpus.clips]
    prepare(replace(tiny_corpus, clips=tuple(clips)), tmp_path / "shards")
    return tmp_path / "shards"


def _config(shards: Path, home: Path, **options: str) -> SearchConfig:
    return SearchConfig(data=str(shards), cache_dir=str(home / "cache"), **options)  # type: ignore[arg-type]


def test_a_near_copy_on_two_sides_is_refused_by_name(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"Leak: 's00-neutral-00' \(speaker_00\) and 's02-neutral-00' \(speaker_02\) are nearly",
    ):
        load_corpus(_config(copied, tmp_path), Console(quiet=True))


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
