"""Build experts and encoders from a registered name and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.base import BackboneEncoder, Encoder, Fusion
from models.expert import Expert
from models.frontends.denoising import GatedNoise
from models.pretrained import Found, apply_transfer
from models.registry import Architecture, ClipShape, ModelError, get_architecture


class _Stepwise:
    """An encoder as a fusion of vectors sees it that joins two streams step by step."""

    def __init__(self, encoder: Encoder) -> None:
        self.embedding_dim = self.steps_dim = encoder.steps_dim


def build_expert(
    architecture: str,
    settings: Mapping[str, Any],
    shape: ClipShape,
    *,
    dropout: float = 0.0,
    weights: Path | None = None,
) -> Expert:
    """Builds an expert from its name and settings.

    Args:
        architecture: A registered name.
        settings: Constructor arguments; what is missing takes the known-good default.
            Early fusion's hold `audio` and `video`, each `{"architecture": …, "settings": {…}}`.
        shape: The corpus's clips.
        dropout: In front of the last layer.
        weights: Folder of pretrained weights; without it, backbones keep random weights until
            a trained network is loaded.

    Raises:
        ModelError: Unknown architecture or setting, an input that the clips lack, or weights
            that are missing or of another architecture.
    """
    entry = get_architecture(architecture)
    if entry.modality == "early":
        return _build_early(entry, settings, shape, dropout, weights)
    encoder = build_encoder(architecture, settings, shape, weights=weights)
    return Expert(
        {encoder.kind: encoder}, shape.num_classes, dropout=dropout, answers=shape.answers
    )


def _build_early(
    entry: Architecture,
    settings: Mapping[str, Any],
    shape: ClipShape,
    dropout: float,
    weights: Path | None,
) -> Expert:
    """Two encoders, and the registered fusion over them."""
    entry.check(settings)
    encoders: dict[str, Encoder] = {}
    for modality in ("audio", "video"):
        part = settings[modality]
        name = part["architecture"]
        if get_architecture(name).modality != modality:
            raise ModelError(
                f"Early fusion's {modality} part must be an architecture of {modality}, got '{name}'."
            )
        encoder = build_encoder(name, part.get("settings", {}), shape, weights=weights)
        encoders[encoder.kind] = encoder
    own = {k: v for k, v in settings.items() if k in entry.arguments}
    stepwise = shape.answers == "traces"
    joined = [_Stepwise(e) if stepwise else e for e in encoders.values()]
    fusion = entry.build(joined, **{**entry.default, **own})
    assert isinstance(fusion, Fusion)
    return Expert(
        encoders,
        shape.num_classes,
        dropout=dropout,
        fusion=fusion,
        modality_dropout=float(settings.get("modality_dropout", 0.0)),
        answers=shape.answers,
    )


_TOO_FEW_CHANNELS = range(4, 8)


def arrange_memory(expert: Expert) -> Expert:
    """Puts convolution weights into channels-last order, which their inputs follow.

    What it gains on a CPU, alone and with bfloat16, is in docs/performance.md. Not where a convolution
    joins 4 to 7 channels: torch 2.14's gradient of a strided one of 4 writes beyond its memory on
    processors with AVX2 alone, and so few gain nothing.
    """
    convolutions = {m for m in expert.modules() if isinstance(m, nn.Conv2d)}
    if any(conv.in_channels // conv.groups in _TOO_FEW_CHANNELS for conv in convolutions):
        convolutions.clear()
    for module in expert.modules():
        if module in convolutions:
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    return expert


def build_encoder(
    architecture: str,
    settings: Mapping[str, Any],
    shape: ClipShape,
    *,
    weights: Path | None = None,
) -> Encoder:
    """Builds the encoder of a single-modality architecture, as a part of early fusion too.

    Raises:
        ModelError: Unknown architecture or setting, an input that the clips lack, or weights
            that are missing or of another architecture.
    """
    entry = get_architecture(architecture)
    entry.check(settings)
    assert entry.modality != "early", "early fusion is not a part of early fusion"
    for kind in entry.inputs:
        if not shape.has(kind):
            raise ModelError(f"'{architecture}' reads {kind}, which some or all clips lack.")
    own = {**entry.default, **settings}
    if shape.answers == "traces":
        if not entry.over_time:
            raise ModelError(
                f"'{architecture}' has no time axis: it cannot say anything of a step."
            )
        if own.get("trim_db"):  # what is cut off would shift every step behind it
            own["trim_db"] = 0.0
    further = {key: own.pop(key) for key in entry.further_settings if key in own}
    found = Found.from_json(further["checkpoint"]) if further.get("checkpoint") else None
    encoder = entry.build(shape=shape, **{**own, **(found.settings if found else {})})
    assert isinstance(encoder, Encoder)
    if strength := float(further.get("noise_removal", 0.0)):
        encoder.frontend = GatedNoise(
            encoder.frontend, sample_rate_hz=shape.sample_rate_hz, strength=strength
        )
    if transfer := further.get("transfer"):
        assert isinstance(encoder, BackboneEncoder)
        apply_transfer(encoder, transfer, found, weights)
    return encoder
