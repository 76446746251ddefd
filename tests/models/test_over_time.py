"""Networks that say something at every step: what holds for every architecture with a time axis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import ClipShape, Expert, architectures, build_expert, get_architecture
from models.expert import on_steps
from models.registry import ModelError
from tests.models.conftest import Clips
from tests.small import PAIRS, SMALL, case_name, early

PAIRS_OVER_TIME = [pair for pair in PAIRS if all(get_architecture(name).over_time for name in pair)]


def _cases() -> list[Any]:
    listed: list[tuple[str, dict[str, Any]]] = []
    for entry in architectures():
        if entry.modality == "early":
            listed += [(entry.name, early(*pair)) for pair in PAIRS_OVER_TIME]
        elif entry.over_time:
            listed.append((entry.name, SMALL.get(entry.name, {})))
    return [pytest.param(*case, id=case_name(*case)) for case in listed]


every_over_time = pytest.mark.parametrize(("name", "settings"), _cases())


@pytest.fixture()
def traced(shape: ClipShape) -> ClipShape:
    return replace(shape, num_classes=2, answers="traces", trace_steps=25)


def _build(name: str, settings: dict[str, Any], shape: ClipShape) -> Expert:
    torch.manual_seed(0)
    expert = build_expert(name, settings, shape).eval()
    expert.fit_answers(torch.tensor([[1.0, -3.0], [3.0, 5.0]]))
    return expert


def _batch(make_clips: Clips, steps: list[int]) -> dict[str, Tensor]:
    samples = [640 * count for count in steps]
    frames = [max(6, count // 2) for count in steps]
    return {**make_clips(samples, frames), "trace_lengths": torch.tensor(steps)}


@every_over_time
def test_it_says_two_numbers_at_every_step(
    name: str, settings: dict[str, Any], traced: ClipShape, make_clips: Clips
) -> None:
    expert = _build(name, settings, traced)
    with torch.inference_mode():
        said = expert(_batch(make_clips, [25, 14]))
    assert said.shape == (2, 25, 2)
    assert said.isfinite().all()
    assert (said[1, 14:] == 0).all(), "nothing behind a clip's end"


@every_over_time
def test_padding_does_not_change_what_a_clip_says(
    name: str, settings: dict[str, Any], traced: ClipShape, make_clips: Clips
) -> None:
    expert = _build(name, settings, traced)
    batch = _batch(make_clips, [25, 14])
    alone = {key: x[1:] for key, x in batch.items()}
    for kind in ("audio", "video", "feature_sequence"):
        alone[kind] = alone[kind][:, : int(alone[f"{kind}_lengths"])]
    with torch.inference_mode():
        torch.testing.assert_close(expert(alone)[0], expert(batch)[1, :14], atol=2e-4, rtol=2e-4)


def test_early_fusion_has_two_pairs_of_parts_over_time() -> None:
    assert len(PAIRS_OVER_TIME) == 2


@every_over_time
def test_the_last_layer_gets_a_gradient_from_every_step(
    name: str, settings: dict[str, Any], traced: ClipShape, make_clips: Clips
) -> None:
    expert = _build(name, settings, traced).train()
    read, given = [], []

    def keep(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for x, kept in ((inputs[0], read), (output, given)):
            x.retain_grad()
            kept.append(x)

    expert.classifier.register_forward_hook(keep)
    steps = [25, 25, 20]
    expert(_batch(make_clips, steps)).square().mean().backward()
    (x,), (y,) = read, given
    # A step's part of the weights' gradient is the product of the two.
    for values in (x, y.grad, x.grad):
        assert values is not None
        reached = (values != 0).any(dim=2)
        for clip, count in enumerate(steps):
            assert reached[clip, :count].all(), f"steps of clip {clip} take no part"
    assert y.grad is not None
    assert not y.grad[2, 20:].any(), "a step behind the end takes part"
    learned = [p for e in expert.encoders.values() for p in e.parameters() if p.grad is not None]
    assert any((p.grad != 0).any() for p in learned), "the encoders learn too"


@pytest.mark.parametrize("name", ["functionals", "spectrogram_cnn_rnn", "cnn3d", "action_units"])
def test_what_has_no_time_axis_is_refused(name: str, traced: ClipShape) -> None:
    with pytest.raises(ModelError, match=f"'{name}' has no time axis"):
        build_expert(name, {}, traced)


def test_silence_is_cut_off_in_no_trace(traced: ClipShape) -> None:
    settings = {"trim_db": 45.0}
    frontend: Any = build_expert("logmel_resnet", settings, traced).encoder("audio").frontend
    assert frontend.trim_db == 0.0
    plain: Any = build_expert("logmel_resnet", settings, replace(traced, answers="values"))
    assert plain.encoder("audio").frontend.trim_db == 45.0


def test_numbers_of_a_clip_are_on_the_scale_they_were_fitted_to(
    shape: ClipShape, make_clips: Clips
) -> None:
    expert = _build("action_units", {}, replace(shape, num_classes=2, answers="values"))
    assert expert.centre.tolist() == [2.0, 1.0]
    assert expert.spread.tolist() == [1.0, 4.0]
    with torch.no_grad():
        expert.classifier.weight.zero_()
        expert.classifier.bias.copy_(torch.tensor([1.0, -1.0]))
        said = expert(make_clips([16000]))
    assert said.tolist() == [[3.0, -3.0]]


def test_a_constant_dimension_has_a_scale_too(shape: ClipShape) -> None:
    expert = build_expert("action_units", {}, replace(shape, num_classes=1, answers="values"))
    expert.fit_answers(torch.full((5, 1), 2.0))
    assert expert.spread.item() == pytest.approx(1e-3)


def test_steps_are_interpolated_between_their_middles() -> None:
    x = torch.tensor([[[0.0], [2.0]]])
    two, four = torch.tensor([2]), torch.tensor([4])
    # Middles of four steps lie at -0.25, 0.25, 0.75, 1.25 of two.
    assert on_steps(x, two, four)[0, :, 0].tolist() == [0.0, 0.5, 1.5, 2.0]


def test_steps_of_a_finer_clock_are_averaged() -> None:
    x = torch.tensor([[[0.0], [2.0], [4.0], [8.0]]])
    assert on_steps(x, torch.tensor([4]), torch.tensor([2]))[0, :, 0].tolist() == [1.0, 6.0]


def test_the_same_clock_changes_nothing() -> None:
    x = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(on_steps(x, torch.tensor([7, 7]), torch.tensor([7, 7])), x)


def test_a_missing_modality_leaves_the_other_ones_steps(
    traced: ClipShape, make_clips: Clips
) -> None:
    expert = _build("joint_lstm", early("logmel_resnet", "frame_cnn"), traced)
    batch = _batch(make_clips, [20, 20])
    heard = {k: x for k, x in batch.items() if not k.startswith("video")}
    lacking = {**batch, "video_lengths": torch.tensor([0, 0])}
    with torch.inference_mode():
        torch.testing.assert_close(expert(heard), expert(lacking), atol=1e-5, rtol=1e-5)
