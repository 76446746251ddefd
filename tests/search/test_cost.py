"""What trials are predicted to cost, and how many of them share a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.cost import (
    _PROCESS_BYTES,
    drop_expensive,
    gpu_share,
    measure_cost,
    slow_changes,
)
from search.inputs import TrainingData
from search.offer import Offer, offer_for
from search.space import WAVEFORM_RECIPE, space_of

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


def test_everything_on_offer_has_a_cost(tiny_data: TrainingData) -> None:
    offer = offer_for(tiny_data.shape, ("functionals", "logmel_resnet", "cnn3d", "concatenation"))
    cost = measure_cost(offer, tiny_data, "cpu", "auto")
    assert cost.gpu_share == {}
    assert set(cost.seconds) == {
        "functionals", "logmel_resnet", "cnn3d", "functionals+cnn3d", "logmel_resnet+cnn3d",
    }  # fmt: skip
    assert cost.seconds["functionals"] < cost.seconds["logmel_resnet"]
    assert cost.seconds["logmel_resnet+cnn3d"] > cost.seconds["cnn3d"] / 2
    assert _PROCESS_BYTES < GIB


def test_a_pair_is_not_believed_to_be_as_fast_as_no_machine_is(tiny_data: TrainingData) -> None:
    names = ("functionals", "waveform_cnn_lstm", "action_units", "concatenation")
    offer = offer_for(tiny_data.shape, names)
    bound = measure_cost(offer, tiny_data, "cpu", "auto", longest=1e-9).seconds
    alone, joined = bound["waveform_cnn_lstm"], bound["waveform_cnn_lstm+action_units"]
    assert joined < alone, "its schedule is shorter"
    longest = (alone + joined) / 2
    timed = measure_cost(offer, tiny_data, "cpu", "auto", longest=longest).seconds
    assert timed["waveform_cnn_lstm+action_units"] > 2 * longest
    assert timed["waveform_cnn_lstm"] > longest
    offered = drop_expensive(offer, timed, longest)
    assert offered.pairs == [("functionals", "action_units")]


def test_changes_of_waveforms_that_take_too_long_are_not_searched(tiny_data: TrainingData) -> None:
    names = ("functionals", "logmel_resnet", "action_units")
    offer = offer_for(tiny_data.shape, names, all_recipes=True)
    seconds = measure_cost(offer, tiny_data, "cpu", "auto").seconds
    assert slow_changes(offer, tiny_data, "cpu", seconds, longest=1e9) == {}
    slow = slow_changes(offer, tiny_data, "cpu", seconds, longest=1e-9)
    assert set(slow) == {"logmel_resnet"}, "the functionals' are cached in any case"
    assert set(slow["logmel_resnet"]) == set(WAVEFORM_RECIPE)
    # Of the four, shifting the pitch takes longest by far.
    within = dict.fromkeys(("logmel_resnet",), seconds["logmel_resnet"])
    longest = seconds["logmel_resnet"]
    while (
        len(
            found := slow_changes(offer, tiny_data, "cpu", within, longest).get("logmel_resnet", ())
        )
        > 1
    ):
        longest *= 1.1
    assert found == ("pitch_perturbation",)
    narrowed = replace(offer, too_slow={"logmel_resnet": ("pitch_perturbation", "noise")})
    assert Offer.from_json(narrowed.to_json()) == narrowed
    left = space_of("logmel_resnet", narrowed)
    assert not {"pitch_perturbation", "noise"} & set(left)
    assert {"reverberation", "speed_perturbation"} <= set(left)
