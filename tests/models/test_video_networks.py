"""The video networks against torchvision, NumPy and SciPy, and the papers' sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import nn
from torchvision.models import resnet, video

from models import ClipShape, get_architecture
from models.build import build_encoder
from models.layers import TanhAttention
from models.pretrained import Found, find_checkpoints, load_backbone
from models.registry import ModelError
from models.video.action_unit_lstm import ActionUnitLstm
from models.video.kinetics import Mc318, R2plus1d18, R3d18, S3d, Swin3dT
from models.video.resnet_lstm import ResNetLstm
from models.video.spatial_transformer import (
    GuidedFrames,
    GuidedSpatialTransformer,
    SpectralSaliency,
)

SHAPE = ClipShape(num_classes=4, frames=12, num_features=3, feature_steps=8)
KINETICS = {
    "r3d_18": R3d18,
    "mc3_18": Mc318,
    "r2plus1d_18": R2plus1d18,
    "s3d": S3d,
    "swin3d_t": Swin3dT,
}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def varied(network: nn.Module) -> nn.Module:
    """Statistics and weights that a loader cannot leave as they were unseen."""
    torch.manual_seed(5)
    for name, x in network.state_dict().items():
        if "running_var" in name:
            x.uniform_(0.5, 1.5)
        elif x.is_floating_point() and x.ndim == 1:
            x.add_(0.1 * torch.randn_like(x))
    return network.eval()


# Torchvision's networks, their output layer taken off, are the reference.
@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_gives_what_torchvisions_gives_from_the_same_file(
    depth: int, tmp_path: Path
) -> None:
    network = varied(getattr(resnet, f"resnet{depth}")())
    torch.save(network.state_dict(), tmp_path / "original.pth")
    encoder = ResNetLstm(shape=SHAPE, depth=depth, recurrent_units=0).eval()
    load_backbone(encoder.backbone, tmp_path / "original.pth")
    network.fc = nn.Identity()
    frames = torch.randn(2, 3, 3, 64, 64)
    with torch.no_grad():
        values, steps = encoder.backbone(frames, torch.tensor([3, 3]))
        expected = network(frames.flatten(0, 1)).unflatten(0, (2, 3))
    assert values.shape == (2, 3, {18: 512, 50: 2048}[depth])
    assert steps.tolist() == [3, 3]
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "frames", "size", "steps"),
    [("mc3_18", 5, 32, 5), ("s3d", 16, 32, 2), ("swin3d_t", 18, 64, 9)],
)
def test_a_kinetics_network_gives_what_torchvisions_gives_from_the_same_file(
    name: str, frames: int, size: int, steps: int, tmp_path: Path
) -> None:
    network = varied(getattr(video, name)())
    for module in network.modules():
        if hasattr(module, "relative_position_bias_table"):
            nn.init.normal_(module.relative_position_bias_table)
    torch.save(network.state_dict(), tmp_path / "original.pth")
    encoder = KINETICS[name](shape=SHAPE, frames=frames, size=size).eval()
    load_backbone(encoder.backbone, tmp_path / "original.pth")
    clips = torch.randn(2, frames, 3, size, size)
    with torch.no_grad():
        values, lengths = encoder.backbone(clips, torch.tensor([frames, frames]))
        if name == "s3d":  # its own average needs a map of 7×7
            expected = network.features(clips.transpose(1, 2)).mean(dim=(2, 3, 4))
        else:
            setattr(network, {"mc3_18": "fc", "swin3d_t": "head"}[name], nn.Identity())
            expected = network(clips.transpose(1, 2))
    assert values.shape == (2, steps, encoder.embedding_dim)
    assert lengths.tolist() == [steps, steps]
    torch.testing.assert_close(encoder.head(values, lengths), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("name", KINETICS)
def test_any_number_of_stages_takes_torchvisions_tensors(name: str, stages: int) -> None:
    with torch.device("meta"):
        state = getattr(video, name)().state_dict()
        encoder = KINETICS[name](shape=SHAPE, frames=8, size=32, stages=stages)
    own = encoder.backbone.state_dict()
    given = encoder.backbone.translate(state)
    assert {key: x.shape for key, x in given.items()} == {key: x.shape for key, x in own.items()}
    if stages == 4:
        output = {"s3d": "classifier.", "swin3d_t": "head."}.get(name, "fc.")
        assert len(given) == sum(not key.startswith(output) for key in state)


def test_a_stranger_in_a_checkpoint_is_kept_for_the_loader_to_refuse() -> None:
    backbone = R3d18(shape=SHAPE, frames=4, size=32, stages=1).backbone
    given = backbone.translate({"fc.weight": torch.ones(1), "layer5.weight": torch.ones(1)})
    assert list(given) == ["layer5.weight"]


@pytest.mark.parametrize("name", [*KINETICS, "resnet_lstm", "spatial_transformer"])
def test_every_backbone_parameter_is_of_one_stage(name: str) -> None:
    settings = {} if name == "spatial_transformer" else {"stages": 2, "size": 32}
    encoder: Any = build_encoder(name, settings, SHAPE)
    of_stages = [id(p) for stage in encoder.backbone.stages() for p in stage.parameters()]
    assert len(of_stages) == len(set(of_stages))
    assert set(of_stages) == {id(p) for p in encoder.backbone.parameters()}


@pytest.mark.parametrize("stages", [0, 5])
def test_there_are_one_to_four_stages(stages: int) -> None:
    with pytest.raises(ModelError, match=f"stages must be 1 to 4, got {stages}"):
        R3d18(shape=SHAPE, stages=stages)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Unknown depth 101. Known: 18, 34, 50\."):
        ResNetLstm(shape=SHAPE, depth=101)
    with pytest.raises(ModelError, match=r"Unknown pooling 'last'\. Known: attention, mean"):
        ResNetLstm(shape=SHAPE, pooling="last")
    with pytest.raises(ModelError, match=r"Unknown pooling 'last'\. Known: mean, mean_max"):
        R3d18(shape=SHAPE, pooling="last")
    with pytest.raises(ModelError, match="s3d needs 5 frames of 17 pixels or more, got 4 of 112"):
        S3d(shape=SHAPE, frames=4)
    with pytest.raises(ModelError, match=r"Unknown guide 'eyes'. Known: none, spectral, maps\."):
        GuidedSpatialTransformer(shape=SHAPE, guide="eyes")
    with pytest.raises(ModelError, match="frame_values must be 50 or 810, got 51"):
        GuidedSpatialTransformer(shape=SHAPE, frame_values=51)
    with pytest.raises(ModelError, match="guide 'maps' needs clips with precomputed saliency"):
        GuidedSpatialTransformer(shape=SHAPE, guide="maps")


def test_the_smallest_s3d_named_in_the_error_does_run() -> None:
    encoder = S3d(shape=SHAPE, frames=5, size=17).eval()
    with torch.no_grad():
        values, _ = encoder.backbone(torch.randn(1, 5, 3, 17, 17), torch.tensor([5]))
    assert values.shape == (1, 1, 1024)


def test_s2s_recurrence_has_two_layers_of_256_forward_in_time() -> None:
    encoder = ResNetLstm(shape=SHAPE, depth=50)
    # Four gates of 256 units over 2048 + 256 and then 256 + 256 inputs, with two biases each.
    assert encoder.recurrence is not None
    assert count(encoder.recurrence) == 4 * 256 * (2048 + 256 + 2) + 4 * 256 * (256 + 256 + 2)
    assert encoder.embedding_dim == encoder.steps_dim == 256
    early = torch.randn(1, 4, 2048)
    late = torch.cat([early[:, :3], torch.randn(1, 1, 2048)], dim=1)
    with torch.no_grad():
        one, other = (encoder.head_steps(x, torch.tensor([4]))[0] for x in (early, late))
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.equal(one[:, 3], other[:, 3])


# ResNet-50's published count is 25 557 032 with 2048·1000 + 1000 in its output layer.
def test_resnet50s_backbone_has_the_published_number_of_parameters() -> None:
    assert count(ResNetLstm(shape=SHAPE, depth=50).backbone) == 25_557_032 - 2_049_000


def test_frozen_outputs_of_unlike_settings_have_unlike_names(tmp_path: Path) -> None:
    torch.save(resnet.resnet18().state_dict(), tmp_path / "resnet18-f37072fd.pth")
    (found,) = find_checkpoints(get_architecture("resnet_lstm"), tmp_path)
    assert found.settings == {"depth": 18}
    names = []
    for stages in (1, 2):
        settings = {"stages": stages, "transfer": "frozen", "checkpoint": found.to_json()}
        encoder = build_encoder("resnet_lstm", {**settings}, SHAPE, weights=tmp_path)
        names.append(encoder.frontend.name)
    assert names[0] != names[1]


def sizes(network: nn.Module, kinds: type | tuple[type, ...]) -> list[tuple[int, ...]]:
    """Output shapes of a GuidedFrames' layers for one face."""
    seen: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
    return seen


def test_the_spatial_transformer_has_the_papers_sizes() -> None:
    frames = GuidedFrames(guide="spectral", frame_values=50).eval()
    seen = sizes(frames, (nn.Conv2d, nn.Flatten, nn.Linear))
    with torch.no_grad():
        values, _ = frames(torch.rand(1, 1, 3, 48, 48), torch.tensor([1]))
    localisation = [(8, 42, 42), (10, 17, 17), (640,), (32,), (6,)]
    convolutions = [(10, 46, 46), (10, 44, 44), (10, 20, 20), (10, 18, 18), (810,)]
    assert seen == [*localisation, *convolutions, (50,)]
    assert values.shape == (1, 1, 50)
    # By hand: 8·49 + 8, 10·8·25 + 10, 640·32 + 32, 32·6 + 6.
    assert count(frames.localisation) == 400 + 2010 + 20512 + 198
    # 10·9 + 10, twice 10·10·9 + 10, 10·10·9, and the normalisation's 20.
    assert count(frames.convolutions) == 100 + 2 * 910 + 900 + 20


def test_the_810_values_are_what_the_layer_of_50_reads() -> None:
    small = GuidedFrames(guide="none", frame_values=50).eval()
    large = GuidedFrames(guide="none", frame_values=810).eval()
    large.load_state_dict(large.translate(small.state_dict()))
    clip, lengths = torch.rand(1, 2, 3, 48, 48), torch.tensor([2])
    with torch.no_grad():
        values, _ = large(clip, lengths)
        assert values.shape == (1, 2, 810)
        assert small.project is not None
        torch.testing.assert_close(small.project(values), small(clip, lengths)[0])


def test_a_spatial_transformer_begins_with_the_face_as_it_is() -> None:
    frames = GuidedFrames(guide="none", frame_values=50)
    faces = torch.rand(2, 1, 48, 48)
    torch.testing.assert_close(frames.warp(faces, faces), faces, atol=1e-5, rtol=0)


# Output pixels are fetched from θ·(x, y, 1), both axes running from -1 to 1.
@pytest.mark.parametrize(
    ("theta", "expected"),
    [
        ([-1.0, 0.0, 0.0, 0.0, 1.0, 0.0], lambda x: x.flip(3)),
        ([0.0, 1.0, 0.0, 1.0, 0.0, 0.0], lambda x: x.transpose(2, 3)),
        ([1.0, 0.0, 0.5, 0.0, 1.0, 0.0], lambda x: nn.functional.pad(x[..., 12:], (0, 12))),
        (
            [1.0, 0.0, 0.0, 0.0, 1.0, -0.25],
            lambda x: nn.functional.pad(x[..., :-6, :], (0, 0, 6, 0)),
        ),
    ],
    ids=["mirrored", "transposed", "to the left", "down"],
)
def test_the_warp_does_what_its_six_numbers_say(theta: list[float], expected: Any) -> None:
    frames = GuidedFrames(guide="none", frame_values=50)
    last = frames.localisation[-1]
    assert isinstance(last, nn.Linear)
    faces = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        last.bias.copy_(torch.tensor(theta))
        torch.testing.assert_close(frames.warp(faces, faces), expected(faces), atol=1e-5, rtol=0)


@pytest.mark.parametrize("guide", ["none", "spectral", "maps"])
def test_the_localisation_looks_at_its_guide_and_the_cnn_at_the_face(guide: str) -> None:
    frames = GuidedFrames(guide=guide, frame_values=50).eval()
    seen: dict[str, torch.Tensor] = {}
    for name in ("localisation", "convolutions"):
        getattr(frames, name).register_forward_pre_hook(
            lambda _m, arguments, name=name: seen.__setitem__(name, arguments[0])
        )
    clip = torch.rand(1, 2, 4, 48, 48)
    with torch.no_grad():
        frames(clip, torch.tensor([2]))
    red, green, blue = clip[0, :, :3].unbind(1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    expected = {"none": grey, "maps": clip[0, :, 3], "spectral": SpectralSaliency()(grey)}[guide]
    torch.testing.assert_close(seen["localisation"][:, 0], expected)
    torch.testing.assert_close(seen["convolutions"][:, 0], grey, atol=1e-5, rtol=0)


def test_the_localisation_learns_once_it_has_left_the_identity() -> None:
    encoder = GuidedSpatialTransformer(shape=SHAPE, frames=3)
    nn.init.normal_(encoder.backbone.localisation[-1].weight, std=0.01)
    x = torch.randn(2, 3, 3, 48, 48)
    encoder(x, torch.tensor([3, 3])).square().sum().backward()
    for name, parameter in encoder.backbone.localisation.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


def reference_saliency(grey: np.ndarray) -> np.ndarray:
    """Hou & Zhang's spectral residual with NumPy's transform and SciPy's filters."""
    spectrum = np.fft.fft2(grey, norm="ortho")
    amplitude = np.abs(spectrum) + 1e-2
    logarithm = np.log(amplitude)
    residual = logarithm - ndimage.uniform_filter(logarithm, 3, mode="wrap")
    kept = np.exp(residual) * spectrum / amplitude
    kept[0, 0] = 0.0
    back = np.abs(np.fft.ifft2(kept, norm="ortho")) ** 2
    smooth = ndimage.gaussian_filter(back, 2.5, mode="constant", truncate=2.0)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min() + 1e-2)


def test_saliency_is_the_spectral_residual() -> None:
    generator = np.random.default_rng(0)
    pictures = ndimage.gaussian_filter(generator.random((3, 48, 48)), (0, 2, 2)) * 3.0
    found = SpectralSaliency()(torch.from_numpy(pictures).float()).numpy()
    assert found.max() > 0.9 and found.min() == 0.0
    for picture, saliency in zip(pictures, found, strict=True):
        np.testing.assert_allclose(saliency, reference_saliency(picture), atol=1e-4)


def test_what_is_unlike_its_surroundings_is_salient() -> None:
    picture = torch.zeros(1, 48, 48)
    picture[:, 2::6, :] = 1.0  # stripes
    picture[:, 30:36, 12:18] = torch.eye(6)
    peak = int(SpectralSaliency()(picture).flatten().argmax())
    assert abs(peak // 48 - 32.5) <= 3 and abs(peak % 48 - 14.5) <= 3


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_of_an_even_picture_nothing_is_salient(level: float) -> None:
    noise = 1e-6 * torch.randn(1, 48, 48, generator=torch.Generator().manual_seed(0))
    assert float(SpectralSaliency()(level + noise).max()) < 1e-4


def test_a_spatial_transformers_own_file_is_found_once_with_what_it_holds(tmp_path: Path) -> None:
    entry = get_architecture("spatial_transformer")
    assert find_checkpoints(entry, tmp_path) == []
    for values, settings in ((50, {}), (810, {"frame_values": 810})):
        backbone = GuidedFrames(guide="none", frame_values=values)
        save_file(backbone.state_dict(), tmp_path / "spatial_transformer.safetensors")
        (found,) = find_checkpoints(entry, tmp_path)
        assert isinstance(found, Found)
        assert (found.file, found.settings) == ("spatial_transformer.safetensors", settings)
        chosen = {"transfer": "finetune", "checkpoint": found.to_json(), "guide": "none"}
        encoder: Any = build_encoder("spatial_transformer", chosen, SHAPE, weights=tmp_path)
        for key, x in encoder.backbone.state_dict().items():
            assert torch.equal(x, backbone.state_dict()[key]), key


def test_tanh_attention_weighs_by_two_layers_of_tanh() -> None:
    attention = TanhAttention(2, dropout=0.5).eval()
    with torch.no_grad():
        attention.hidden.weight.copy_(torch.eye(2))
        attention.hidden.bias.zero_()
        attention.score.weight.copy_(torch.tensor([[1.0, 2.0]]))
        attention.score.bias.fill_(0.5)
    steps = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    scores = [math.tanh(weight * math.tanh(1.0) + 0.5) for weight in (1.0, 2.0)]
    first = math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))
    with torch.no_grad():
        pooled = attention(steps, torch.tensor([2]))
    torch.testing.assert_close(pooled, torch.tensor([[first, 1.0 - first]]))


@pytest.mark.parametrize("units", [50, 300])
def test_the_sequence_network_has_the_papers_sizes(units: int) -> None:
    encoder = ActionUnitLstm(
        shape=ClipShape(num_classes=8, num_features=35, feature_steps=100), units=units
    )
    first = 8 * units * (35 + units + 2)  # two directions of four gates, two biases each
    second = 8 * units * (2 * units + units + 2)
    attention = 2 * units * (2 * units + 1) + 2 * units + 1
    assert count(encoder) == first + second + attention
    assert encoder.embedding_dim == 2 * units


def test_a_feature_sequence_is_scaled_by_its_own_frames_alone() -> None:
    encoder = ActionUnitLstm(shape=SHAPE)
    x = torch.full((2, 3, 3), 99.0)  # what lies behind a clip's end must not count
    x[0] = torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 5.0], [4.0, 1.0, 5.0]])
    x[1, 0] = torch.tensor([10.0, 1.0, 5.0])
    encoder.fit_statistics(x, torch.tensor([3, 1]))
    torch.testing.assert_close(encoder.scale.mean, torch.tensor([4.0, 1.0, 5.0]))
    # (16 + 4 + 0 + 36) / 4 = 14; what never changes is left as it is.
    torch.testing.assert_close(encoder.scale.deviation, torch.tensor([math.sqrt(14.0), 1.0, 1.0]))


def test_the_sequence_network_reads_forward_and_back() -> None:
    encoder = ActionUnitLstm(shape=SHAPE, units=4).eval()
    x = torch.randn(1, 5, 3)
    changed = x.clone()
    changed[:, 4] += 1.0
    with torch.no_grad():
        one, other = (encoder.steps(v, torch.tensor([5]))[0] for v in (x, changed))
    assert not torch.equal(one[:, 0], other[:, 0]), "the last step is not seen by the first"
