"""What trials are predicted to cost, and how many of them share a GPU."""

from __future__ import annotations

import pytest

from search.cost import _PROCESS_BYTES, drop_expensive, gpu_share, measure_cost
from search.inputs import TrainingData
from search.offer import offer_for

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
