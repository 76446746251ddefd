"""The posterior bank: what is written comes back, and what is damaged does not."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensembles import EnsembleError
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import BankEntry, PosteriorBank
from ensembles.bank.training_variant import Variant
from ensembles.metrics import log_softmax

TABLE = ClipTable(
    clips=("b, with a comma", "ä", "c"),
    speakers=("one", "one", "two"),
    folds=np.array([0, 0, 1]),
    labels=np.array([1, 0, 1]),
    classes=("happy", "very sad"),
)


def entry(trial: str = "audio-0001", percent: int = 100, seed: int = 0) -> BankEntry:
    logits = np.random.default_rng(seed).normal(size=(3, 2)).astype(np.float32)
    return BankEntry(
        trial=trial,
        modality="audio",
        architecture="functionals",
        percent=percent,
        epoch=40,
        seed=seed,
        logits=logits,
    )


@pytest.fixture()
def bank(tmp_path: Path) -> PosteriorBank:
    return PosteriorBank.create(tmp_path / "bank", TABLE)


def assert_same(got: BankEntry, expected: BankEntry) -> None:
    assert replace(got, logits=expected.logits) == expected
    np.testing.assert_array_equal(got.logits, expected.logits)
    assert got.logits.dtype == np.float32


def test_an_entry_comes_back_as_it_was_written(bank: PosteriorBank) -> None:
    path = bank.write(entry())
    assert path.name == "audio-0001@100.npz"
    (got,) = PosteriorBank.open(bank.folder).read()
    assert_same(got, entry())


def test_missing_predictions_come_back_missing(bank: PosteriorBank) -> None:
    written = entry()
    written.logits[1] = np.nan
    bank.write(written)
    assert_same(bank.read()[0], written)


def test_the_table_comes_back_as_it_was_written(bank: PosteriorBank) -> None:
    got = PosteriorBank.open(bank.folder).table
    assert (got.clips, got.speakers, got.classes) == (TABLE.clips, TABLE.speakers, TABLE.classes)
    assert got.folds.tolist() == [0, 0, 1]
    assert got.labels.tolist() == [1, 0, 1]
    assert got.fingerprint == TABLE.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"clips": ("x", "ä", "c")},
        {"speakers": ("one", "two", "two")},
        {"folds": np.array([0, 1, 1])},
        {"labels": np.array([0, 0, 1])},
        {"classes": ("happy", "sad")},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_bank_of_other_data_is_not_taken_over(
    bank: PosteriorBank, changed: dict[str, Any]
) -> None:
    other = replace(TABLE, **changed)
    assert other.fingerprint != TABLE.fingerprint
    with pytest.raises(EnsembleError, match="holds posteriors of other data, classes or folds"):
        PosteriorBank.create(bank.folder, other)


def test_creating_a_bank_of_the_same_data_opens_it(bank: PosteriorBank) -> None:
    bank.write(entry())
    assert len(PosteriorBank.create(bank.folder, TABLE).read()) == 1


def test_an_entry_replaces_one_of_the_same_trial_and_rung(bank: PosteriorBank) -> None:
    bank.write(entry(seed=1))
    bank.write(entry(seed=2))
    bank.write(entry(percent=50, seed=3))
    got = bank.read()
    assert [(e.trial, e.percent) for e in got] == [("audio-0001", 50), ("audio-0001", 100)]
    assert_same(got[1], entry(seed=2))


def test_an_entry_of_another_size_is_our_own_mistake(bank: PosteriorBank) -> None:
    with pytest.raises(AssertionError):
        bank.write(replace(entry(), logits=np.zeros((2, 2), np.float32)))


def test_opening_a_missing_bank_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EnsembleError, match=r"No posterior bank in '.*nowhere'"):
        PosteriorBank.open(tmp_path / "nowhere")


def test_a_truncated_entry_is_dropped_and_named_wherever_it_ends(bank: PosteriorBank) -> None:
    bank.write(entry("whole"))
    path = bank.write(entry("half"))
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert [e.trial for e in bank.read()] == ["whole"]
        assert len(bank.damaged) == 1
        assert bank.damaged[0].startswith("half@100.npz: ")


def test_a_flipped_byte_is_noticed_or_harmless_wherever_it_is(bank: PosteriorBank) -> None:
    path = bank.write(entry())
    content = path.read_bytes()
    dropped = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 0xFF
        path.write_bytes(flipped)
        got = bank.read()
        assert len(got) + len(bank.damaged) == 1
        dropped += len(bank.damaged)
        if got:  # dates and the like in the archive's headers
            assert_same(got[0], entry())
    assert dropped > len(content) / 2


def test_reading_again_forgets_old_damage(bank: PosteriorBank) -> None:
    path = bank.write(entry())
    path.write_bytes(b"")
    bank.read()
    path.unlink()
    assert bank.read() == []
    assert bank.damaged == []


def rewrite(path: Path, **changes: Any) -> None:
    """Writes an entry again, as somebody else might."""
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(arrays["meta"].tobytes())
    logits = changes.pop("logits", arrays["logits"])
    meta = {k: v for k, v in {**meta, **changes}.items() if v is not None}
    np.savez(path, logits=logits, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))


def test_an_entry_that_does_not_match_its_checksum_is_refused(bank: PosteriorBank) -> None:
    rewrite(bank.write(entry()), logits=np.ones((3, 2), np.float32))
    assert bank.read() == []
    assert bank.damaged == ["audio-0001@100.npz: does not match its checksum"]


def test_an_entry_of_another_table_is_refused(bank: PosteriorBank, tmp_path: Path) -> None:
    other = PosteriorBank.create(tmp_path / "other", replace(TABLE, labels=np.array([0, 0, 0])))
    path = other.write(entry())
    (bank.folder / path.name).write_bytes(path.read_bytes())
    assert bank.read() == []
    assert bank.damaged == ["audio-0001@100.npz: belongs to other data, classes or folds"]


@pytest.mark.parametrize(
    "changes",
    [{"epoch": None}, {"sha256": None}, {"surplus": 1}],
    ids=["lacks", "unsigned", "more"],
)
def test_an_entry_with_other_keys_is_damaged(bank: PosteriorBank, changes: dict[str, Any]) -> None:
    rewrite(bank.write(entry()), **changes)
    assert bank.read() == []
    assert len(bank.damaged) == 1


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def planted_npz(trace: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, logits=np.array([Bomb(trace)], dtype=object), meta=np.zeros(1, np.uint8))
    return buffer.getvalue()


def planted_meta(trace: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer, logits=np.zeros((3, 2), np.float32), meta=np.array([Bomb(trace)], dtype=object)
    )
    return buffer.getvalue()


def planted_npy(trace: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def planted_pickle(trace: Path) -> bytes:
    return pickle.dumps(Bomb(trace))


@pytest.mark.parametrize("plant", [planted_npz, planted_meta, planted_npy, planted_pickle])
def test_a_planted_pickle_is_reported_and_never_run(
    bank: PosteriorBank, plant: Any, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    content = plant(trace)
    assert not trace.exists()
    (bank.folder / "evil@100.npz").write_bytes(content)
    bank.write(entry())
    assert [e.trial for e in bank.read()] == ["audio-0001"]
    assert [name.split(":")[0] for name in bank.damaged] == ["evil@100.npz"]
    assert not trace.exists()


def test_the_bombs_would_have_gone_off(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(planted_pickle(trace))
    assert trace.exists()


def test_a_plain_array_is_not_an_entry(bank: PosteriorBank) -> None:
    with (bank.folder / "array@100.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert bank.read() == []
    assert len(bank.damaged) == 1


def test_clips_that_an_expert_lacks_are_left_out_for_all(bank: PosteriorBank) -> None:
    partial = entry("partial", seed=1)
    partial.logits[1, 0] = np.nan
    experts = bank.experts([entry(), partial])
    assert experts.names == ("audio-0001", "partial")
    assert experts.modalities == ("audio", "audio")
    assert experts.table.clips == ("b, with a comma", "c")
    assert experts.table.speakers == ("one", "two")
    assert experts.table.folds.tolist() == [0, 1]
    assert experts.table.labels.tolist() == [1, 1]
    raw = entry().logits[[0, 2]].astype(np.float64)
    np.testing.assert_allclose(
        experts.log_posteriors[0], raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))
    )


def test_no_clip_in_common_is_an_error(bank: PosteriorBank) -> None:
    empty = entry()
    empty.logits[:] = np.nan
    with pytest.raises(EnsembleError, match="No clip has posteriors of every expert"):
        bank.experts([entry(), empty])


def test_no_expert_is_an_error(bank: PosteriorBank) -> None:
    with pytest.raises(EnsembleError, match="no finished expert"):
        bank.experts([])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_logits_are_an_error_that_names_the_expert(
    bank: PosteriorBank, value: float
) -> None:
    wild = entry("wild")
    wild.logits[2, 1] = value
    with pytest.raises(EnsembleError, match="Expert 'wild' has posteriors that are not finite"):
        bank.experts([entry(), wild])


def test_fresh_seeds_take_an_experts_place(bank: PosteriorBank) -> None:
    experts = bank.experts([entry("a"), entry("b", seed=1)])
    fresh = np.log(np.full((3, 2), 0.5))
    replaced = experts.replace({"b": fresh})
    np.testing.assert_array_equal(replaced.log_posteriors[1], fresh)
    np.testing.assert_array_equal(replaced.log_posteriors[0], experts.log_posteriors[0])
    assert not np.array_equal(experts.log_posteriors[1], fresh), "the original must stay"


def test_a_half_written_partial_file_is_not_read(bank: PosteriorBank) -> None:
    (bank.folder / "audio-0001@100.npz.123.partial").write_bytes(b"half")
    assert bank.read() == []
    assert bank.damaged == []


def test_every_rung_that_could_have_been_chosen_is_a_candidate(bank: PosteriorBank) -> None:
    bank.write(entry(percent=50, seed=1))
    bank.write(entry(seed=2))
    bank.write(replace(entry("video-0001", seed=3), modality="video"))
    bank.write(replace(entry(seed=4), variant=Variant("fresh seed", 1000)))
    lacking = entry("audio-0002", seed=5)
    lacking.logits[2] = np.nan
    bank.write(lacking)
    found = list(bank.rungs(TABLE))
    assert [modality for modality, _ in found] == ["audio", "audio", "video"]
    for (_, values), seed in zip(found, (1, 2, 3), strict=True):
        np.testing.assert_allclose(values, log_softmax(entry(seed=seed).logits))
    # Of some clips, in their order, whatever is lacking elsewhere.
    some = TABLE.take(np.array([1, 0]))
    found = list(bank.rungs(some))
    assert len(found) == 4
    np.testing.assert_allclose(found[2][1], log_softmax(lacking.logits[[1, 0]]))
