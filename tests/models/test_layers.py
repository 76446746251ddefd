from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.layers import (
    AttentionPooling,
    FramewiseConv3d,
    PixelwiseConv3d,
    Recurrence,
    Standardise,
    fit_length,
    flatten_convolutions,
)

AMX = "amx_tile" in Path("/proc/cpuinfo").read_text()


def test_standardise_by_hand() -> None:
    # Means 2 and 5, population deviations 1 and 0; a constant feature keeps its scale.
    layer = Standardise(2)
    layer.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert layer.mean.tolist() == [2.0, 5.0]
    assert layer.deviation.tolist() == [1.0, 1.0]
    assert layer(torch.tensor([[4.0, 6.0]])).tolist() == [[2.0, 1.0]]


def test_standardise_clips_at_8_deviations() -> None:
    layer = Standardise(1)
    layer.fit(torch.tensor([[-1.0], [1.0]]))
    assert layer(torch.tensor([[100.0], [-100.0], [7.0]])).tolist() == [[8.0], [-8.0], [7.0]]


def test_attention_pooling_by_hand() -> None:
    pool = AttentionPooling(1)
    with torch.no_grad():
        pool.score.weight.fill_(1.0)
        pool.score.bias.fill_(0.5)
    # Weights ∝ e⁰ and e^ln 3: ¼ and ¾.
    x = torch.tensor([[[0.0], [math.log(3)]]])
    assert pool(x, torch.tensor([2])).item() == pytest.approx(0.75 * math.log(3))


def test_attention_pooling_gives_padding_no_weight() -> None:
    pool = AttentionPooling(3)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    wild = x.clone()
    wild[0, 2:] = 1e4
    lengths = torch.tensor([2, 5])
    assert torch.equal(pool(wild, lengths), pool(x, lengths))
    torch.testing.assert_close(pool(x, lengths)[:1], pool(x[:1, :2], torch.tensor([2])))


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_recurrence_gives_what_the_clip_gives_alone(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    recurrence = Recurrence(kind, 3, 4, layers).eval()
    x = torch.randn(3, 6, 3)
    lengths = torch.tensor([4, 6, 1])
    together = recurrence(x, lengths)
    assert together.shape == (3, 6, recurrence.output_dim) == (3, 6, 8)
    for clip, length in enumerate(lengths.tolist()):
        apart = recurrence.cell(x[clip : clip + 1, :length])[0]
        torch.testing.assert_close(together[clip : clip + 1, :length], apart)
        assert (together[clip, length:] == 0).all()


def test_dropout_lies_between_layers_only() -> None:
    assert Recurrence("gru", 3, 4, 1, 0.5).cell.dropout == 0.0
    assert Recurrence("gru", 3, 4, 2, 0.5).cell.dropout == 0.5


def ramp(*lengths: int) -> Tensor:
    """Frame t of a clip is t + 1, zero behind its end: (B, T, 1)."""
    x = torch.zeros(len(lengths), max(lengths), 1)
    for clip, length in enumerate(lengths):
        x[clip, :length, 0] = torch.arange(1, length + 1)
    return x


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (5, 3, [2, 3, 4]),  # one frame spare on either side
        (6, 3, [3, 4, 5]),  # of three spare frames two lie in front
        (4, 3, [2, 3, 4]),
        (3, 3, [1, 2, 3]),
        (2, 4, [1, 2, 0, 0]),
    ],
)
def test_the_middle_is_cut_or_zeros_follow(length: int, count: int, expected: list[int]) -> None:
    got = fit_length(ramp(length), torch.tensor([length]), count, random=False)
    assert got[0, :, 0].tolist() == expected


def test_the_cut_depends_on_the_clips_own_length_alone() -> None:
    got = fit_length(ramp(5, 9, 2), torch.tensor([5, 9, 2]), 3, random=False)
    assert got[:, :, 0].tolist() == [[2, 3, 4], [4, 5, 6], [1, 2, 0]]


def test_a_random_cut_stays_inside_and_reaches_everywhere() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([6] * 200 + [2] * 5)
    got = fit_length(ramp(*lengths.tolist()), lengths, 4, random=True)[:, :, 0]
    starts = set(got[:200, 0].tolist())
    assert starts == {1, 2, 3}
    assert (got[:200].diff(dim=1) == 1).all()
    assert got[:200].max() == 6
    assert (got[200:] == torch.tensor([1.0, 2.0, 0.0, 0.0])).all()


def test_flattened_convolutions_are_torchs_own_computed_otherwise() -> None:
    plain = nn.Sequential(
        nn.Conv3d(3, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),  # frames
        nn.Sequential(
            nn.Conv3d(4, 5, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0), bias=False),  # pixels
            nn.Conv3d(5, 2, 1, stride=(1, 2, 2)),  # frames
            nn.Conv3d(2, 2, (2, 2, 1)),
        ),
    )
    before = {key: x.clone() for key, x in plain.state_dict().items()}
    x = torch.randn(2, 3, 6, 8, 9)
    expected = plain(x)
    expected.square().sum().backward()
    gradients = [p.grad for p in plain.parameters()]
    plain.zero_grad()
    flatten_convolutions(plain)
    inner = plain[1]
    assert isinstance(inner, nn.Sequential)
    kinds = [type(layer) for layer in (plain[0], *inner)]
    assert kinds == [FramewiseConv3d, PixelwiseConv3d, FramewiseConv3d, nn.Conv3d]
    assert {k: v.tolist() for k, v in plain.state_dict().items()} == {
        k: v.tolist() for k, v in before.items()
    }
    found = plain(x)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "channels", "size"),
    [
        ((1, 3, 3), (1, 1, 1), (0, 1, 1), (128, 288), (4, 28)),
        ((7, 1, 1), (2, 1, 1), (3, 0, 0), (64, 64), (8, 56)),
    ],
    ids=["frames", "pixels"],
)
def test_their_weights_gradients_are_right_in_bfloat16(
    kernel: Any, stride: Any, padding: Any, channels: tuple[int, int], size: tuple[int, int]
) -> None:
    # Of this size torch's own leaves what was in memory in them, where the processor has AMX;
    # elsewhere a smaller batch takes the same path.
    layer = nn.Sequential(nn.Conv3d(*channels, kernel, stride, padding, bias=False))
    flatten_convolutions(layer)
    layer = layer.to(memory_format=torch.channels_last_3d)
    clips = 16 if AMX else 2
    x = torch.randn(clips, channels[0], size[0], size[1], size[1]).relu()
    x = x.contiguous(memory_format=torch.channels_last_3d)
    slope = torch.randn_like(layer(x)).detach() * 1e-4

    def gradient(enabled: bool) -> Tensor:
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (layer(x) * slope).sum().backward()
        (weight,) = layer.parameters()
        assert weight.grad is not None
        return weight.grad.flatten().clone()

    found, expected = gradient(True), gradient(False)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.999
    assert found.norm() / expected.norm() == pytest.approx(1.0, abs=0.01)
