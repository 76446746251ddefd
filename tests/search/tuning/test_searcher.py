from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from models import ClipShape
from search.space.scope import SearchScope, scope_for
from search.space.suggest import config_of
from search.tuning.searcher import ModalitySearcher
from search.tuning.study import StudySearch, open_journal

SHAPE = ClipShape(num_classes=4, sample_rate_hz=16_000, num_features=5)


@pytest.fixture()
def scope() -> SearchScope:
    return scope_for(SHAPE, ("functionals", "action_units", "concatenation"))


def deal(scope: SearchScope, path: Path, trials: int = 100) -> ModalitySearcher:
    return ModalitySearcher(scope, open_journal(path), seed=1, trials=trials, deadline=math.inf)


def finish(search: ModalitySearcher, trial_id: str, score: float, percent: int = 100) -> None:
    for rung in range(25, percent + 1, 25):
        search.report_rung(trial_id, rung, score)
    search.on_trial_complete(trial_id, {"score": score, "percent": percent})


def test_trials_are_dealt_to_the_modalities_in_turn(scope: SearchScope, tmp_path: Path) -> None:
    search = deal(scope, tmp_path / "journal", trials=7)
    modalities = []
    for number in range(7):
        config = search.suggest(str(number))
        assert isinstance(config, dict)
        modalities.append(config["modality"])
    assert modalities == ["audio", "video", "early", "audio", "video", "early", "audio"]
    assert search.suggest("8") == "FINISHED"


def test_a_stopped_trial_is_pruned_with_its_rungs_and_never_complete(
    scope: SearchScope, tmp_path: Path
) -> None:
    part = StudySearch("audio", scope, open_journal(tmp_path / "journal"), 0)
    part.suggest("a")
    part.report_rung("a", 25, 0.3)
    part.report_rung("a", 50, 0.4)
    part.on_trial_complete("a", {"score": 0.4, "percent": 50})
    (trial,) = part.asked()
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {25: 0.3, 50: 0.4}


@pytest.mark.parametrize(
    ("result", "error", "reason"),
    [
        ({"score": float("nan"), "percent": 25}, False, "no finite score"),
        (None, True, "the trial's process died"),
        ({"score": 0.5, "percent": 75}, True, "the trial's process died"),
        ({"failed": "NonFiniteLossError: nan", "score": float("nan"), "percent": 0}, False, "NonFiniteLossError: nan"),
    ],
)  # fmt: skip
def test_nan_and_errors_are_failures_with_a_reason(
    scope: SearchScope, tmp_path: Path, result: dict[str, Any] | None, error: bool, reason: str
) -> None:
    part = StudySearch("audio", scope, open_journal(tmp_path / "journal"), 0)
    part.suggest("a")
    part.on_trial_complete("a", result, error)
    (trial,) = part.asked()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["failed"] == reason


def test_nothing_is_stopped_before_half_its_schedule_nor_before_three_have_finished(
    scope: SearchScope, tmp_path: Path
) -> None:
    search = deal(scope, tmp_path / "journal")
    part = search.parts["audio"]
    for number, score in enumerate((0.5, 0.6)):
        part.suggest(str(number))
        for rung in (25, 50, 75, 100):
            assert not part.report_rung(str(number), rung, score)
        part.on_trial_complete(str(number), {"score": score, "percent": 100})
    part.suggest("third")
    assert not part.report_rung("third", 50, 0.1), "only two have finished"
    part.report_rung("third", 100, 0.1)
    part.on_trial_complete("third", {"score": 0.1, "percent": 100})
    part.suggest("fourth")
    assert not part.report_rung("fourth", 25, 0.0), "before half its schedule"
    assert part.report_rung("fourth", 50, 0.2), "worse than two of three"


def test_the_better_half_goes_on(scope: SearchScope, tmp_path: Path) -> None:
    part = deal(scope, tmp_path / "journal").parts["audio"]
    for number, score in enumerate((0.5, 0.6, 0.1)):
        part.suggest(str(number))
        part.report_rung(str(number), 50, score)
        part.report_rung(str(number), 100, score)
        part.on_trial_complete(str(number), {"score": score, "percent": 100})
    part.suggest("good")
    assert not part.report_rung("good", 50, 0.55)
    part.suggest("bad")
    assert part.report_rung("bad", 50, 0.3)


def test_modalities_are_not_compared_with_each_other(scope: SearchScope, tmp_path: Path) -> None:
    search = deal(scope, tmp_path / "journal")
    for number in range(3):
        search.parts["video"].suggest(f"v{number}")
        search.parts["video"].report_rung(f"v{number}", 50, 0.9)
        search.parts["video"].on_trial_complete(f"v{number}", {"score": 0.9, "percent": 100})
    search.parts["audio"].suggest("a")
    assert not search.parts["audio"].report_rung("a", 50, 0.2)


def propose(scope: SearchScope, path: Path, count: int, *, interrupt: bool) -> list[dict[str, Any]]:
    """Parameters of `count` trials, one at a time; perhaps with a new process before each."""
    search = deal(scope, path)
    for number in range(count):
        if interrupt and number:
            search = deal(scope, path)
        search.suggest(str(number))
        if interrupt and number % 2:  # dies while the trial runs, and takes it over again
            search = deal(scope, path)
            search.suggest(str(number))
        finish(search, str(number), (number * 37 % 11) / 11)
    trials = [(m, t.number, t.params) for m, part in search.parts.items() for t in part.asked()]
    return [{"name": f"{m}-{n}", **params} for m, n, params in sorted(trials, key=lambda x: x[:2])]


def test_a_restarted_search_proposes_what_the_uninterrupted_one_would_have(
    scope: SearchScope, tmp_path: Path
) -> None:
    whole = propose(scope, tmp_path / "whole", 36, interrupt=False)
    pieces = propose(scope, tmp_path / "pieces", 36, interrupt=True)
    assert whole == pieces
    assert len({str(sorted(p.items())) for p in whole}) == 36, "proposals repeat"


def test_a_trial_that_died_between_two_parameters_gets_the_same_ones(
    scope: SearchScope, tmp_path: Path
) -> None:
    whole = StudySearch("audio", scope, open_journal(tmp_path / "a"), 0)
    whole.suggest("default")
    whole.on_trial_complete("default", {"score": 0.5, "percent": 100})
    expected = whole.suggest("x")["plan"]

    cut = StudySearch("audio", scope, open_journal(tmp_path / "b"), 0)
    cut.suggest("default")
    cut.on_trial_complete("default", {"score": 0.5, "percent": 100})
    trial = cut.study.ask()
    trial.suggest_categorical("architecture", ["functionals"])
    again = StudySearch("audio", scope, open_journal(tmp_path / "b"), 0)
    assert again.adopt("x", again.asked()[-1])["plan"] == expected


def test_the_journal_enqueues_the_known_good_defaults_once(
    scope: SearchScope, tmp_path: Path
) -> None:
    for _ in range(3):
        search = deal(scope, tmp_path / "journal")
    study = optuna.load_study(study_name="audio", storage=open_journal(tmp_path / "journal"))
    assert len(study.trials) == 1
    assert search.left() == 100


def test_a_run_that_is_cut_off_leaves_its_running_trials_to_be_resumed(
    scope: SearchScope, tmp_path: Path
) -> None:
    search = deal(scope, tmp_path / "journal")
    search.suggest("0")
    search.report_rung("0", 25, 0.4)
    search.deadline = time.monotonic() - 1
    search.on_trial_complete("0", {"score": 0.4, "percent": 25})
    (trial,) = search.parts["audio"].asked()
    assert trial.state == TrialState.RUNNING


def test_a_rung_that_was_judged_before_an_interruption_is_not_judged_again(
    scope: SearchScope, tmp_path: Path
) -> None:
    part = deal(scope, tmp_path / "journal").parts["audio"]
    part.suggest("early bird")
    for rung in (25, 50, 75):
        assert not part.report_rung("early bird", rung, 0.4), "nothing has finished yet"
    for number in range(3):
        part.suggest(str(number))
        part.report_rung(str(number), 50, 0.9)
        part.report_rung(str(number), 75, 0.9)
        part.on_trial_complete(str(number), {"score": 0.9, "percent": 100})
    bird = part.asked()[0]
    again = deal(scope, tmp_path / "journal").parts["audio"]
    again.adopt("early bird", bird)
    assert not again.report_rung("early bird", 25, 0.4)
    assert not again.report_rung("early bird", 50, 0.4), "it went on after this rung then"
    assert again.report_rung("early bird", 75, 0.4), "nobody knows how this one was judged"


def test_an_extended_search_tries_what_is_new_first_and_forgets_nothing(
    scope: SearchScope, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    search = deal(scope, path)
    for number in range(9):
        search.suggest(str(number))
        finish(search, str(number), number / 10)
    search.suggest("orphan")  # of audio, and its process dies
    before = {name: dict(trial.params) for name, trial in search.all_trials().items()}

    more = scope.joined(scope_for(SHAPE, ("functionals", "logmel_resnet")))
    assert more.generation == 2
    assert more.single["audio"] == ("functionals", "logmel_resnet")
    assert more.pairs == scope.pairs
    extended = deal(SearchScope.from_json(more.to_json()), path)
    assert extended.left() == 100 - 10 + 1
    adopted = extended.suggest("a")
    assert isinstance(adopted, dict)
    assert adopted["trial"] == "audio-0003"
    assert adopted["plan"].architecture == "functionals"
    finish(extended, "a", 0.5)
    plans = []
    for number in range(24):
        config = extended.suggest(f"x{number}")
        assert isinstance(config, dict)
        plans.append((config["modality"], config["plan"].architecture))
        finish(extended, f"x{number}", 0.3)
    audio = [name for modality, name in plans if modality == "audio"]
    assert audio[0] == "logmel_resnet", "its known-good default comes first"
    assert set(audio) == {"functionals", "logmel_resnet"}
    assert len({name for modality, name in plans if modality == "video"}) == 1
    for name, params in before.items():
        assert params.items() <= extended.all_trials()[name].params.items()
    for name, trial in extended.all_trials().items():
        config_of(trial.params, name.rpartition("-")[0], more)


def test_an_offer_that_brings_nothing_new_stays_as_it_is(scope: SearchScope) -> None:
    assert scope.joined(scope) is scope
    again = scope.joined(scope_for(SHAPE, ("logmel_resnet",)))
    assert again.joined(scope_for(SHAPE, ("logmel_resnet",))) is again
