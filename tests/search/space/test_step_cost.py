"""What trials are predicted to cost, and how many of them share a GPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from search.data.front_end_cache import FrontEndCache
from search.data.training_data import TrainingData
from search.space import step_cost
from search.space.scope import SearchScope, scope_for
from search.space.search_space import WAVEFORM_RECIPE
from search.space.step_cost import (
    _PROCESS_BYTES,
    _macs,
    _Step,
    drop_expensive,
    gpu_share,
    measure_cost,
    slow_changes,
)
from search.space.suggest import space_of
from search.trial_config import TrainSettings, TrialConfig

GIB = 2**30


@pytest.mark.parametrize(
    ("needed", "whole", "share"),
    [
        (1 * GIB, 80 * GIB, 1 / 8),  # more would only wait for each other
        (10 * GIB, 80 * GIB, 1 / 4),  # 72 usable, 15 each
        (20 * GIB, 80 * GIB, 1 / 2),
        (40 * GIB, 80 * GIB, 1.0),
        (200 * GIB, 80 * GIB, 1.0),  # it will say so itself
    ],
)
def test_as_many_trials_share_a_gpu_as_fit_with_something_to_spare(
    needed: float, whole: float, share: float
) -> None:
    assert gpu_share(needed, whole) == pytest.approx(share)


def _of_its_macs(plan: TrialConfig, data: TrainingData, *_: Any, **__: Any) -> _Step:
    """A step on a machine of 10¹⁰ multiply-accumulates a second."""
    return _Step(_macs(plan, data) / 1e10, 0.0, 1)


@pytest.fixture()
def by_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take what they take on that machine, whatever this one is busy with."""
    monkeypatch.setattr(step_cost, "_time_step", _of_its_macs)


def test_everything_on_offer_has_a_cost(tiny_data: TrainingData) -> None:
    """A step of each is trained here; its seconds are this machine's."""
    scope = scope_for(tiny_data.shape, ("functionals", "logmel_resnet", "cnn3d", "concatenation"))
    step_cost = measure_cost(scope, tiny_data, "cpu", "auto")
    assert step_cost.gpu_share == {}
    assert set(step_cost.seconds) == {
        "functionals", "logmel_resnet", "cnn3d", "functionals+cnn3d", "logmel_resnet+cnn3d",
    }  # fmt: skip
    assert all(0 < seconds < float("inf") for seconds in step_cost.seconds.values())
    assert _PROCESS_BYTES < GIB


def test_a_trial_costs_its_steps_over_its_schedule(tiny_data: TrainingData, by_macs: None) -> None:
    scope = scope_for(tiny_data.shape, ("functionals", "logmel_resnet", "cnn3d", "concatenation"))
    seconds = measure_cost(scope, tiny_data, "cpu", "auto").seconds
    clips = 2 * 12  # each of two folds trains on the other's twelve
    for name in ("logmel_resnet", "cnn3d"):
        plan = TrialConfig.of(name, {}, {})
        epochs, batches = plan.training.epochs, clips / plan.training.batch_size
        step = _macs(plan, tiny_data) / 1e10
        expected = epochs * (clips * step + batches * 0.0012) * 1.15
        assert seconds[name] == pytest.approx(expected)
    assert seconds["functionals"] < seconds["logmel_resnet"]
    assert seconds["logmel_resnet+cnn3d"] > seconds["cnn3d"] / 2


def test_a_pair_is_not_believed_to_be_as_fast_as_no_machine_is(
    tiny_data: TrainingData, by_macs: None
) -> None:
    names = ("functionals", "waveform_cnn_lstm", "action_units", "concatenation")
    scope = scope_for(tiny_data.shape, names)
    bound = measure_cost(scope, tiny_data, "cpu", "auto", longest=1e-9).seconds
    alone, joined = bound["waveform_cnn_lstm"], bound["waveform_cnn_lstm+action_units"]
    assert joined < alone, "its schedule is shorter"
    longest = (alone + joined) / 2
    timed = measure_cost(scope, tiny_data, "cpu", "auto", longest=longest).seconds
    assert timed["waveform_cnn_lstm+action_units"] > 2 * longest
    assert timed["waveform_cnn_lstm"] > longest
    offered = drop_expensive(scope, timed, longest)
    assert offered.pairs == [("functionals", "action_units")]


def test_changes_of_waveforms_that_take_too_long_are_not_searched(
    tiny_data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the four, shifting the pitch takes ten seconds on this clock, and the others one."""
    names = ("functionals", "logmel_resnet", "action_units")
    scope = scope_for(tiny_data.shape, names, all_recipes=True)
    now, changes = [0.0], []

    def slowly(self: FrontEndCache, *_: Any, changed: TrainSettings) -> None:
        (key,) = (key for key in WAVEFORM_RECIPE if getattr(changed, key))
        changes.append(key)
        now[0] += 10.0 if key == "pitch_perturbation" else 1.0

    monkeypatch.setattr(FrontEndCache, "inputs", slowly)
    monkeypatch.setattr(step_cost, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    known = {"logmel_resnet": 100.0, "functionals": 1.0}

    def slow(longest: float) -> dict[str, tuple[str, ...]]:
        return slow_changes(scope, tiny_data, "cpu", known, longest)

    epochs = TrialConfig.of("logmel_resnet", {}, {}).training.epochs
    a_second = 24 * epochs / 16  # sixteen clips are heard at once
    assert slow(100.0 + 10.1 * a_second) == {}
    assert set(changes) == set(WAVEFORM_RECIPE)
    assert slow(100.0 + 9.9 * a_second) == {"logmel_resnet": ("pitch_perturbation",)}
    assert slow(100.0 + 1.1 * a_second) == {"logmel_resnet": ("pitch_perturbation",)}
    everything = slow(100.0 + 0.9 * a_second)
    assert set(everything) == {"logmel_resnet"}, "the functionals' are cached in any case"
    assert set(everything["logmel_resnet"]) == set(WAVEFORM_RECIPE)


def test_changes_of_waveforms_are_timed_here(tiny_data: TrainingData) -> None:
    scope = scope_for(tiny_data.shape, ("logmel_resnet",), all_recipes=True)
    known = {"logmel_resnet": 1.0}
    assert slow_changes(scope, tiny_data, "cpu", known, longest=1e9) == {}
    found = slow_changes(scope, tiny_data, "cpu", known, longest=1e-9)
    assert set(found["logmel_resnet"]) == set(WAVEFORM_RECIPE)


def test_what_is_too_slow_is_not_in_the_space(tiny_data: TrainingData) -> None:
    scope = scope_for(tiny_data.shape, ("functionals", "logmel_resnet"), all_recipes=True)
    narrowed = replace(scope, too_slow={"logmel_resnet": ("pitch_perturbation", "noise")})
    assert SearchScope.from_json(narrowed.to_json()) == narrowed
    left = space_of("logmel_resnet", narrowed)
    assert not {"pitch_perturbation", "noise"} & set(left)
    assert {"reverberation", "speed_perturbation"} <= set(left)
