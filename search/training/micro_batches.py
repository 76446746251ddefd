"""Gradients of a batch in as many parts as the device's memory takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from search.training.device import free_memory, is_out_of_memory

Batch = tuple[dict[str, Tensor], Tensor]
"""Inputs by name, and targets, of the same clips."""


class MicroBatches:
    """Halves batches for which memory does not suffice, and adds up the parts' gradients.

    Args:
        device: Whose memory.
        may_split: Whether that memory is this training's own; else running out of it is an error,
            and the trial can be given more of the device.

    Attributes:
        parts: In how many a batch is computed.
    """

    def __init__(self, device: torch.device, *, may_split: bool) -> None:
        self.device, self.may_split = device, may_split
        self.parts = 1

    def backward(
        self,
        clips: int,
        batch: Callable[[], Batch],
        loss: Callable[[dict[str, Tensor], Tensor], Tensor],
    ) -> Tensor:
        """Add up a batch's gradients; return its mean loss, () float64.

        Args:
            clips: In the batch.
            batch: Makes it, again after every failure; gradients are zero when it returns.
            loss: Mean loss of some of its clips.
        """
        while True:
            try:
                return self._backward(clips, *batch(), loss)
            except Exception as error:
                if not is_out_of_memory(error) or not self._can_halve(clips):
                    raise
            self.parts *= 2
            free_memory(self.device)

    def _backward(
        self,
        clips: int,
        inputs: dict[str, Tensor],
        targets: Tensor,
        loss: Callable[[dict[str, Tensor], Tensor], Tensor],
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for part in torch.arange(clips).chunk(self.parts):
            here = slice(int(part[0]), int(part[-1]) + 1)
            mean = loss({name: x[here] for name, x in inputs.items()}, targets[here])
            mean = mean * (len(part) / clips)
            mean.backward()
            total += mean.detach().double().cpu()
        return total

    def _can_halve(self, clips: int) -> bool:
        """Normalisation needs two clips."""
        return self.may_split and clips // (2 * self.parts) >= 2
