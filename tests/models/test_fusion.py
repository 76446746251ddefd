"""Early fusion where clips lack a modality, and what each fusion computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from models import ClipShape, Expert, architectures, build_expert
from models.base import Encoder, Part
from models.frontends.frames import Features
from models.fusion.bilinear import Bilinear
from models.fusion.gated import Gated
from models.fusion.joint_lstm import JointLstm
from models.registry import ModelError

FUSIONS = [entry.name for entry in architectures("early")]
PARTS: dict[str, Any] = {
    "audio": {"architecture": "logmel_resnet", "settings": {"width": 4}},
    "video": {"architecture": "frame_cnn", "settings": {"width": 4}},
}
every_fusion = pytest.mark.parametrize("name", FUSIONS)


def build(name: str, shape: ClipShape, **settings: Any) -> Expert:
    torch.manual_seed(0)
    return build_expert(name, {**PARTS, **settings}, shape).eval()


def without(batch: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {key: x for key, x in batch.items() if not key.startswith(kind)}


@every_fusion
@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_missing_modality_has_a_defined_answer(
    name: str, kind: str, shape: ClipShape, make_clips: Any
) -> None:
    expert = build(name, shape)
    batch = make_clips([8000, 6000, 7000])
    partly = {key: x.clone() for key, x in batch.items()}
    partly[f"{kind}_lengths"][1] = 0
    with torch.no_grad():
        whole, some, none = expert(batch), expert(partly), expert(without(batch, kind))
    assert torch.isfinite(none).all()
    # Said by a length of zero or by leaving it out, a clip that has all is not touched by it.
    torch.testing.assert_close(some[1], none[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(some[[0, 2]], whole[[0, 2]], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole[1], none[1], atol=1e-5)


@every_fusion
def test_what_lies_where_a_modality_is_missing_does_not_matter(
    name: str, shape: ClipShape, make_clips: Any
) -> None:
    expert = build(name, shape)
    batch = make_clips([8000, 6000])
    batch["video_lengths"][0] = 0
    with torch.no_grad():
        before = expert(batch)
        batch["video"][0] = 255 - batch["video"][0]
        torch.testing.assert_close(expert(batch), before)


@every_fusion
def test_modality_dropout_takes_one_modality_from_some_clips_in_training_alone(
    name: str, shape: ClipShape
) -> None:
    expert = build(name, shape, modality_dropout=0.4)
    present = torch.ones(2000, 2, dtype=torch.bool)
    torch.manual_seed(0)
    assert expert._drop(present) is present
    expert.train()
    left = expert._drop(present)
    assert left.any(dim=1).all(), "never both"
    lost = 1.0 - left.float().mean(dim=0)
    assert lost.sum() == pytest.approx(0.4, abs=0.05)
    assert lost[0] == pytest.approx(float(lost[1]), abs=0.05)
    one_sided = present.clone()
    one_sided[:, 1] = False
    assert torch.equal(expert._drop(one_sided), one_sided), "what a clip has alone stays"


@every_fusion
def test_a_clip_with_neither_is_refused(name: str, shape: ClipShape) -> None:
    with pytest.raises(ModelError, match="A clip needs one of audio, video; it has none"):
        build(name, shape)({"features": torch.zeros(1, 5)})


def test_a_senseless_modality_dropout_is_refused(shape: ClipShape) -> None:
    with pytest.raises(ModelError, match=r"modality_dropout must be in \[0, 1\), got 1.0"):
        build("gated", shape, modality_dropout=1.0)


def test_heads_must_divide_the_width(shape: ClipShape) -> None:
    with pytest.raises(ModelError, match="num_heads must divide dim, got num_heads=3, dim=64"):
        build("cross_attention", shape, num_heads=3)


class _Wide(Encoder):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frontend, self.embedding_dim = Features(), dim


def vectors(*values: list[list[float]]) -> list[Part]:
    parts = []
    for value in values:
        vector = torch.tensor(value)
        ones = torch.ones(len(vector), dtype=torch.int64)
        parts.append(Part(vector, None, ones, ones.bool()))
    return parts


def test_a_gate_by_hand() -> None:
    gated = Gated([_Wide(1), _Wide(1)], dim=1)
    for parameter in gated.parameters():
        torch.nn.init.constant_(parameter, 0.0)
    torch.nn.init.constant_(gated.audio.weight, 1.0)
    torch.nn.init.constant_(gated.gate.weight, 1.0)
    # z = σ(2 + 1), h = z·tanh(2) + (1 - z)·0
    expected = torch.sigmoid(torch.tensor(3.0)) * torch.tanh(torch.tensor(2.0))
    torch.testing.assert_close(gated(vectors([[2.0]], [[1.0]]))[0, 0], expected)


def test_the_low_rank_product_is_the_full_bilinear_form() -> None:
    torch.manual_seed(0)
    fused = Bilinear([_Wide(3), _Wide(2)], dim=4, rank=5)
    audio, video = torch.randn(6, 3), torch.randn(6, 2)
    got = fused(vectors(audio.tolist(), video.tolist()))
    a, v = (
        torch.cat([scale(x), torch.ones(6, 1)], dim=1)
        for scale, x in zip(fused.scales, (audio, video), strict=True)
    )
    weights = [
        torch.cat([f.weight, f.bias[:, None]], dim=1).unflatten(0, (5, 4)) for f in fused.factors
    ]
    tensor = torch.einsum("rdi,rdj->dij", *weights)  # the tensor that the factors stand for
    torch.testing.assert_close(
        got, torch.einsum("bi,dij,bj->bd", a, tensor, v), atol=1e-4, rtol=1e-4
    )


def test_streams_lie_side_by_side_on_the_finer_clock() -> None:
    fusion = JointLstm([_Wide(2), _Wide(2)], units=3)
    for scale in fusion.scales:
        torch.nn.init.constant_(scale.weight, 0.0)  # a step is then its scale's bias
    audio = torch.arange(8.0).repeat_interleave(2).reshape(1, 8, 2)
    video = torch.arange(4.0).repeat_interleave(2).reshape(1, 4, 2)
    present = torch.tensor([True])
    parts = [
        Part(None, audio, torch.tensor([8]), present), Part(None, video, torch.tensor([4]), present)
    ]  # fmt: skip
    fusion.scales = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    steps, lengths = fusion.streams(parts)
    assert lengths.tolist() == [8]
    assert steps[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert steps[0, :, 2].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
