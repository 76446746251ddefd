"""An expert: front end → encoder → classifier, from plain waveform, frames or features to logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.base import Batch, Encoder, Fusion, Part
from models.registry import Answers, ModelError


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
        """Return the inputs that it reads."""
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
        """Map what `preprocess` returned → (B, K) logits or values, or (B, S, K) traces."""
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
        """Return the fusion's input from each modality."""
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
