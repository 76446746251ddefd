"""`cluster.yaml` for other places than AWS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[2] / "cluster.yaml"
GUIDE = FILE.parent / "docs" / "cluster.md"


def own_hosts(document: dict[str, Any], head: str, workers: Sequence[str]) -> dict[str, Any]:
    """For hosts that are there: as the guide says, its block in place of all above `file_mounts`.

    Args:
        document: `cluster.yaml`.
        head: Address of the host that schedules.
        workers: Those of the others.
    """
    (block,) = re.findall(r"```yaml\n(cluster_name:.*?type: local.*?)```", GUIDE.read_text(), re.S)
    keys = list(document)
    kept = {key: document[key] for key in keys[keys.index("file_mounts") :]}
    found = {**yaml.safe_load(block), **kept}
    found["provider"] |= {"head_ip": head, "worker_ips": list(workers)}
    return found


def policy() -> str:
    """What the guide lets the nodes do."""
    (block,) = re.findall(r"```json\n(.*?)```", GUIDE.read_text(), re.S)
    return str(block)


def images(document: dict[str, Any]) -> dict[str, str]:
    """An image for every public parameter that the file names."""
    configs = [node_type["node_config"] for node_type in document["available_node_types"].values()]
    names = sorted({config["ImageId"].removeprefix("resolve:ssm:") for config in configs})
    return {name: f"ami-{number:017x}" for number, name in enumerate(names, start=1)}
