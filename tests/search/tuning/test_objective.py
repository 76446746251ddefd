from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import BankEntry, Experts, PosteriorBank
from ensembles.metrics import METRICS, get_metric, log_softmax
from models import ClipShape
from search.config import ConfigError, SearchConfig
from search.space.scope import SearchScope, scope_for
from search.tuning.objective import GAIN_WEIGHT, KEPT, EnsembleObjective, ensemble_gain
from search.tuning.searcher import ModalitySearcher
from search.tuning.study import open_journal

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
    worth = EnsembleObjective(bank, "accuracy")
    leave(bank, "audio-0003", first_half())
    leave(bank, "audio-0004", ~first_half())
    assert worth.gain("audio", 3, finished) == 0.0
    right_before = [
        np.mean((np.arange(CLIPS) < CLIPS // 2)[fold] | (bank.table.labels[fold] == 0))
        for fold in (bank.table.folds == k for k in range(3))
    ]
    assert worth.gain("audio", 4, finished) == pytest.approx(1 - np.mean(right_before))


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


@pytest.fixture()
def noisy(bank: PosteriorBank) -> Experts:
    """Six alike and a newcomer, each with noise."""
    finished = three_each(bank)
    names = [f"{side}-{n:04d}" for side in finished for n in range(3)]
    leave(bank, "audio-0003", np.arange(CLIPS) % 4 > 0, sure=2.0)
    entries = [bank.find(name, 100) for name in [*names, "audio-0003"]]
    experts = bank.experts([entry for entry in entries if entry])
    noise = np.random.default_rng(1).normal(size=experts.log_posteriors.shape)
    noisy = log_softmax(experts.log_posteriors + noise)
    return experts.replace(dict(zip(experts.names, noisy, strict=True)))


def test_a_fold_does_not_fit_what_it_is_scored_by(
    noisy: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other labels in a fold change the predictions of the other folds, and none of its own."""
    seen: list[Any] = []
    accuracy = get_metric("accuracy")

    def watched(labels: Any, log_posteriors: Any) -> float:
        seen.append(log_posteriors)
        return accuracy.score(labels, log_posteriors)

    monkeypatch.setitem(METRICS, "accuracy", replace(accuracy, score=watched))

    def predictions() -> list[Any]:
        """Of each fold with the newcomer and without."""
        seen.clear()
        ensemble_gain(noisy, "accuracy")
        return list(zip(seen[::2], seen[1::2], strict=True))

    before = predictions()
    here = noisy.table.folds == 1
    noisy.table.labels[here] = (noisy.table.labels[here] + 1) % CLASSES
    after = predictions()
    for fold in range(3):
        same = [np.array_equal(*pair) for pair in zip(before[fold], after[fold], strict=True)]
        assert all(same) if fold == 1 else not all(same), fold


def test_on_random_labels_nothing_is_gained(noisy: Experts) -> None:
    rng = np.random.default_rng(1)
    gains = []
    for _ in range(30):
        noisy.table.labels[:] = rng.integers(0, CLASSES, CLIPS)
        gains.append(ensemble_gain(noisy, "accuracy"))
    assert abs(np.mean(gains)) < 0.03


def scope() -> SearchScope:
    shape = ClipShape(num_classes=CLASSES, sample_rate_hz=16_000, num_features=5)
    return scope_for(shape, ("functionals", "action_units"))


def proposals(path: Path, bank: PosteriorBank | None, *, interrupt: bool) -> ModalitySearcher:
    """Thirty trials, one at a time; perhaps with a new process before each and within some."""

    def deal() -> ModalitySearcher:
        return ModalitySearcher(
            scope(),
            open_journal(path),
            seed=1,
            trials=100,
            deadline=math.inf,
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
