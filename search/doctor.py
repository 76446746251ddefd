"""Is this machine, or cluster, fit for a search? `python -m search.doctor [--data DIR] [--address A] …`.

One line a check: ok, warning or error, with the remedy. `search.run` runs the fast ones first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from rich.console import Console

from datasets.clips import DataError
from datasets.sharding.index import ShardIndex, read_index
from datasets.storage.retrying import open_resuming
from datasets.storage.synced_folder import KeptFolder, default_cache_folder, is_url
from models.registry import ModelError
from search.config import ConfigError, SearchConfig, default_runs_dir

_PACKAGES = ("torch", "torchvision", "torchaudio", "ray", "optuna", "webdataset", "numpy")
_MIN_MEMORY_GB, _MIN_DISK_GB = 2.0, 2.0
_MAX_SKEW_S = 5.0
_UNEVEN = 3.0
"""Largest shard over smallest, in clips, above which a trial's workers wait for each other."""

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes:
        level: ok, warning or error.
        what: In a few words.
        remedy: What to do about it; empty where all is well.
    """

    level: str
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class NodeFacts:
    """Facts about a host; gathered on the host, judged by the doctor.

    Attributes:
        host: Its name.
        versions: Python's and the packages'.
        memory_gb: Free.
        disk_gb: Free where the cache lies.
        cuda: What torch was built for; None for a CPU build.
        gpus: Names, as torch sees them.
        gpu_devices: How many the driver shows, whether torch can use them or not.
        clock: Its time, in seconds since 1970.
        checksum: Of the index, as read from there; None without data, or if it cannot be read.
        index_error: Why the index could not be read, or None.
        shard: Why the first shard could not be read, or None.
        runs: Why the runs' folder could not be written, or None.
    """

    host: str
    versions: dict[str, str]
    memory_gb: float
    disk_gb: float
    cuda: str | None
    gpus: list[str]
    gpu_devices: int
    clock: float
    checksum: str | None
    index_error: str | None
    shard: str | None
    runs: str | None


def node_facts(data: str | None, runs_dir: str, cache_dir: str | None, probe: str) -> NodeFacts:
    """Gathers them on the host that this runs on.

    Args:
        data: Shards to try, or None.
        runs_dir: Where runs are kept; a file is written there.
        cache_dir: Where decoded clips are cached.
        probe: How that file's name begins.
    """
    import torch

    checksum = index_error = shard = None
    if data:
        try:
            index = read_index(data)
            checksum = index.checksum
            with open_resuming(f"{index.root}/{index.shards[0].name}") as file:
                file.read(512)
        except DataError as error:
            index_error = str(error)
        except OSError as error:
            shard = str(error)
    cache = Path(cache_dir) if cache_dir else default_cache_folder()
    return NodeFacts(
        host=socket.gethostname(),
        versions={"python": ".".join(map(str, sys.version_info[:2])), **_versions()},
        memory_gb=psutil.virtual_memory().available / 2**30,
        disk_gb=shutil.disk_usage(_existing(cache)).free / 2**30,
        cuda=torch.version.cuda,
        gpus=[torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        gpu_devices=len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()]),
        clock=time.time(),
        checksum=checksum,
        index_error=index_error,
        shard=shard,
        runs=_try_writing(runs_dir, f"{probe}-{uuid4().hex}"),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _try_writing(folder: str, name: str) -> str | None:
    """Leaves a file, if it may."""
    kept = KeptFolder.at(folder, default_cache_folder())
    try:
        kept.path.mkdir(parents=True, exist_ok=True)
        (kept.path / name).write_text(socket.gethostname())
        kept.send(name)
    except OSError as error:
        return str(error.strerror or error)
    return None


def check_node(facts: NodeFacts) -> Iterator[Finding]:
    """Check what one host has."""
    missing = [name for name, found in facts.versions.items() if found == "missing"]
    if missing:
        yield Finding("error", f"{missing[0]} is not installed", "make .venv/.ready on this host")
    else:
        names = ", ".join(f"{name} {facts.versions[name]}" for name in ("python", "torch", "ray"))
        yield Finding("ok", names)
    if facts.memory_gb < _MIN_MEMORY_GB:
        yield Finding(
            "warning",
            f"{facts.memory_gb:.1f} GiB of memory are free",
            "fewer --workers, or end what else runs",
        )
    else:
        yield Finding("ok", f"{facts.memory_gb:.1f} GiB of memory free")
    if facts.disk_gb < _MIN_DISK_GB:
        yield Finding(
            "warning",
            f"{facts.disk_gb:.1f} GiB of disk are free for the cache",
            "make room, or name another --cache-dir",
        )
    else:
        yield Finding("ok", f"{facts.disk_gb:.0f} GiB of disk free for the cache")
    yield _gpu(facts)


def _gpu(facts: NodeFacts) -> Finding:
    if facts.gpus:
        return Finding("ok", f"{len(facts.gpus)} × {facts.gpus[0]}, torch for CUDA {facts.cuda}")
    if facts.gpu_devices and facts.cuda is None:
        return Finding(
            "error", "a GPU, but torch is a CPU build", "install with -c constraints.txt"
        )
    if facts.gpu_devices:
        return Finding(
            "error",
            f"a GPU that torch (CUDA {facts.cuda}) cannot use",
            "a driver for this CUDA, see nvidia-smi",
        )
    return Finding("ok", "no GPU: trials run on CPU cores")


def check_reach(facts: NodeFacts, index: ShardIndex | None, runs_dir: str) -> Iterator[Finding]:
    """Check what one host can read and write."""
    if index:
        if facts.checksum != index.checksum:
            why = facts.index_error or "it reads other shards than here"
            yield Finding("error", f"shards: {why}", "the same path or URL on every host")
        elif facts.shard:
            yield Finding("error", f"shards cannot be read: {facts.shard}", "see docs/cluster.md")
        else:
            yield Finding("ok", f"shards in '{index.root}' can be read")
    if facts.runs:
        yield Finding(
            "error",
            f"the runs' folder '{runs_dir}' cannot be written: {facts.runs}",
            "name a folder that every host may write with --runs-dir",
        )


def check_same(nodes: list[NodeFacts]) -> Iterator[Finding]:
    """Check what must be equal on all hosts."""
    first = nodes[0]
    for node in nodes[1:]:
        for name, found in node.versions.items():
            if found != first.versions[name]:
                yield Finding(
                    "error",
                    f"{name} is {first.versions[name]} on {first.host} and {found} on {node.host}",
                    "the same constraints.txt everywhere",
                )
    if len(nodes) > 1 and len({tuple(sorted(node.versions.items())) for node in nodes}) == 1:
        yield Finding("ok", f"the same versions on {len(nodes)} hosts")


def check_shards(index: ShardIndex, workers: int) -> Iterator[Finding]:
    """Whether a trial's workers can share them evenly."""
    sizes = [shard.clips for shard in index.shards]
    what = f"{len(index.clips)} clips in {len(sizes)} shards of {min(sizes)} to {max(sizes)} clips"
    if len(sizes) < workers:
        yield Finding(
            "error", f"{what} for {workers} workers a trial", "prepare with --clips-per-shard"
        )
    elif workers > 1 and max(sizes) > _UNEVEN * min(sizes):
        yield Finding("warning", f"{what}: unbalanced", "prepare with --clips-per-shard")
    else:
        yield Finding("ok", what)


def check_cost(config: SearchConfig, address: str | None) -> Iterator[Finding]:
    """One training step of every architecture where trials run, and what that says of the search.

    Args:
        config: The search.
        address: Of the cluster that was joined, or None.
    """
    from search.cluster.placement import choose_device
    from search.data.corpus import load_corpus
    from search.execution.remote_cost import find_cost
    from search.execution.tuner import trials_at_once
    from search.space.eligibility import requested_scope

    quiet = Console(quiet=True)
    data = load_corpus(config, quiet)
    scope = requested_scope(config, data)
    device = choose_device(config, address, quiet)
    cost = find_cost(scope, data, device, config, address, quiet)
    seconds = cost.seconds
    workers = trials_at_once(
        config.workers,
        device=device,
        runner="actor",
        workers_per_trial=config.workers_per_trial,
        gpu_share=cost.gpu_share,
        wait_seconds=0.0,
        on_wait=lambda text: None,
    )
    limit = config.longest_seconds
    for name, value in sorted(seconds.items(), key=lambda item: item[1]):
        if value <= limit:
            yield Finding("ok", f"{name}: a step runs, a trial takes about {value:.0f} s")
        else:
            yield Finding(
                "warning",
                f"{name}: a trial would take about {value / 60:.0f} min, more than "
                f"{config.plan.share:.0%} of the budget, and is left out",
                f"--only {name}, --time-budget, or a GPU",
            )
    for name, why in scope.why_not.items():
        yield Finding("ok", f"{name}: not searched, {why}")
    cheap = [value for value in seconds.values() if value <= limit] or [min(seconds.values())]
    # Successive halving ends about two fifths of the trials halfway.
    estimate = config.plan.trials * (sum(cheap) / len(cheap)) * 0.8 / workers / 60
    what = f"{config.plan.trials} trials: about {estimate:.0f} min, {workers} at a time"
    if estimate > config.plan.minutes:
        yield Finding(
            "warning",
            f"{what}, the budget is {config.plan.minutes:g}",
            "fewer --trials, or a longer --time-budget",
        )
    else:
        yield Finding("ok", f"{what}, the budget is {config.plan.minutes:g}")


def quick_findings(config: SearchConfig) -> list[Finding]:
    """The checks that take no time, of this host; without what is well."""
    probe = f".doctor-{uuid4().hex[:8]}"
    kept = KeptFolder.at(config.runs_dir, default_cache_folder())
    existed = kept.path.exists()
    facts = node_facts(None, config.runs_dir, config.cache_dir, probe)
    _clean(kept, probe, existed)
    findings = [*check_node(facts), *check_reach(facts, None, config.runs_dir)]
    return [finding for finding in findings if finding.level != "ok"]


def _clean(runs: KeptFolder, probe: str, existed: bool) -> int:
    """Takes the probes away, and the folder where they made it; returns how many there were."""
    probes = _probes(runs, probe)
    for name in probes:
        with suppress(OSError):
            runs.remove(name)
    if not existed and runs.path.is_dir() and not any(runs.path.iterdir()):
        runs.path.rmdir()
    return len(probes)


def _probes(runs: KeptFolder, probe: str) -> list[str]:
    try:
        return [name for name in runs.names() if name.startswith(probe)]
    except OSError:
        return []


def examine(config: SearchConfig, *, cost: bool = True) -> Iterator[tuple[str, Finding]]:
    """Every check: (section, finding), as they come."""
    from search.cluster.connection import find_cluster, on_every_node, start_ray, stop_ray

    index = None
    if config.data:
        try:
            index = read_index(config.data)
            for finding in check_shards(index, config.workers_per_trial):
                yield "shards", finding
        except DataError as error:
            yield "shards", Finding("error", str(error))
    try:
        started = time.monotonic()
        address = find_cluster(config.address)
        dashboard = start_ray(address, None, dashboard=config.dashboard)
    except ConfigError as error:
        yield "Ray", Finding("error", str(error), "ray start, or leave --address out")
        return
    try:
        took = time.monotonic() - started
        yield "Ray", Finding("ok", f"{'joined' if address else 'started'} in {took:.1f} s")
        yield from (("Ray", finding) for finding in _check_dashboard(dashboard))
        yield from _check_nodes(config, index, on_every_node)
        if cost and not (config.data and index is None):
            for finding in check_cost(config, address):
                yield "architectures", finding
    except (DataError, ModelError, ConfigError) as error:
        yield "architectures", Finding("error", str(error))
    finally:
        stop_ray()


def _check_nodes(
    config: SearchConfig, index: ShardIndex | None, on_every_node: Any
) -> Iterator[tuple[str, Finding]]:
    probe = f".doctor-{uuid4().hex[:8]}"
    place = config.runs_dir
    place = place if is_url(place) else str(Path(place).absolute())
    runs = KeptFolder.at(place, default_cache_folder())
    existed = runs.path.exists()
    data = index.root if index else None
    data = data if not data or "://" in data else str(Path(data).absolute())
    nodes: list[NodeFacts] = []
    for number, (host, facts, seconds) in enumerate(
        on_every_node(node_facts, data, place, config.cache_dir, probe)
    ):
        section = f"host {host}" + (f" ({number + 1})" if number else "")
        if isinstance(facts, Exception):
            why = f"{type(facts).__name__}: {' '.join(str(facts).split())[:200]}"
            yield section, Finding("error", f"nothing runs there: {why}", "look at its Ray logs")
            continue
        nodes.append(facts)
        for finding in (*check_node(facts), *check_reach(facts, index, place)):
            yield section, finding
        skew = abs(facts.clock - time.time()) - seconds
        if skew > _MAX_SKEW_S:
            yield (
                section,
                Finding("error", f"its clock is {skew:.0f} s off", "set the time by NTP (chrony)"),
            )
    for finding in check_same(nodes) if nodes else ():
        yield "hosts", finding
    seen = _clean(runs, probe, existed)
    if len(nodes) > 1:
        if seen == len(nodes):
            yield "hosts", Finding("ok", f"the runs' folder '{place}' is shared")
        else:
            yield (
                "hosts",
                Finding(
                    "error", f"'{place}' is not shared by the hosts", "--runs-dir on shared storage"
                ),
            )


def _check_dashboard(url: str | None) -> Iterator[Finding]:
    import urllib.error
    import urllib.request

    token = _has_token()
    if url is None:
        yield Finding("warning", "no dashboard", "pip install 'ray[default]', or --dashboard true")
        return
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            reached = answer.status == 200
    except (OSError, urllib.error.URLError):
        reached = False
    if reached:
        yield Finding("ok", f"the dashboard answers at {url}")
    else:
        yield Finding("warning", f"no answer from the dashboard at {url}", "see docs/dashboard.md")
    if token:
        yield Finding("ok", "token authentication: there is a token (ray get-auth-token)")
    else:
        yield Finding("warning", "no authentication token", "ray get-auth-token --generate")


def _has_token() -> bool:
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or file.exists()


def show(console: Console, findings: Iterable[tuple[str, Finding]]) -> int:
    """Prints the findings as they come; returns how many are errors."""
    last, errors = "", 0
    for section, finding in findings:
        if section != last:
            console.print(section, style="bold", highlight=False)
            last = section
        line = f"  [{COLOURS[finding.level]}]{finding.level:7}[/] "
        console.print(line, end="", highlight=False)
        console.print(
            finding.what + (f" → {finding.remedy}" if finding.remedy else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        errors += finding.level == "error"
    return errors


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: no error (warnings may be); 2: an error."""
    parser = argparse.ArgumentParser(
        prog="python -m search.doctor",
        description="Checks whether this machine, or a cluster, is fit for a search.",
    )
    parser.add_argument("--data", help="prepared shards (default: the synthetic corpus)")
    parser.add_argument("--preset", default="quick", help="whose budget is judged")
    parser.add_argument("--only", help="architectures, separated by commas")
    parser.add_argument("--address", help="a Ray cluster to join, such as auto or HOST:6379")
    parser.add_argument("--runs-dir", default=default_runs_dir(), help="where runs are kept")
    parser.add_argument("--cache-dir", help="where decoded clips are cached")
    parser.add_argument("--workers-per-trial", type=int, default=1)
    parser.add_argument("--no-steps", action="store_true", help="leave the training steps out")
    given = vars(parser.parse_args(arguments))
    cost = not given.pop("no_steps")
    try:
        config = SearchConfig(**given)
        errors = show(Console(), examine(config, cost=cost))
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
