"""Audio networks against their papers' sizes, and against torch's own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from models import ClipShape, build_expert, get_architecture
from models.audio.alexnet import AlexNetBackbone, AlexNetEncoder
from models.audio.waveform_cnn_lstm import SameConvolution, WaveformCnnLstm, WaveformFrames
from models.frontends.colour_maps import colour_map, draw
from models.pretrained import apply_transfer, find_checkpoints
from models.registry import ModelError

SHAPE = ClipShape(num_classes=3, sample_rate_hz=16000)


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# 16 000 samples a second and pooling by 2 leave 320 values per 40 ms, times 40 / 10 channels.
@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({}, 1280),
        ({"variant": "paper", "further_filters": 10}, 320),
        ({"further_filters": 400}, 12_800),
    ],
    ids=["code", "paper", "400 filters"],
)
def test_the_waveform_network_leaves_the_papers_values_every_40_ms(
    settings: dict[str, Any], width: int
) -> None:
    encoder = WaveformCnnLstm(shape=SHAPE, recurrent_units=0, **settings).eval()
    assert encoder.steps_dim == encoder.embedding_dim == width
    with torch.no_grad():
        steps, lengths = encoder.steps(
            *encoder.frontend(0.1 * noise(2, 2 * 640 + 1), torch.tensor([2 * 640 + 1, 640]))
        )
    assert steps.shape == (2, 3, width)
    assert lengths.tolist() == [3, 1]
    assert steps[1, 0].any()
    assert not steps[1, 1:].any()


def test_the_waveform_networks_kernels_are_the_papers() -> None:
    with torch.device("meta"):
        code = WaveformCnnLstm(shape=SHAPE)
        paper = WaveformCnnLstm(shape=SHAPE, variant="paper")
    assert code.first.weight.shape == (40, 1, 20)
    assert code.second.weight.shape == (40, 40, 40)
    assert paper.first.weight.shape == (20, 1, 80)  # 5 ms at 16 kHz
    assert paper.second.weight.shape == (40, 20, 4000)  # 500 ms at 8 kHz
    for network in (code, paper):
        assert network.recurrence is not None
        assert (network.recurrence.input_size, network.recurrence.hidden_size) == (1280, 256)
        assert network.recurrence.num_layers == 2
    # By hand: 40·20 + 2·40, 40·40·40 + 2·40; 4·256·(1280 + 256 + 2) + 4·256·(256 + 256 + 2);
    # 257 of the pooling.
    assert count(code) == 880 + 64_080 + 1_574_912 + 526_336 + 257


def test_six_seconds_are_150_steps() -> None:
    _, frames = WaveformFrames(sample_rate_hz=16000)(noise(1, 96_000), torch.tensor([96_000]))
    assert frames.tolist() == [150]


def test_the_waveform_has_zero_mean_and_unit_variance_over_a_clips_own_samples() -> None:
    x = 3.0 + 0.2 * noise(2, 6400)
    x[1, 1000:] = 0
    frames, lengths = WaveformFrames(sample_rate_hz=16000)(x, torch.tensor([6400, 1000]))
    assert lengths.tolist() == [10, 2]
    for clip, samples in enumerate([6400, 1000]):
        own = frames[clip].flatten()
        assert abs(float(own[:samples].mean())) < 1e-4
        assert abs(float(own[:samples].std(correction=0)) - 1) < 1e-3
        assert not own[samples:].any()


def test_the_maximum_is_over_ten_neighbouring_channels() -> None:
    encoder = WaveformCnnLstm(shape=SHAPE, variant="paper", further_filters=20, recurrent_units=0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        assert encoder.second.bias is not None
        encoder.second.bias.copy_(torch.arange(20.0))
        steps, _ = encoder.steps(torch.zeros(1, 1, 640), torch.tensor([1]))
    assert steps[0, 0, :4].tolist() == [9.0, 19.0, 9.0, 19.0]


@pytest.mark.parametrize("taps", [20, 4000])
def test_the_convolutions_are_padded_as_tensorflows_same(taps: int) -> None:
    # TensorFlow pads an even kernel by one more behind than in front: 9 and 10 of 20 taps.
    convolution = SameConvolution(1, 1, taps, bias=False)
    impulse = torch.zeros(1, 1, 9000)
    impulse[0, 0, 4500] = 1
    with torch.no_grad():
        convolution.weight.copy_(torch.arange(1.0, taps + 1))
        y = convolution(impulse)[0, 0]
    first = int((y.abs() > 0.5).nonzero()[0])
    assert first == 4500 - taps // 2
    assert y.shape == (9000,)
    assert float(y[first]) == pytest.approx(taps, rel=1e-3)


@pytest.mark.parametrize("length", [320, 4193, 4194, 12_000])
def test_a_long_convolution_is_the_plain_one(length: int) -> None:
    torch.manual_seed(0)
    convolution = SameConvolution(3, 2, 4000, bias=True)
    x = noise(2, 3, length)
    plain = functional.conv1d(functional.pad(x, (1999, 2000)), convolution.weight, convolution.bias)
    torch.testing.assert_close(convolution(x), plain, atol=1e-5, rtol=1e-4)


def test_filters_that_cannot_be_pooled_are_refused() -> None:
    with pytest.raises(ModelError, match="further_filters must be a multiple of 10, got 45"):
        WaveformCnnLstm(shape=SHAPE, further_filters=45)
    with pytest.raises(ModelError, match=r"Unknown variant 'draft'\. Known: code, paper"):
        WaveformCnnLstm(shape=SHAPE, variant="draft")


def test_alexnet_is_torchvisions() -> None:
    torch.manual_seed(0)
    original = torchvision.models.alexnet().eval()
    with torch.device("meta"):
        backbone = AlexNetBackbone(num_mels=128, colours=False, width=64).eval()
    backbone.load_state_dict(backbone.translate(original.state_dict()), assign=True)
    image = noise(2, 3, 224, 224)
    with torch.no_grad():
        pooled = original.avgpool(original.features(image)).flatten(1)
        expected = original.classifier[:-1](pooled)
        torch.testing.assert_close(backbone.describe(image), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape == (2, 4096)
    assert count(backbone) == 61_100_840 - 1000 * 4097  # torchvision's count, less its last layer


def test_every_parameter_of_alexnet_is_in_one_stage() -> None:
    backbone = AlexNetBackbone(num_mels=32, colours=False, width=1)
    staged = [id(p) for stage in backbone.stages() for p in stage.parameters()]
    assert sorted(staged) == sorted(id(p) for p in backbone.parameters())
    assert len(backbone.stages()) == 7


def test_torchvisions_file_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"weights")
    (found,) = find_checkpoints(get_architecture("alexnet"), tmp_path)
    assert found.settings == {"width": 64}


def test_frozen_alexnets_of_other_pictures_are_cached_apart(tmp_path: Path) -> None:
    state = AlexNetBackbone(num_mels=32, colours=False, width=1).state_dict()
    torch.save(state, tmp_path / "alexnet.pth")
    (found,) = find_checkpoints(get_architecture("alexnet"), tmp_path)
    names = []
    for colours in (False, True):
        encoder = AlexNetEncoder(shape=SHAPE, num_mels=32, width=1, colours=colours)
        apply_transfer(encoder, "frozen", found, tmp_path)
        names.append(encoder.frontend.name)
    assert names[0] != names[1]


@pytest.mark.parametrize("frames", [1, 2, 100, 224, 500])
def test_a_picture_is_the_clip_stretched_as_torch_does(frames: int) -> None:
    backbone = AlexNetBackbone(num_mels=32, colours=False, width=1)
    clip = 0.5 * noise(1, frames, 32)
    behind = functional.pad(clip, (0, 0, 0, 37))
    found = backbone.draw(behind, torch.tensor([frames]))
    expected = functional.interpolate(clip.mT[:, None], (224, 224), mode="bilinear")
    red = (expected[:, 0] / 6 + 0.5 - 0.485) / 0.229
    torch.testing.assert_close(found[:, 0], red, atol=1e-4, rtol=1e-4)
    green = found[:, 1] * 0.224 + 0.456
    torch.testing.assert_close(found[:, 0] * 0.229 + 0.485, green, atol=1e-6, rtol=1e-5)


def test_a_colour_picture_differs_by_channel() -> None:
    clip = 0.5 * noise(1, 40, 32)
    grey = AlexNetEncoder(shape=SHAPE, num_mels=32, width=1)
    colour = AlexNetEncoder(shape=SHAPE, num_mels=32, width=1, colours=True)
    lengths = torch.tensor([40])
    rgb = colour.backbone.draw(clip, lengths)  # type: ignore[operator]
    plain = grey.backbone.draw(clip, lengths)  # type: ignore[operator]
    assert rgb.shape == plain.shape == (1, 3, 224, 224)
    assert not torch.allclose(rgb[:, 0], rgb[:, 2], atol=0.5)


# "jet", as matplotlib has it at its corners: dark blue, blue, cyan … dark red.
@pytest.mark.parametrize(
    ("brightness", "rgb"),
    [
        (0.0, (0.0, 0.0, 0.5)),
        (0.125, (0.0, 0.0, 1.0)),
        (0.375, (0.0, 1.0, 1.0)),
        (0.5, (0.5, 1.0, 0.5)),
        (0.625, (1.0, 1.0, 0.0)),
        (0.875, (1.0, 0.0, 0.0)),
        (1.0, (0.5, 0.0, 0.0)),
    ],
)
def test_the_colour_map_has_its_corners(brightness: float, rgb: tuple[float, ...]) -> None:
    found = colour_map(torch.full((1, 1, 1), brightness))
    assert found[0, :, 0, 0].tolist() == pytest.approx(rgb)


def test_behind_a_clips_end_a_colour_picture_is_zero() -> None:
    x = torch.zeros(1, 4, 2)
    image = draw(x, torch.tensor([3]), colours=True)
    assert image.shape == (1, 3, 2, 4)
    assert image[0, :, 0, 2].tolist() == pytest.approx([0.5, 1.0, 0.5])
    assert not image[:, :, :, 3].any()
    assert draw(x, torch.tensor([3]), colours=False).shape == (1, 1, 2, 4)


def test_the_residual_lstm_is_as_small_as_its_docstring_says() -> None:
    assert 3.1e5 < count(build_expert("residual_lstm", {}, SHAPE)) < 3.5e5


def test_attention_heads_divide_the_steps_width() -> None:
    with pytest.raises(ModelError, match=r"heads must divide 2·units, got heads=3, units=8"):
        build_expert("residual_lstm", {"units": 8, "heads": 3}, SHAPE)


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("cnn14", {"width": 2}, [3, 1, 1]),  # 101, 63 and 27 frames, of 32 at least
        ("alexnet", {"width": 1, "num_mels": 32}, [1, 1, 1]),
        ("waveform_cnn_lstm", {"recurrent_units": 4}, [25, 16, 7]),
        ("residual_lstm", {"units": 4, "trim_db": 0.0}, [13, 8, 4]),  # eight frames a step
    ],
)
def test_steps_of_a_padded_clip_are_its_own_and_zero_behind_its_end(
    name: str, settings: dict[str, Any], steps: list[int], make_clips: Any
) -> None:
    torch.manual_seed(0)
    encoder = build_expert(name, settings, SHAPE).eval().encoder("audio")
    batch = make_clips([16000, 10000, 4321])
    with torch.no_grad():
        found, lengths = encoder.steps(*encoder.frontend(batch["audio"], batch["audio_lengths"]))
        assert lengths.tolist() == steps
        assert found.shape[2] == encoder.steps_dim
        for clip, samples in enumerate([16000, 10000, 4321]):
            single = encoder.frontend(
                batch["audio"][clip : clip + 1, :samples], torch.tensor([samples])
            )
            alone, count_alone = encoder.steps(*single)
            assert count_alone.tolist() == [steps[clip]]
            own = found[clip, : steps[clip]]
            torch.testing.assert_close(own, alone[0, : steps[clip]], atol=1e-5, rtol=1e-5)
            assert not found[clip, steps[clip] :].any()
