"""Join or start Ray: its address, its hosts, and what the cluster has or may still get."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import ray
import yaml
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.config import ConfigError
from search.versions import private_names

# Ray's private names here: `ENABLE_RAY_CLUSTER` keeps a Ray of this machine alone from listening beyond
# it (an argument of `ray.init` would replace it), `read_ray_address` finds the cluster that this host
# belongs to (`ray.init("auto")` would wait for it), `get_dashboard_url` names the page's address.
with private_names("ray"):
    from ray._private import ray_constants
    from ray._private.utils import read_ray_address
    from ray._private.worker import get_dashboard_url

Answer = TypeVar("Answer")

_REACH_S = 10.0
"""How long a cluster may take to accept a connection."""

_WATCH_S, _GONE_S = 3.0, 30.0
"""How often it is looked whether Ray is there, and when it is given up; Ray itself waits for 60 s."""

_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the head the cluster's file."""

EXCLUDES = [
    ".git",
    ".venv",
    "runs",
    "shards",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "*.tar",
]
"""Never sent to a cluster with the code."""

ROOT = Path(__file__).parents[2]


def find_cluster(asked: str | None) -> str | None:
    """The cluster to join: as asked, RAY_ADDRESS, or the one that this host belongs to.

    Args:
        asked: An address; `local` for Ray on this machine alone.

    Returns:
        An address, or None for Ray on this machine alone.

    Raises:
        ConfigError: `auto` was asked for, but this host belongs to none.
    """
    address = asked or os.environ.get("RAY_ADDRESS") or "here"
    if address == "local":
        return None
    if address not in ("auto", "here"):
        return address
    own = read_ray_address()
    if own and _reachable(own) is None:
        return str(own)
    if address == "here":
        return None
    raise ConfigError(
        "Cannot join the Ray cluster at 'auto': none runs on this host. Is it up (ray status)? "
        "Give HOST:6379, or --address local for Ray on this machine alone."
    )


def start_ray(address: str | None, workers: int | None, *, dashboard: bool) -> str | None:
    """Joins a cluster, or starts Ray on this machine; once.

    Args:
        address: As `find_cluster` gives it.
        workers: Trials that this machine is to run at the same time, if more than it has cores.
        dashboard: Whether this machine's own Ray has one.

    Returns:
        The dashboard's URL, or None.

    Raises:
        ConfigError: If the cluster cannot be joined.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        url = get_dashboard_url()
        return f"http://{url}" if url else None
    _listen_here_alone(not address)
    if address:
        if why := _reachable(address):
            raise ConfigError(
                f"Cannot join the Ray cluster at '{address}': {why}. "
                "Is it up (ray status, on its head), and can this host reach it?"
            )
        try:
            context = ray.init(address, runtime_env=_code(), **common)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(
                f"Cannot join the Ray cluster at '{address}': {' '.join(str(error).split())} "
                "It must run, with the same Ray version; with token authentication "
                "RAY_AUTH_MODE=token must be set here and on its hosts."
            ) from error
    else:
        cores = len(os.sched_getaffinity(0))
        context = ray.init(
            address="local",
            num_cpus=max(cores, workers or 0),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            # Trials exchange a few numbers; their data lies in the cache.
            object_store_memory=100 * 2**20,
            **common,
        )
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _listen_here_alone(alone: bool) -> None:
    """Whether the ports of a Ray that is started here are this machine's own; Ray opens them to all.

    The name is Ray's for systems where it knows no clusters, and all its processes go by it.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0" if alone else "1"
    ray_constants.ENABLE_RAY_CLUSTER = not alone  # read when Ray was imported


def in_job() -> bool:
    """Whether this process was submitted to a cluster, and runs in a copy of the code there."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _code() -> dict[str, Any]:
    """Return the environment of a cluster's processes; a submitted job's code is there already."""
    hook = {"worker_process_setup_hook": "search.cluster.worker_setup.use_cluster_interface"}
    return hook if in_job() else {**hook, "working_dir": str(ROOT), "excludes": EXCLUDES}


def _reachable(address: str) -> str | None:
    """Why nothing answers, or None; Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return None
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), _REACH_S).close()
    except OSError as error:
        return str(error.strerror or error)
    return None


@contextmanager
def watched(on_lost: Callable[[str], None]) -> Iterator[None]:
    """Tells when Ray has been gone for half a minute; its own driver ends itself without a word.

    Args:
        on_lost: Called once, on a thread of its own, with what happened.
    """
    over = Event()
    thread = Thread(target=_watch, args=(over, on_lost), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=_REACH_S)


def _watch(over: Event, on_lost: Callable[[str], None]) -> None:
    context = ray.get_runtime_context()
    address, node = str(context.gcs_address), context.get_node_id()
    well = time.monotonic()
    while not over.wait(_WATCH_S):
        why = _why_gone(address, node)
        if why is None:
            well = time.monotonic()
        elif time.monotonic() - well >= _GONE_S:
            on_lost(why)
            return


def _why_gone(address: str, node: str) -> str | None:
    if why := _reachable(address):
        return f"its head at {address} does not answer: {why}"
    try:
        alive = any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
    except Exception as error:  # it went away just now
        return f"its head at {address} does not answer: {error}"
    return None if alive else "its process on this host (raylet) has died"


def stop_ray() -> None:
    """Ends what `start_ray` started, or leaves the cluster."""
    ray.shutdown()


@dataclass(frozen=True)
class Supply:
    """How much of a resource a cluster has.

    Attributes:
        kind: CPU or GPU.
        there: Now.
        possible: With all hosts that its autoscaler may start.
    """

    kind: str
    there: float
    possible: float


def supply(kind: str) -> Supply:
    """Return the supply of the Ray that was started or joined."""
    there = float(ray.cluster_resources().get(kind, 0))
    return Supply(kind, there, max(there, _autoscaled(kind)))


def _autoscaled(kind: str) -> float:
    """Return the sum over all hosts that the cluster's file allows; 0 where this is not its head."""
    path = _BOOTSTRAP.expanduser()
    own = read_ray_address()
    if own is None or own != ray.get_runtime_context().gcs_address or not path.is_file():
        return 0.0
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        hosts = int(document.get("max_workers", 0))
        per_host = [
            (float(entry.get("resources", {}).get(kind, 0)), int(entry.get("max_workers", 0)))
            for name, entry in document.get("available_node_types", {}).items()
            if name != document.get("head_node_type")
        ]
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return 0.0
    total = 0.0
    for amount, count in sorted(per_host, reverse=True):
        taken = min(count, hosts)
        total, hosts = total + amount * taken, hosts - taken
    return total


def wait_for(kind: str, amount: float, seconds: float, *, on_wait: Callable[[str], None]) -> Supply:
    """Waits until a cluster has so much of a resource, asking its autoscaler for it.

    Args:
        kind: CPU or GPU.
        amount: Needed.
        seconds: At most; afterwards the caller tells what is missing.
        on_wait: Told once what is waited for.
    """
    found = supply(kind)
    if found.there >= amount or seconds <= 0:
        return found
    on_wait(
        f"waiting for hosts: {amount:g} {kind}s are needed, {found.there:g} are there "
        f"(at most {seconds / 60:g} min, --wait)"
    )
    deadline = time.monotonic() + seconds
    request_resources(bundles=[{kind: 1}] * math.ceil(amount))
    try:
        while found.there < amount and time.monotonic() < deadline:
            time.sleep(1.0)
            found = supply(kind)
    finally:
        request_resources(bundles=[])  # or the hosts would stay when nothing needs them
    return found


def on_every_node(
    function: Callable[..., Answer], *arguments: Any
) -> Iterator[tuple[str, Answer | Exception, float]]:
    """Calls a function on every live host.

    Yields:
        The host, what the function returned there or why it did not, and how long ago it began.
    """
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
    for node, reference in zip(nodes, references, strict=True):
        answer: Answer | Exception
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayError as error:
            answer = error
        yield str(node["NodeManagerHostname"]), answer, time.time() - started
