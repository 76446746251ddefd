"""Parts of an expert: front end, encoder, backbone, and the fusion that joins two encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class FrontEnd(nn.Module):
    """A first stage in which nothing is trained: raw input → what the encoder reads.

    Attributes:
        name: Kind and settings; what two front ends of the same name compute is the same,
            and is cached under it.
        worth_caching: Whether computing it costs more than reading its result.
        frames_per_second: Of what has a time axis that may be cut, (B, T, F); 0 for anything else.
        has_bands: Whether F are bands, which SpecAugment may mask.
        has_mean: Whether the mean of its result over a speaker's clips says something of the
            speaker (features, spectrograms), and can be taken off.
        storage: How its result is kept in the cache: float32 or float16.
    """

    name: str = "identity"
    worth_caching: bool = False
    frames_per_second: float = 0.0
    has_bands: bool = True
    has_mean: bool = True
    storage: str = "float32"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, …), (B,) → (B, m, …), (B,)."""
        return x, lengths


class Encoder(nn.Module):
    """One clip in, one vector out. Subclasses set the attributes and implement `forward`.

    Attributes:
        kind: The input that it reads: audio, video, features or feature_sequence.
        embedding_dim: D.
        frontend: Its first stage, in which nothing is trained.
    """

    kind: str
    embedding_dim: int
    frontend: FrontEnd

    def fit_statistics(self, x: Tensor, lengths: Tensor) -> None:
        """Learns what is counted rather than trained (a scaler), from training clips only.

        Args:
            x: The front end's output for every training clip; sequences padded to the longest.
                Encoders whose `counts_statistics` is False are not asked.
            lengths: (N,) the clips' own lengths, which tell padding apart.
        """

    counts_statistics: bool = False

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The front end's output (B, n, …) and lengths (B,) → (B, D)."""
        raise AssertionError(f"{type(self).__name__} has no forward")

    @property
    def steps_dim(self) -> int:
        """E, width of `steps`."""
        return self.embedding_dim

    def steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of a clip over time, for frame-level targets and fusion over time.

        An encoder without a time axis has one step, its vector.

        Returns:
            (B, S, E), zero behind each clip's end, and (B,) steps.
        """
        return self(x, lengths)[:, None], torch.ones_like(lengths)


class Backbone(nn.Module):
    """The part of an encoder that a checkpoint may fill: the front end's output → maps over time.

    Attributes:
        variant: Settings that change what it makes of the same checkpoint; part of the name
            that a frozen backbone's output is cached under.
    """

    variant: str = ""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, …), (B,) → (B, S, …), (B,); zero behind each clip's end."""
        raise AssertionError(f"{type(self).__name__} has no forward")

    def stages(self) -> list[nn.Module]:
        """Its parts from input to output, which fine-tuning thaws last to first."""
        return [self]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An original checkpoint's tensors under this module's own names.

        Drops what belongs to the original's task (its output layer) and nothing else.
        """
        return dict(state)


class BackboneEncoder(Encoder):
    """An encoder in two parts: a backbone that may be pretrained, and a head on top of it.

    Attributes:
        backbone: The first part.
        finetuned: Whether it started from pretrained weights and trains on.
    """

    backbone: Backbone
    finetuned: bool = False

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The backbone's output → (B, D)."""
        raise AssertionError(f"{type(self).__name__} has no head")

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The front end's output → (B, D)."""
        return self.head(*self.backbone(x, lengths))

    def steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder`; what the head makes of the steps, by default of the whole clip."""
        return self.head_steps(*self.backbone(x, lengths))

    def head_steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's output → (B, S, E), (B,)."""
        return self.head(x, lengths)[:, None], torch.ones_like(lengths)


@dataclass(frozen=True)
class Part:
    """Input of early fusion from one modality.

    Attributes:
        vector: (B, D); zeros where the clip has no such input. None for a fusion over time.
        steps: (B, S, E), zero behind each clip's end; None for a fusion of vectors.
        lengths: (B,) steps; 1 where the clip has no such input.
        present: (B,) bool; False where the clip has no such input, or it was dropped.
    """

    vector: Tensor | None
    steps: Tensor | None
    lengths: Tensor
    present: Tensor


class Fusion(nn.Module):
    """Joins the parts of early fusion: (B, D').

    Attributes:
        joined_dim: D'.
        over_time: Whether it reads the parts' steps instead of their vectors.
    """

    joined_dim: int
    over_time: bool = False

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """One part a modality, audio first."""
        raise AssertionError(f"{type(self).__name__} has no forward")

    def steps(self, parts: Sequence[Part]) -> list[tuple[Tensor, Tensor]]:
        """For traces, of a fusion over time: streams (B, S, E), (B,), E summing up to D'."""
        raise AssertionError(f"{type(self).__name__} has no steps")
