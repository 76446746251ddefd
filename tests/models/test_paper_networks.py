"""S1's networks against the sizes and counts of the paper (Singh & Fang, 2020; 3 s, 4 classes)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import ClipShape, build_expert
from models.audio.spectrogram_cnn import SpectrogramConvolutions
from models.registry import ModelError
from models.video.cnn3d import Cnn3d

SHAPE = ClipShape(num_classes=4, sample_rate_hz=16000, frames=75)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# With 32 filters by hand: convolutions 3 088 + 36 888 + 26 912, hidden 29 600·64 + 64, classes
# 260; the released code's colour picture has 2·16·12·16 = 6 144 more, which is its own count.
@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("spectrogram_cnn", {}, 1_481_284),
        ("spectrogram_cnn_rnn", {}, 362_564),
        ("spectrogram_cnn_rnn", {"one_step": True}, 5_892_164),
        ("spectrogram_cnn_lstm", {}, 1_219_652),
        ("spectrogram_cnn_lstm", {"one_step": True}, 23_338_052),
        ("spectrogram_cnn", {"last_filters": 32}, 1_967_756 - 6_144),
        ("spectrogram_cnn_rnn", {"last_filters": 32, "one_step": True}, 7_799_436 - 6_144),
        ("spectrogram_cnn", {"last_filters": 32, "colours": True}, 1_967_756),
        (
            "spectrogram_cnn_rnn",
            {"last_filters": 32, "one_step": True, "colours": True},
            7_799_436,
        ),
    ],
)
def test_parameter_counts_are_the_papers(
    name: str, settings: dict[str, Any], expected: int
) -> None:
    settings = {"crop_seconds": 3.0, "num_bins": 200, **settings}
    assert count(build_expert(name, settings, SHAPE)) == expected


@pytest.mark.parametrize("last_filters", [24, 32])
def test_the_convolutions_have_the_papers_sizes(last_filters: int) -> None:
    sizes: list[tuple[int, ...]] = []
    convolutions = SpectrogramConvolutions(last_filters=last_filters)
    for layer in convolutions.layers:
        if not isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        maps = convolutions(torch.zeros(1, 1, 200, 300))
    assert sizes == [
        (16, 201, 301),
        (16, 100, 150),
        (24, 101, 151),
        (24, 50, 75),
        (last_filters, 50, 75),
        (last_filters, 25, 37),
    ]
    assert maps.flatten(1).shape[1] == {24: 22_200, 32: 29_600}[last_filters]


@pytest.mark.parametrize("size", [24, 100, 101, 150, 200, 300, 301, 302, 303])
def test_the_size_formula_is_what_the_convolutions_give(size: int) -> None:
    with torch.no_grad():
        maps = SpectrogramConvolutions()(torch.zeros(1, 1, size, size))
    assert maps.shape[2:] == (SpectrogramConvolutions.after(size),) * 2


def steps_seen(settings: dict[str, Any], samples: int) -> tuple[int, ...]:
    """Shape of what enters the recurrence."""
    expert = build_expert("spectrogram_cnn_rnn", settings, SHAPE).eval()
    seen: list[tuple[int, ...]] = []

    def remember(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(tuple(arguments[0].shape))

    encoder: Any = expert.encoder("audio")
    encoder.recurrence.register_forward_pre_hook(remember)
    with torch.no_grad():
        expert({"audio": torch.zeros(1, samples), "audio_lengths": torch.tensor([samples])})
    return seen[0]


def test_the_recurrence_runs_over_37_steps_of_600() -> None:
    assert steps_seen({}, 48000) == (1, 37, 600)


def test_the_one_step_variant_sees_the_whole_map_at_once() -> None:
    assert steps_seen({"one_step": True}, 48000) == (1, 1, 22_200)


def test_the_whole_clip_is_seen_without_a_crop() -> None:
    # 5 s: 501 frames → 251 → 126 → 63
    assert steps_seen({"crop_seconds": 0.0}, 80000) == (1, 63, 600)


def test_one_step_needs_a_crop() -> None:
    with pytest.raises(ModelError, match="one_step needs crop_seconds > 0"):
        build_expert("spectrogram_cnn_rnn", {"one_step": True, "crop_seconds": 0.0}, SHAPE)


def test_the_cnn_needs_a_crop() -> None:
    with pytest.raises(ModelError, match=r"crop_seconds must be positive, got 0\.0"):
        build_expert("spectrogram_cnn", {"crop_seconds": 0.0}, SHAPE)


def test_the_3dcnn_has_the_papers_sizes() -> None:
    encoder = Cnn3d(shape=SHAPE, frames=20, height=60, width=100)
    with torch.no_grad():
        maps = encoder.convolutions(torch.zeros(1, 3, 20, 60, 100))
    assert maps.shape[1:] == (128, 12, 2, 7)
    assert encoder.hidden.in_features == 21_504
    assert count(encoder) == 5_813_568


def test_the_paper_sizes_are_the_3dcnns_own_defaults() -> None:
    assert count(Cnn3d(shape=SHAPE)) == 5_813_568


@pytest.mark.parametrize("size", [(8, 45, 45), (9, 44, 45), (9, 45, 44)])
def test_frames_too_small_for_the_3dcnn_are_refused(size: tuple[int, int, int]) -> None:
    frames, height, width = size
    with pytest.raises(ModelError, match=f"9 frames of 45×45 .* got {frames} of {height}×{width}"):
        Cnn3d(shape=SHAPE, frames=frames, height=height, width=width)


def test_the_smallest_frames_named_in_the_error_do_build() -> None:
    encoder = Cnn3d(shape=SHAPE, frames=9, height=45, width=45)
    assert encoder.hidden.in_features == 128


@pytest.mark.parametrize(
    ("name", "low", "high"), [("logmel_resnet", 1.2e5, 1.6e5), ("frame_cnn", 0.9e5, 1.3e5)]
)
def test_the_small_networks_are_as_small_as_their_docstrings_say(
    name: str, low: float, high: float
) -> None:
    assert low < count(build_expert(name, {}, SHAPE)) < high
