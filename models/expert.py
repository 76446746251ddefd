"""An expert: front end → encoder → classifier, from plain waveform, frames or features to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.registry import Answers, Architecture, ClipShape, ModelError, get_architecture

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
        """What it makes of a clip over time, for frame-level targets and fusion over time.

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
    """What early fusion gets of one modality.

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


def on_steps(x: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
    """Steps on another clock: (B, n, E), (B,) lengths → (B, S, E), S the most that are `wanted`.

    Both clocks span the clip; between the middles of two steps it is a straight line.
    """
    moments = _count(wanted)[None].to(torch.float32) + 0.5
    ratio = lengths.to(torch.float32) / wanted.clamp(min=1).to(torch.float32)
    place = moments * ratio[:, None] - 0.5
    place = torch.minimum(place.clamp(min=0.0), (lengths - 1).clamp(min=0)[:, None].to(place.dtype))
    before = place.floor()
    share = (place - before)[:, :, None].to(x.dtype)
    first = before.to(torch.int64)
    second = torch.minimum(first + 1, (lengths - 1).clamp(min=0)[:, None])
    wide = (-1, -1, x.shape[2])
    earlier = x.gather(1, first[:, :, None].expand(wide))
    later = x.gather(1, second[:, :, None].expand(wide))
    return earlier + share * (later - earlier)


def _count(lengths: Tensor) -> Tensor:
    """0, 1, … up to the greatest length; in a graph too, where it is no constant."""
    longest = lengths.max()
    if torch.onnx.is_in_onnx_export():
        counted: Tensor = torch.arange(longest, device=lengths.device)  # type: ignore[call-overload]
        return counted
    return torch.arange(int(longest), device=lengths.device)


class _Stepwise:
    """An encoder as a fusion of vectors sees it that joins two streams step by step."""

    def __init__(self, encoder: Encoder) -> None:
        self.embedding_dim = self.steps_dim = encoder.steps_dim


class Expert(nn.Module):
    """One or several encoders, joined, and a last layer.

    Early fusion answers also where a clip lacks one modality: that part is zeros (and, over
    time, one silent step), and training with `modality_dropout` teaches it what to make of that.

    Args:
        encoders: One a kind of input.
        num_classes: K.
        dropout: In front of the last layer.
        fusion: Joins several encoders (early fusion); None for one.
        modality_dropout: Share of training clips that lose one of their modalities.
        answers: What it says of a clip, see `ClipShape`: of classes logits, else numbers on the scale
            that `fit_answers` was told.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        num_classes: int,
        *,
        dropout: float = 0.0,
        fusion: Fusion | None = None,
        modality_dropout: float = 0.0,
        answers: Answers = "classes",
    ) -> None:
        super().__init__()
        assert (fusion is None) == (len(encoders) == 1), "several encoders need a fusion, one none"
        if not 0 <= modality_dropout < 1:
            raise ModelError(f"modality_dropout must be in [0, 1), got {modality_dropout}.")
        self.encoders = nn.ModuleDict(encoders)
        self.fusion, self.modality_dropout = fusion, modality_dropout
        self.answers = answers
        self.dropout = nn.Dropout(dropout)
        (first, *_) = encoders.values()
        own = first.steps_dim if answers == "traces" else first.embedding_dim
        self.classifier = nn.Linear(fusion.joined_dim if fusion else own, num_classes)
        if answers != "classes":
            self.register_buffer("centre", torch.zeros(num_classes))
            self.register_buffer("spread", torch.ones(num_classes))
        self.centre: Tensor
        self.spread: Tensor

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
        """Runs the front ends; no gradient, the same in training and after.

        Of early fusion, one kind of input may be absent from the batch.
        """
        fixed: dict[str, Tensor] = {}
        if self.answers == "traces":
            fixed["trace_lengths"] = batch["trace_lengths"]
        with torch.no_grad():
            for kind in self.kinds:
                if kind not in batch and self.fusion is not None:
                    continue
                x = batch[kind]
                lengths = batch.get(f"{kind}_lengths")
                if lengths is None:
                    lengths = torch.ones_like(x.flatten(1)[:, 0], dtype=torch.int64)
                fixed[kind], fixed[f"{kind}_lengths"] = self.encoder(kind).frontend(
                    x, lengths.clamp(min=1)
                )
                if self.fusion is not None:
                    fixed[f"{kind}_present"] = lengths > 0
        return fixed

    def fit_answers(self, values: Tensor) -> None:
        """Learns where numbers lie and how far they spread, from (n, K) of the training side."""
        self.centre.copy_(values.mean(dim=0))
        self.spread.copy_(values.std(dim=0, correction=0).clamp(min=1e-3))

    def answer(self, fixed: Batch) -> Tensor:
        """What `preprocess` returned → (B, K) logits or values, or (B, S, K) traces."""
        joined = self._over_time(fixed) if self.answers == "traces" else self._embed(fixed)
        said: Tensor = self.classifier(self.dropout(joined))
        if self.answers == "classes":
            return said
        said = said * self.spread + self.centre
        if self.answers == "traces":
            wanted = fixed["trace_lengths"]
            behind = _count(wanted)[None] >= wanted[:, None]
            said = said.masked_fill(behind[:, :, None], 0.0)
        return said

    def stream(self, fixed: Batch, kind: str) -> Tensor:
        """One encoder's own steps of what `preprocess` returned, on the trace's: (B, S, E)."""
        steps, lengths = self.encoder(kind).steps(fixed[kind], fixed[f"{kind}_lengths"])
        return on_steps(steps, lengths, fixed["trace_lengths"])

    def _over_time(self, fixed: Batch) -> Tensor:
        """(B, S, D') at every step of the trace."""
        if self.fusion is None:
            return self.stream(fixed, self.kinds[0])
        wanted = fixed["trace_lengths"]
        parts = self._parts(fixed, over_time=True)
        if self.fusion.over_time:
            streams = self.fusion.steps(parts)
            return torch.cat([on_steps(x, lengths, wanted) for x, lengths in streams], dim=2)
        steps = []
        for part in parts:
            assert part.steps is not None
            steps.append(on_steps(part.steps, part.lengths, wanted))
        each = []
        for x, part in zip(steps, parts, strict=True):
            # Not by numbers of steps: a graph for export would keep those of its example.
            present = part.present[:, None] | torch.zeros_like(x[:, :, 0], dtype=torch.bool)
            each.append(Part(x.flatten(0, 1), None, part.lengths, present.flatten()))
        joined: Tensor = self.fusion(each)
        return joined.reshape(wanted.shape[0], -1, joined.shape[1])

    def vector(self, fixed: Batch, kind: str) -> Tensor:
        """One encoder's own (B, D) of what `preprocess` returned."""
        vector: Tensor = self.encoder(kind)(fixed[kind], fixed[f"{kind}_lengths"])
        return vector

    def _embed(self, fixed: Batch) -> Tensor:
        if self.fusion is None:
            return self.vector(fixed, self.kinds[0])
        joined: Tensor = self.fusion(self._parts(fixed, over_time=self.fusion.over_time))
        return joined

    def _parts(self, fixed: Batch, *, over_time: bool) -> list[Part]:
        """What the fusion reads of each modality."""
        given = [kind for kind in self.kinds if kind in fixed]
        if not given:
            raise ModelError(f"A clip needs one of {', '.join(self.kinds)}; it has none.")
        clips = fixed[f"{given[0]}_lengths"]  # (B,), for its size and device
        present = self._drop(
            torch.stack(
                [
                    fixed[f"{kind}_present"]
                    if f"{kind}_present" in fixed
                    else torch.full_like(clips, kind in fixed, dtype=torch.bool)
                    for kind in self.kinds
                ],
                dim=1,
            )
        )
        return [
            self._part(fixed, kind, present[:, number], over_time)
            for number, kind in enumerate(self.kinds)
        ]

    def _drop(self, present: Tensor) -> Tensor:
        """In training, takes one modality from some of the clips that have all."""
        if not (self.training and self.modality_dropout):
            return present
        lost = torch.rand(len(present), device=present.device) < self.modality_dropout
        which = torch.randint(present.shape[1], (len(present),), device=present.device)
        taken = nn.functional.one_hot(which, present.shape[1]).bool() & lost[:, None]
        return present & ~(taken & present.all(dim=1, keepdim=True))

    def _part(self, fixed: Batch, kind: str, present: Tensor, over_time: bool) -> Part:
        encoder = self.encoder(kind)
        lost, one = ~present[:, None], torch.ones_like(present, dtype=torch.int64)
        nothing = self.classifier.weight.new_zeros(1).expand(present.shape[0])
        if not over_time:
            if kind not in fixed:
                return Part(nothing[:, None].repeat(1, encoder.embedding_dim), None, one, present)
            # Filled, not multiplied: what an encoder makes of nothing may be anything.
            return Part(self.vector(fixed, kind).masked_fill(lost, 0.0), None, one, present)
        if kind not in fixed:
            return Part(None, nothing[:, None, None].repeat(1, 1, encoder.steps_dim), one, present)
        steps, lengths = encoder.steps(fixed[kind], fixed[f"{kind}_lengths"])
        lengths = torch.where(present, lengths, one)
        return Part(None, steps.masked_fill(lost[:, None], 0.0), lengths, present)

    def forward(self, batch: Batch) -> Tensor:
        """Plain clips → (B, K) logits or values, or (B, S, K) traces.

        Args:
            batch: `audio` (B, L) float32 in [-1, 1], `video` (B, V, H, W, 3) uint8,
                `features` (B, F) float32, `feature_sequence` (B, S, F) float32, those that the
                encoders read; sequences with `<name>_lengths` (B,) int64. To early fusion, a
                clip lacks a modality where its length is 0, or all do where it is absent. For
                traces, `trace_lengths` (B,) int64: how many steps are wanted of each clip.
        """
        return self.answer(self.preprocess(batch))

    def frozen_state(self) -> dict[str, Tensor]:
        """Tensors of frozen backbones: the same in every fold, and in every trial."""
        return {k: x for k, x in self.state_dict().items() if ".frontend." in k}

    def learned_state(self) -> dict[str, Tensor]:
        """Everything else."""
        return {k: x for k, x in self.state_dict().items() if ".frontend." not in k}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads `learned_state`; raises RuntimeError if it is of another network."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        wrong = [k for k in missing if ".frontend." not in k] + unexpected
        if wrong:
            raise RuntimeError(f"the weights are of another network: {wrong[0]} does not fit")


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
    from models.frontends import GatedNoise
    from models.pretrained import Found, apply_transfer

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
