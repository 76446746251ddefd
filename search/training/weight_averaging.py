"""Averages of weights along training: EMA and SWA."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from models.expert import Expert

_EMA_DECAY = 0.998
_SWA_FROM = 0.75


class AveragedWeights:
    """An average of the weights that training passes, to predict with.

    Batch normalisation's statistics are averaged as the weights are.

    Attributes:
        expert: The averaged network; None until there is an average.
    """

    def __init__(self, how: str, epochs: int) -> None:
        self.how, self.epochs = how, epochs
        self.expert: Expert | None = None
        self.count = 0

    def after_step(self, expert: Expert) -> None:
        """Exponential average, quicker at first."""
        if self.how == "ema":
            self.count += 1
            self._move(expert, 1.0 - min(_EMA_DECAY, (1 + self.count) / (10 + self.count)))

    def after_epoch(self, expert: Expert, epoch: int) -> None:
        """Mean over the last quarter's epochs."""
        if self.how == "swa" and epoch > _SWA_FROM * self.epochs:
            self.count += 1
            self._move(expert, 1.0 / self.count)

    def _move(self, expert: Expert, share: float) -> None:
        if self.expert is None:
            self.expert = _copy(expert)
            return
        averaged = dict(self.expert.learned_state())
        with torch.no_grad():
            for name, x in expert.learned_state().items():
                if x.is_floating_point():
                    averaged[name].lerp_(x.to(averaged[name].dtype), share)
                else:
                    averaged[name].copy_(x)

    def state_dict(self) -> dict[str, Any]:
        """Everything that continues it."""
        state = self.expert.learned_state() if self.expert else None
        return {"count": self.count, "expert": state}

    def load_state_dict(self, state: Mapping[str, Any], expert: Expert) -> None:
        """Continues from `state_dict`; `expert` has the same structure."""
        self.count = int(state["count"])
        if state["expert"] is not None:
            self.expert = self.expert or _copy(expert)
            self.expert.load_learned_state(state["expert"])


def _copy(expert: Expert) -> Expert:
    """With weights of its own, and the same front ends."""
    kept = {id(expert.encoder(k).frontend): expert.encoder(k).frontend for k in expert.kinds}
    return copy.deepcopy(expert, kept).requires_grad_(False)
