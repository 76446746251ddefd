"""Processes that train one trial together; one process is a group of one. No Ray here."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


class Workers:
    """This process and its fellows, over torch.distributed where it was set up.

    Attributes:
        rank: Of this process.
        count: How many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @staticmethod
    def here() -> Workers:
        """The group that torch.distributed was set up for, or this process alone."""
        if distributed.is_available() and distributed.is_initialized():
            return Workers(distributed.get_rank(), distributed.get_world_size())
        return Workers()

    def wrap(self, module: nn.Module, *, some_unused: bool = False) -> nn.Module:
        """A module whose gradients are averaged over the workers.

        On GPUs so are the statistics of its batch normalisation; torch has that for them alone.

        Args:
            module: What trains.
            some_unused: Not every parameter takes part in every step.
        """
        if self.count == 1:
            return module
        if distributed.get_backend() == "nccl":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return DistributedDataParallel(module, find_unused_parameters=some_unused)

    def sum(self, values: Tensor) -> Tensor:
        """Adds up (…) values of every worker."""
        if self.count > 1:
            device = _device()
            moved = values.to(device)
            distributed.all_reduce(moved)
            return moved.to(values.device)
        return values

    def agree(self, number: int) -> bool:
        """Whether every worker has the same number."""
        numbers = self.concatenate(torch.tensor([number]))
        return bool((numbers == number).all())

    def concatenate(self, rows: Tensor) -> Tensor:
        """(n, …) rows of each worker → all of them, by rank; n may differ."""
        if self.count == 1:
            return rows
        sizes = self.sum(nn.functional.one_hot(torch.tensor(self.rank), self.count) * len(rows))
        padded = rows.new_zeros(int(sizes.max()), *rows.shape[1:]).to(_device())
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(gathered, padded)
        parts = [part[:size] for part, size in zip(gathered, sizes.tolist(), strict=True)]
        return torch.cat(parts).to(rows.device)

    def share_buffers(self, module: nn.Module) -> None:
        """Every worker takes the first one's buffers (statistics of batch normalisation)."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)


def _device() -> torch.device:
    """Where the group's backend wants its tensors."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
