"""The training recipe of one network: its optimiser, schedule, loss and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.base import BackboneEncoder
from models.expert import Expert
from search.plan import TrainSettings

_PATIENCE, _PLATEAU_FACTOR = 3, 0.5
_EMA_DECAY = 0.998
_SWA_FROM = 0.75
_LEAST_SPREAD = 1e-6


def cross_entropy(
    logits: Tensor, wanted: Tensor, *, focal_gamma: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean over clips of -Σ w·t·(1 - p)^γ·log p, in float32.

    Args:
        logits: (B, K).
        wanted: (B, K) class probabilities t.
        focal_gamma: γ; 0 for cross-entropy.
        class_weights: (K,) w, of mean 1 over the training clips.
    """
    log_p = logits.float().log_softmax(dim=1)
    terms = wanted * log_p
    if focal_gamma:
        terms = terms * (1.0 - log_p.exp()).clamp(min=1e-6).pow(focal_gamma)
    if class_weights is not None:
        terms = terms * class_weights
    return -terms.sum(dim=1).mean()


def concordance_loss(said: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """1 - CCC, the mean over dimensions (Tzirakis et al., 2017).

    Over the clips' sequences joined into one, not clip by clip: how far apart clips are counts.

    Args:
        said: (B, S, D).
        wanted: (B, S, D).
        known: (B, S) bool, steps that count.
    """
    if not bool(known.any()):
        return said.sum() * 0.0 + 1.0
    said, wanted = said.float()[known], wanted[known]
    means = said.mean(dim=0), wanted.mean(dim=0)
    covariance = ((said - means[0]) * (wanted - means[1])).mean(dim=0)
    spread = said.var(dim=0, correction=0) + wanted.var(dim=0, correction=0)
    # Where nothing moves, as in a batch of silence, 0/0 is no gradient.
    agreement = 2 * covariance / (spread + (means[0] - means[1]) ** 2 + _LEAST_SPREAD)
    loss: Tensor = 1.0 - agreement.mean()
    return loss


def class_balanced_weights(counts: NDArray[np.int64], beta: float) -> NDArray[np.float32]:
    """(K,) weights (1 - β) / (1 - β^n), scaled to a mean of 1 over clips (Cui et al., 2019).

    A class without a training clip has the weight of one clip, which nothing is multiplied by.
    """
    weights = (1.0 - beta) / (1.0 - np.power(beta, np.maximum(counts, 1)))
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), np.float32)


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
        """Of a step; and thaws what is due."""
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
        """Of the peak rate."""
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
    """Of each backbone that starts from pretrained weights."""
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
