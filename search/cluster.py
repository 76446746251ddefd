"""What concerns the hosts of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Answer = TypeVar("Answer")


def on_every_node(
    function: Callable[..., Answer], *arguments: Any
) -> Iterator[tuple[Answer, float]]:
    """Calls a function on every live host; yields what it returned and how long ago it began."""
    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    started = time.time()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    references = [
        remote.options(
            name=f"{function.__name__} on {node['NodeManagerHostname']}",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(*arguments)
        for node in nodes
    ]
    for reference in references:
        answer = ray.get(reference)
        yield answer, time.time() - started
