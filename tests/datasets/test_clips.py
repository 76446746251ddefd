from __future__ import annotations

import pytest

from datasets.clips import ClipRecord, Corpus, DataError, Skipped


def record(clip: str, label: str = "glad") -> ClipRecord:
    return ClipRecord(clip=clip, speaker="ann", label=label)


def test_a_corpus_without_clips_says_what_was_skipped() -> None:
    with pytest.raises(
        DataError, match=r"No usable clip in corpus 'mine'\. First skipped: a\.wav: broken"
    ):
        Corpus(name="mine", labels=("glad",), clips=(), skipped=(Skipped("a.wav", "broken"),))


def test_a_clip_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(DataError, match="Clip name 'c1' occurs twice in corpus 'mine'"):
        Corpus(name="mine", labels=("glad",), clips=(record("c1"), record("c2"), record("c1")))


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"Clip 'c1' has the label 'gald'\. Known: glad, sad"):
        Corpus(name="mine", labels=("glad", "sad"), clips=(record("c1", "gald"),))
