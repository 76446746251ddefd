"""The network of one fold as training calls it: an expert behind its front ends, and early fusion's heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import Expert


class Heads(nn.ModuleDict):
    """A classifier for each part of early fusion, while the parts train alone."""

    def __init__(self, expert: Expert, num_classes: int) -> None:
        over_time = expert.answers == "traces"
        kinds = {
            kind: encoder.steps_dim if over_time else encoder.embedding_dim
            for kind in expert.kinds
            for encoder in [expert.encoder(kind)]
        }
        super().__init__({kind: nn.Linear(dim, num_classes) for kind, dim in kinds.items()})
        self.to(expert.classifier.weight.device)


class FoldNetwork(nn.Module):
    """An expert behind its front ends, as the one call that averaging of gradients watches.

    Args:
        expert: The network.
        heads: Of early fusion's parts; None where they never train alone.
    """

    def __init__(self, expert: Expert, heads: Heads | None) -> None:
        super().__init__()
        self.expert, self.heads = expert, heads

    def forward(self, inputs: dict[str, Tensor], parts_alone: bool) -> list[Tensor]:
        """Front ends' outputs → (B, K) answers: the expert's, or one of each part alone."""
        if not parts_alone or self.heads is None:
            return [self.expert.answer(inputs)]
        part = self.expert.stream if self.expert.answers == "traces" else self.expert.vector
        answers = [
            head(self.expert.dropout(part(inputs, kind))) for kind, head in self.heads.items()
        ]
        if self.expert.answers == "classes":
            return answers
        return [answer * self.expert.spread + self.expert.centre for answer in answers]


def reads_steps(expert: Expert) -> bool:
    """Whether an encoder's own pooling is left out: in fusion over time, and for traces."""
    return expert.answers == "traces" or (expert.fusion is not None and expert.fusion.over_time)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Compute in bfloat16 where the precision says so; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
