"""Score the node types that a cluster may launch: those that could be launched lately come first.

Ray's autoscaler (version 1) scores the node types that fit what waits. Its own score asks for the
same type again and again, also where the cloud has none left. This one is named to it by
`RAY_AUTOSCALER_UTILIZATION_SCORER` in `cluster.yaml`.
"""

from __future__ import annotations

from typing import Any

# Private: Ray's own score, which this one refines. An autoscaler that turns to another type by itself
# would replace both. This runs inside Ray's autoscaler, which reports an ImportError in its log.
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer


def score_node_type(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """Ray's own score, after whether the type could be launched when it was last tried.

    A failure counts for AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S (half an hour). Of equal
    scores Ray takes the type whose name is the last in the alphabet.

    Args:
        node_resources: What a node of this type has.
        resources: What waits for a node.
        node_type: The type's name in `cluster.yaml`.
        node_availability_summary: The last launch of each type that was tried of late.

    Returns:
        The score, of which the greatest is taken; None if nothing that waits fits.
    """
    score = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if score is None:
        return None
    spares_gpus, *rest = score  # still first: a GPU node is never launched for what needs none
    record = node_availability_summary.node_availabilities.get(node_type)
    return (spares_gpus, record is None or record.is_available, *rest)
