"""An expert: front end → encoder → classifier, from plain waveform, frames or features to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.registry import ClipShape, ModelError, get_architecture

Batch = Mapping[str, Tensor]


class FrontEnd(nn.Module):
    """A parameter-free first stage: raw input → what the encoder reads.

    Attributes:
        name: Kind and settings; what two front ends of the same name compute is the same,
            and is cached under it.
        worth_caching: Whether computing it costs more than reading its result.
        frames_per_second: Of a spectrogram (B, T, F); 0 for anything else.
    """

    name: str = "identity"
    worth_caching: bool = False
    frames_per_second: float = 0.0

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, …), (B,) → (B, m, …), (B,)."""
        return x, lengths


class Encoder(nn.Module):
    """One clip in, one vector out. Subclasses set the attributes and implement `forward`.

    Attributes:
        kind: The input that it reads: audio, video or features.
        embedding_dim: D.
        frontend: Its first stage, without parameters.
    """

    kind: str
    embedding_dim: int
    frontend: FrontEnd

    def fit_statistics(self, x: Tensor) -> None:
        """Learns what is counted rather than trained (a scaler), from training clips only.

        Args:
            x: The front end's output for every training clip. Encoders whose
                `counts_statistics` is False are not asked.
        """

    counts_statistics: bool = False

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The front end's output (B, n, …) and lengths (B,) → (B, D)."""
        raise AssertionError(f"{type(self).__name__} has no forward")


class Expert(nn.Module):
    """One or several encoders, joined, and a classifier.

    Args:
        encoders: One a kind of input. With several (early fusion) their vectors are
            concatenated and pass `join`.
        join: (B, ΣD) → (B, D'), or None for one encoder.
        num_classes: K.
        dropout: In front of the last layer.
        joined_dim: D'.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        num_classes: int,
        *,
        dropout: float = 0.0,
        join: nn.Module | None = None,
        joined_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.join = join if join is not None else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        width = joined_dim or sum(encoder.embedding_dim for encoder in encoders.values())
        self.classifier = nn.Linear(width, num_classes)

    def encoder(self, kind: str) -> Encoder:
        """The encoder of a kind of input."""
        module = self.encoders[kind]
        assert isinstance(module, Encoder)
        return module

    @property
    def kinds(self) -> list[str]:
        """Which inputs it reads."""
        return list(self.encoders)

    def preprocess(self, batch: Batch) -> dict[str, Tensor]:
        """Runs the front ends; no parameters, no gradient, the same in training and after."""
        fixed: dict[str, Tensor] = {}
        with torch.no_grad():
            for kind in self.kinds:
                x = batch[kind]
                lengths = batch.get(f"{kind}_lengths")
                if lengths is None:
                    lengths = x.new_ones(x.shape[0], dtype=torch.int64)
                fixed[kind], fixed[f"{kind}_lengths"] = self.encoder(kind).frontend(x, lengths)
        return fixed

    def classify(self, fixed: Batch) -> Tensor:
        """What `preprocess` returned → (B, K) logits."""
        vectors = [self.encoder(k)(fixed[k], fixed[f"{k}_lengths"]) for k in self.kinds]
        joined = self.join(vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1))
        logits: Tensor = self.classifier(self.dropout(joined))
        return logits

    def forward(self, batch: Batch) -> Tensor:
        """Plain clips → (B, K) logits.

        Args:
            batch: `audio` (B, L) float32 in [-1, 1], `video` (B, V, H, W, 3) uint8,
                `features` (B, F) float32, those that the encoders read; sequences with
                `<name>_lengths` (B,) int64.
        """
        return self.classify(self.preprocess(batch))


def build_expert(
    architecture: str, settings: Mapping[str, Any], shape: ClipShape, *, dropout: float = 0.0
) -> Expert:
    """Builds an expert from its name and settings.

    Args:
        architecture: A registered name.
        settings: Constructor arguments; what is missing takes the known-good default.
            Early fusion's hold `audio` and `video`, each `{"architecture": …, "settings": {…}}`.
        shape: The corpus's clips.
        dropout: In front of the last layer.

    Raises:
        ModelError: Unknown architecture or setting, or an input that the clips lack.
    """
    entry = get_architecture(architecture)
    if entry.modality == "early":
        entry.check(settings)
        complete = {**entry.default, **settings}
        return entry.build(shape=shape, dropout=dropout, **complete)  # type: ignore[return-value]
    encoder = build_encoder(architecture, settings, shape)
    return Expert({encoder.kind: encoder}, shape.num_classes, dropout=dropout)


def arrange_memory(expert: Expert) -> Expert:
    """Puts convolution weights into channels-last order, which their inputs follow.

    What it gains on a CPU, alone and with bfloat16, is in docs/performance.md.
    """
    for module in expert.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    return expert


def build_encoder(architecture: str, settings: Mapping[str, Any], shape: ClipShape) -> Encoder:
    """Builds the encoder of a single-modality architecture, as a part of early fusion too.

    Raises:
        ModelError: Unknown architecture or setting, or an input that the clips lack.
    """
    entry = get_architecture(architecture)
    entry.check(settings)
    assert entry.modality != "early", "early fusion is not a part of early fusion"
    for kind in entry.inputs:
        if not shape.has(kind):
            raise ModelError(f"'{architecture}' reads {kind}, which some or all clips lack.")
    return entry.build(shape=shape, **{**entry.default, **settings})
