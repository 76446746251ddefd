"""Measure what architectures cost, here or on the host that trains them."""

from __future__ import annotations

from typing import Any

import ray
from rich.console import Console

from search.config import ConfigError, SearchConfig
from search.data.training_data import TrainingData
from search.execution.trial_process import open_data
from search.execution.trial_spec import data_context
from search.space.scope import Offer
from search.space.step_cost import Cost, measure_cost


def find_cost(
    offer: Offer,
    data: TrainingData,
    device: str,
    config: SearchConfig,
    address: str | None,
    console: Console,
) -> Cost:
    """What trials will cost: measured here, or on one of the cluster's hosts."""
    longest = None if config.architectures else config.longest_seconds
    with console.status("timing one training step of each architecture"):
        if address is None:
            return measure_cost(offer, data, device, config.precision, longest)
        import ray

        pass

        remote = measure_there.options(name="timing a step", num_gpus=float(device == "cuda"))
        context = data_context(config, data, device)
        try:
            return Cost(
                *ray.get(remote.remote(context, offer.to_json(), config.precision, longest))
            )
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise ConfigError(f"A host of the cluster cannot train: {_line(cause)}") from error


def _line(error: BaseException) -> str:
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {text[-1] if text else ''}"[:300]


@ray.remote(num_cpus=1, max_retries=1)
def measure_there(
    context: dict[str, Any], offer: dict[str, Any], precision: str, longest: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """What trials will cost on a cluster's hosts: seconds, and shares of a GPU."""
    from search.space.scope import Offer
    from search.space.step_cost import measure_cost
    from search.training.distributed import Workers

    data = open_data(context, Workers())
    cost = measure_cost(Offer.from_json(offer), data, context["device"], precision, longest)
    return cost.seconds, cost.gpu_share
