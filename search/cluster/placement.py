"""Decide where a search runs: this machine or a cluster, CPU or GPU."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from datasets.storage.synced_folder import is_url
from search.config import ConfigError, SearchConfig, parse_duration


def check_cores(config: SearchConfig, runner: str) -> None:
    """Refuses more Ray Train workers than this machine has cores, before Ray is started.

    Raises:
        ConfigError: Says how many are missing.
    """
    if runner != "train":
        return  # trials in processes of ours may share cores
    trials, cores = config.workers or 1, len(os.sched_getaffinity(0))
    must = trials * config.workers_per_trial
    if must > cores:
        where = f"this machine has {cores}"
        raise ConfigError(too_few(trials, config.workers_per_trial, "CPU", must, cores, where))


def too_few(trials: int, workers: int, kind: str, must: float, there: float, where: str) -> str:
    """Why trials have no room: what they would take, what there is, and what to do."""
    who = f"{trials} trials of" if trials > 1 else "A trial of"
    return (
        f"{who} {workers} workers would take {must:g} {kind}s, {where}: {must - there:g} are missing. "
        "Take fewer --workers-per-trial or --workers, or join a larger cluster (--address)."
    )


def join_cluster(config: SearchConfig, console: Console) -> str | None:
    """Joins the cluster that is meant, if one is; returns its address.

    Raises:
        ConfigError: It cannot be joined, or what this process knows lies nowhere else.
    """
    from search.cluster import connection

    address = connection.find_cluster(config.address)
    if address is None:
        return None
    if not config.address:
        console.print(f"joining the cluster at {address} (--address local: this machine alone)")
    for name in ("data", "runs_dir", "weights"):
        place = getattr(config, name)
        if connection.in_job() and place and not is_url(place) and not Path(place).is_absolute():
            raise ConfigError(
                f"{name} '{place}' would lie in the job's own copy of the code, which is removed. "
                f"Give a URL, or a folder that all hosts share"
                + (", or set EMOTION_RUNS on them." if name == "runs_dir" else ".")
            )
    connection.start_ray(address, None, dashboard=config.dashboard)
    return address


def choose_device(config: SearchConfig, address: str | None, console: Console) -> str:
    """Where trials train: cuda or cpu; raises ConfigError for a GPU that is not there.

    On a cluster its hosts decide, also those that its autoscaler has not started yet.
    """
    if address:
        return _device_of_cluster(config, console)
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU here. Take --device cpu or auto.")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _device_of_cluster(config: SearchConfig, console: Console) -> str:
    from search.cluster.connection import supply, wait_for

    if config.device == "cpu" or (config.device == "auto" and not supply("GPU").possible):
        return "cpu"
    seconds = parse_duration(config.wait)
    found = wait_for("GPU", 1, seconds, on_wait=lambda text: console.print(text, highlight=False))
    if found.there:
        return "cuda"
    raise ConfigError(
        f"No GPU, also after {seconds / 60:g} min: the cluster has {supply('CPU').there:g} CPUs and "
        f"0 GPUs, its autoscaler might start {found.possible:g}. Look at `ray status` on the head, or "
        "take --device cpu."
    )
