from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensembles.bank import BankEntry, ClipTable, PosteriorBank
from models import ClipShape
from search.config import ConfigError, SearchConfig
from search.objective import GAIN_WEIGHT, KEPT, EnsembleObjective, ensemble_gain
from search.offer import Offer, offer_for
from search.sampler import DealtSearch, open_journal

CLIPS, CLASSES = 60, 3
SIDES = ("audio", "video")


@pytest.fixture()
def bank(tmp_path: Path) -> PosteriorBank:
    rows = range(CLIPS)
    table = ClipTable(
        clips=tuple(f"c{row}" for row in rows),
        speakers=tuple(f"s{row % 6}" for row in rows),
        folds=np.arange(CLIPS) % 3,
        labels=np.random.default_rng(0).integers(0, CLASSES, CLIPS),
        classes=("a", "b", "c"),
    )
    return PosteriorBank.create(tmp_path / "bank", table)


def leave(bank: PosteriorBank, name: str, knows: Any, sure: float = 4.0) -> None:
    """An expert that is right and sure on some rows, and has no opinion elsewhere."""
    logits = np.zeros((CLIPS, CLASSES), np.float32)
    rows = np.flatnonzero(knows)
    logits[rows, bank.table.labels[rows]] = sure
    bank.write(
        BankEntry(
            trial=name,
            modality=name.partition("-")[0],
            architecture="x",
            percent=100,
            epoch=4,
            seed=0,
            logits=logits,
        )
    )


def first_half() -> Any:
    return np.arange(CLIPS) < CLIPS // 2


def three_each(bank: PosteriorBank) -> dict[str, dict[int, float]]:
    """Three finished experts of each modality, that all know the same half."""
    for side in SIDES:
        for number in range(3):
            leave(bank, f"{side}-{number:04d}", first_half())
    return {side: dict.fromkeys(range(3), 0.6) for side in SIDES}


def test_what_others_do_not_know_adds_more_than_what_they_know(bank: PosteriorBank) -> None:
    finished = three_each(bank)
    objective = EnsembleObjective(bank, "accuracy")
    leave(bank, "audio-0003", first_half())
    leave(bank, "audio-0004", ~first_half())
    assert objective.gain("audio", 3, finished) == 0.0
    right_before = [
        np.mean((np.arange(CLIPS) < CLIPS // 2)[fold] | (bank.table.labels[fold] == 0))
        for fold in (bank.table.folds == k for k in range(3))
    ]
    assert objective.gain("audio", 4, finished) == pytest.approx(1 - np.mean(right_before))


def test_an_early_trial_is_worth_its_own_score_alone(bank: PosteriorBank) -> None:
    finished = three_each(bank)
    del finished["video"][2]
    leave(bank, "audio-0003", ~first_half())
    assert EnsembleObjective(bank, "accuracy").gain("audio", 3, finished) == 0.0


def test_a_trial_whose_posteriors_are_damaged_is_worth_its_own_score_alone(
    bank: PosteriorBank,
) -> None:
    finished = three_each(bank)
    leave(bank, "audio-0003", ~first_half())
    path = bank.folder / "audio-0003@100.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert EnsembleObjective(bank, "accuracy").gain("audio", 3, finished) == 0.0
    leave(bank, "audio-0003", ~first_half())
    (bank.folder / "video-0001@100.npz").unlink()  # of another one: the rest is the ensemble
    assert EnsembleObjective(bank, "accuracy").gain("audio", 3, finished) > 0.2


def test_only_the_best_of_a_modality_are_read(bank: PosteriorBank) -> None:
    finished = three_each(bank)
    finished["audio"] |= {number: number / 100 for number in range(KEPT + 10)}
    asked: list[str] = []
    leave(bank, "video-0003", ~first_half())
    EnsembleObjective(bank, "accuracy", asked.append).gain("video", 3, finished)
    numbers = [int(name.rpartition("-")[2]) for name in asked if name.startswith("audio")]
    assert numbers == list(range(KEPT + 9, 9, -1))


def test_a_fold_does_not_fit_what_it_is_scored_by(bank: PosteriorBank) -> None:
    """Labels of one fold at random: what is measured on the other folds does not change."""
    finished = three_each(bank)
    names = [f"{side}-{n:04d}" for side in finished for n in range(3)]
    leave(bank, "audio-0003", np.arange(CLIPS) % 4 > 0, sure=0.1)
    entries = [bank.find(name, 100) for name in [*names, "audio-0003"]]
    experts = bank.experts([entry for entry in entries if entry])
    rng = np.random.default_rng(1)
    noise = rng.normal(size=experts.log_posteriors.shape)
    experts = experts.replace(dict(zip(experts.names, experts.log_posteriors + noise, strict=True)))
    gains = [ensemble_gain(experts, "accuracy")]
    for _ in range(30):
        experts.table.labels[:] = rng.integers(0, CLASSES, CLIPS)
        gains.append(ensemble_gain(experts, "accuracy"))
    assert abs(np.mean(gains[1:])) < 0.03, "on random labels nothing is gained"


def offer() -> Offer:
    shape = ClipShape(num_classes=CLASSES, sample_rate_hz=16_000, num_features=5)
    return offer_for(shape, ("functionals", "action_units"))


def proposals(path: Path, bank: PosteriorBank | None, *, interrupt: bool) -> DealtSearch:
    """Thirty trials, one at a time; perhaps with a new process before each and within some."""

    def deal() -> DealtSearch:
        return DealtSearch(
            offer(),
            open_journal(path),
            seed=1,
            trials=100,
            deadline=time.monotonic() + 60,
            objective=EnsembleObjective(bank, "accuracy") if bank else None,
        )

    search = deal()
    for number in range(30):
        if interrupt and number:
            search = deal()
        search.suggest(str(number))
        if interrupt and number % 3 == 0:
            search = deal()
            search.suggest(str(number))
        score = (number * 37 % 11) / 11
        if bank:
            leave(bank, search.running[str(number)], np.arange(CLIPS) % 11 == number % 11)
        for rung in (25, 50, 75, 100):
            search.report_rung(str(number), rung, score)
        search.on_trial_complete(str(number), {"score": score, "percent": 100})
    return search


def test_a_restarted_search_proposes_the_same_and_other_than_by_own_scores(
    bank: PosteriorBank, tmp_path: Path
) -> None:
    whole = proposals(tmp_path / "whole", bank, interrupt=False)
    pieces = proposals(tmp_path / "pieces", bank, interrupt=True)
    alone = proposals(tmp_path / "alone", None, interrupt=False)
    told, again, solo = (
        {name: (trial.params, trial.value) for name, trial in search.all_trials().items()}
        for search in (whole, pieces, alone)
    )
    assert told == again
    assert told != solo
    changed = 0
    for trial in whole.all_trials().values():
        own, further = trial.intermediate_values[100], trial.user_attrs.get("further_worth", 0.0)
        assert trial.value == pytest.approx(own + further)
        assert further == 0 or abs(further) >= GAIN_WEIGHT / CLIPS / 2
        changed += bool(further)
    assert changed
    for part in whole.parts.values():
        own_scores = [trial.intermediate_values[100] for trial in part.asked()]
        assert part.history.best == max(own_scores), "what is shown is a trial's own score"


def test_an_objective_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Unknown objective .both.\. Known: solo, ensemble\."):
        SearchConfig(objective="both")
