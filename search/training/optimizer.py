"""Optimiser of one network, with its schedule and gradual unfreezing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from models.base import BackboneEncoder
from models.expert import Expert
from search.trial_config import TrainSettings

_PATIENCE, _PLATEAU_FACTOR = 3, 0.5


class Optimizer:
    """The optimiser of an expert, with the learning rate of every step.

    Args:
        expert: What is trained.
        settings: How.
        steps: Of the whole schedule.
        further: What trains with it and is thrown away afterwards.

    Attributes:
        stages: Of each fine-tuned backbone its modules from input to output; empty without any.
    """

    def __init__(
        self,
        expert: Expert,
        settings: TrainSettings,
        steps: int,
        *,
        further: nn.Module | None = None,
    ) -> None:
        self.settings, self.steps = settings, steps
        self.stages = _stages(expert)
        self._all_thawed = not self.stages
        parameters = [*expert.parameters(), *(further.parameters() if further else ())]
        groups = _parameter_groups(parameters, self.stages, settings)
        self.optimizer = _OPTIMIZERS[settings.optimizer](groups, settings.learning_rate)
        self._trained = [p for group in groups for p in group["params"]]
        self.best, self.waited, self.factor = math.inf, 0, 1.0

    def set_rate(self, step: int) -> None:
        """Set the learning rate of a step; and thaw what is due."""
        rate = self.settings.learning_rate * self.factor * self._share(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]
        if not self._all_thawed:
            self._thaw(step)

    def zero_grad(self) -> None:
        """Before a batch."""
        self.optimizer.zero_grad(set_to_none=True)

    def update(self) -> None:
        """Clips the gradient and makes the step."""
        nn.utils.clip_grad_norm_(self._trained, self.settings.gradient_clip)
        self.optimizer.step()

    def end_epoch(self, loss: float) -> None:
        """Tells a plateau schedule the training loss."""
        if self.settings.schedule != "plateau":
            return
        if loss < self.best * (1.0 - 1e-3):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= _PATIENCE:
            self.factor, self.waited = self.factor * _PLATEAU_FACTOR, 0

    def _share(self, step: int) -> float:
        """Return the share of the peak rate."""
        if self.settings.schedule == "constant":
            return 1.0
        if self.settings.schedule == "one_cycle":
            return one_cycle_share(step, self.steps)
        warmup = max(1, int(self.steps * self.settings.warmup_share))
        if self.settings.schedule == "plateau":
            return min(1.0, (step + 1) / warmup)
        return cosine_share(step, self.steps, warmup)

    def _thaw(self, step: int) -> None:
        """Stages train from the last to the first, evenly over `unfreeze_share` of the schedule.

        Until then they are as in evaluation: their batch normalisation learns nothing either.
        """
        until = self.settings.unfreeze_share * self.steps
        for stages in self.stages:
            count = len(stages)
            due = count if step >= until else int(count * step / until)
            for number, stage in enumerate(stages):
                thawed = number >= count - due
                stage.requires_grad_(thawed)
                if not thawed:
                    stage.eval()
        self._all_thawed = step >= until

    def state_dict(self) -> dict[str, Any]:
        """Everything that continues it."""
        plateau = (self.best, self.waited, self.factor)
        return {"optimizer": self.optimizer.state_dict(), "plateau": plateau}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.waited, self.factor = state["plateau"]


def cosine_share(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def one_cycle_share(step: int, total: int) -> float:
    """From a twenty-fifth to the peak at 30 %, then to nearly nothing, both along a cosine."""
    peak = max(1, round(0.3 * total))
    if step < peak:
        return 1.0 - (1.0 - 1 / 25) * 0.5 * (1.0 + math.cos(math.pi * step / peak))
    return 0.5 * (1.0 + math.cos(math.pi * (step - peak) / max(1, total - peak))) + 1e-4


def _adamw(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def _adam_amsgrad(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate, amsgrad=True, fused=True)


def _sgd_nesterov(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=True)


_OPTIMIZERS = {"adamw": _adamw, "adam_amsgrad": _adam_amsgrad, "sgd_nesterov": _sgd_nesterov}


def _stages(expert: Expert) -> list[list[nn.Module]]:
    """Return the stages of each backbone that starts from pretrained weights."""
    encoders = [expert.encoder(kind) for kind in expert.kinds]
    return [e.backbone.stages() for e in encoders if isinstance(e, BackboneEncoder) and e.finetuned]


def _parameter_groups(
    parameters: Iterable[nn.Parameter], stages: list[list[nn.Module]], settings: TrainSettings
) -> list[dict[str, Any]]:
    """Matrices, and what is not decayed; a backbone's stages learn slower the deeper they are."""
    depth = {
        id(parameter): len(own) - number
        for own in stages
        for number, stage in enumerate(own)
        for parameter in stage.parameters()
    }
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            below = depth.get(id(parameter), 0)
            members.setdefault((below, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": alike,
            "weight_decay": settings.weight_decay if matrices else 0.0,
            "rate_share": settings.layer_decay**below,
        }
        for (below, matrices), alike in sorted(members.items(), key=lambda item: item[0])
    ]
