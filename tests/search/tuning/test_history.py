from __future__ import annotations

import math
import random
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from models import ClipShape
from search.space.scope import SearchScope, scope_for
from search.tuning import history, sampler
from search.tuning.history import History
from search.tuning.scheduler import HalvingScheduler
from search.tuning.searcher import ModalitySearcher
from search.tuning.study import open_journal

SHAPE = ClipShape(num_classes=4, sample_rate_hz=16_000, num_features=5)


@pytest.fixture()
def scope() -> SearchScope:
    return scope_for(SHAPE, ("functionals", "logmel_resnet", "action_units"))


def deal(scope: SearchScope, path: Path) -> ModalitySearcher:
    return ModalitySearcher(scope, open_journal(path), seed=1, trials=1000, deadline=math.inf)


def run(search: ModalitySearcher, trial_id: str) -> None:
    """To its end, or until it is stopped; every seventh fails."""
    luck = zlib.crc32(search.running[trial_id].encode())
    for rung in (25, 50, 75, 100):
        score = (luck % 23 + rung / 100) / 24
        if luck % 7 == 6 and rung == 50:
            search.on_trial_complete(trial_id, {"failed": "so", "score": math.nan, "percent": 0})
            return
        if search.report_rung(trial_id, rung, score) or rung == 100:
            search.on_trial_complete(trial_id, {"score": score, "percent": rung})
            return


def proposals(
    scope: SearchScope, path: Path, count: int, *, interrupt_every: int = 0
) -> list[tuple[str, dict[str, Any]]]:
    """Parameters of `count` trials, three at a time; perhaps with a new process now and then."""
    search = deal(scope, path)
    for number in range(count):
        if interrupt_every and number and number % interrupt_every == 0:
            search = deal(scope, path)
            for orphan in range(len(search._orphans)):
                search.suggest(f"{number} {orphan}")
        search.suggest(str(number))
        if len(search.running) == 3:
            run(search, min(search.running, key=lambda i: search.running[i].split("-")[::-1]))
    return [(name, trial.params) for name, trial in search.all_trials().items()]


def test_a_sampler_sees_all_trials_as_long_as_there_are_few(
    scope: SearchScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = proposals(scope, tmp_path / "ours", 40)
    monkeypatch.setattr(sampler, "_Seen", lambda study, trials: study)
    assert proposals(scope, tmp_path / "all", 40) == ours


def test_a_restarted_search_proposes_the_same_where_not_all_trials_are_shown(
    scope: SearchScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = proposals(scope, tmp_path / "everything", 48)
    monkeypatch.setattr(history, "SHOWN", 10)
    monkeypatch.setattr(history, "GOOD", 3)
    whole = proposals(scope, tmp_path / "whole", 48)
    assert whole != everything
    assert proposals(scope, tmp_path / "pieces", 48, interrupt_every=9) == whole


def test_shown_are_the_latest_the_best_and_some_of_every_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "SHOWN", 4)
    monkeypatch.setattr(history, "GOOD", 2)
    study = optuna.create_study(direction="maximize")
    kept = History()
    for number in range(12):
        trial = study.ask()
        trial.suggest_float("rare" if number in (1, 2, 3) else "usual", 0, 1)
        if number == 5:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, 12.0 - number if number < 3 else 0.0)
        kept.take(study.get_trials(deepcopy=False)[-1])
    kept.take(study._storage.get_trial(study.ask()._trial_id))
    best, rare, latest, running = {0, 1}, {2, 3}, {8, 9, 10, 11}, {12}
    assert [t.number for t in kept.shown()] == sorted(best | rare | latest | running)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_equals_a_recount_of_the_journal(
    scope: SearchScope, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    search, live = deal(scope, tmp_path / "journal"), dict[str, int]()
    for step in range(250):
        if rng.random() < 0.05:  # a new process takes over what ran
            search, live = deal(scope, tmp_path / "journal"), {}
        action = rng.random()
        if len(live) < 2 or (action < 0.3 and len(live) < 6):
            search.suggest(str(step))
            number = int(search.running[str(step)].rpartition("-")[2])
            frozen = search._owner[str(step)].history.running[number]
            live[str(step)] = max(frozen.intermediate_values, default=0)
        name = rng.choice(list(live))
        if action > 0.9:
            result = {"score": math.nan, "percent": 0, "failed": "so"}
            search.on_trial_complete(name, result, error=action > 0.95)
            del live[name]
        elif action > 0.3:
            live[name] = percent = live[name] + 25
            score = math.nan if rng.random() < 0.05 else round(rng.random(), 1)
            if percent > 100 or search.report_rung(name, percent, score) or percent == 100:
                search.on_trial_complete(name, {"score": score, "percent": min(percent, 100)})
                del live[name]
        _recount(search)
    assert search.asked() > 30, "much has happened"


def _recount(search: ModalitySearcher) -> None:
    for part in search.parts.values():
        trials = part.asked()
        kept, fresh = part.history, History()
        for trial in part.study.get_trials(deepcopy=False):
            fresh.take(trial)
        for one in (kept, fresh):
            assert one.asked == len(trials)
            for state in TrialState:
                assert one.counts[state] == sum(t.state == state for t in trials)
            assert one.best == max((t.value for t in trials if t.value is not None), default=None)
            assert [t.number for t in one.shown()] == [
                t.number for t in trials if t.state != TrialState.FAIL
            ]
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            for percent in (50, 75):
                rivals = [
                    t.intermediate_values[percent]
                    for t in trials
                    if percent in t.intermediate_values
                    and t.number != trial.number
                    and t.state != TrialState.FAIL
                ]
                for score in (0.0, 0.5, 0.9, math.nan):
                    beaten = sum(rival > score for rival in rivals)
                    for one in (kept, fresh):
                        assert one.rivals(trial.number, percent, score) == (len(rivals), beaten)


def test_the_trial_that_waits_longest_runs_first(scope: SearchScope, tmp_path: Path) -> None:
    search = deal(scope, tmp_path / "journal")
    scheduler = HalvingScheduler(search)
    trials = []
    for name in ("b", "c", "a"):
        search.suggest(name)
        trials.append(SimpleNamespace(trial_id=name, status="PENDING"))
    trials[0].status = "RUNNING"
    controller = SimpleNamespace(get_live_trials=lambda: set(map(_Hashable, trials)))
    assert scheduler.choose_trial_to_run(controller).trial_id == "c"
    trials[1].status = trials[2].status = "TERMINATED"
    assert scheduler.choose_trial_to_run(controller) is None


class _Hashable:
    def __init__(self, trial: Any) -> None:
        self.trial_id, self.status = trial.trial_id, trial.status
