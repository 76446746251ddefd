"""Measure what architectures cost, here or on the host that trains them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from search.config import ConfigError, SearchConfig
from search.data.corpus import corpus_spec
from search.data.training_data import TrainingData
from search.space.scope import SearchScope
from search.space.step_cost import Cost, measure_cost

if TYPE_CHECKING:
    from search.trial_spec import CorpusSpec


def find_cost(
    scope: SearchScope,
    data: TrainingData,
    device: str,
    config: SearchConfig,
    address: str | None,
    console: Console,
) -> Cost:
    """Measure what trials will cost: here, or on one of the cluster's hosts."""
    longest = None if config.architectures else config.longest_seconds
    with console.status("timing one training step of each architecture"):
        if address is None:
            return measure_cost(scope, data, device, config.precision, longest)
        import ray

        remote = ray.remote(num_cpus=1, max_retries=1)(measure_there).options(
            name="timing a step", num_gpus=float(device == "cuda")
        )
        given = (corpus_spec(config, data), scope.to_json(), device, config.precision, longest)
        try:
            return Cost(*ray.get(remote.remote(*given)))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise ConfigError(f"A host of the cluster cannot train: {_line(cause)}") from error


def measure_there(
    corpus: CorpusSpec, scope: dict[str, Any], device: str, precision: str, longest: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure on this host; return seconds, and shares of a GPU."""
    from search.execution.trial_process import open_data
    from search.training.distributed import Workers

    data = open_data(corpus, Workers())
    cost = measure_cost(SearchScope.from_json(scope), data, device, precision, longest)
    return cost.seconds, cost.gpu_share


def _line(error: BaseException) -> str:
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {text[-1] if text else ''}"[:300]
