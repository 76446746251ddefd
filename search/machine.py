"""Where a search runs: this machine or a cluster, CPU or GPU, and what trials cost there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from datasets.sharding.index import ShardIndex, own_name
from datasets.storage.synced_folder import is_url
from models.pretrained import sha256, tensor_file
from search.config import ConfigError, SearchConfig, parse_duration
from search.cost import Cost, measure_cost
from search.inputs import TrainingData
from search.offer import Offer, offer_for


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
    from search import cluster

    address = cluster.find_cluster(config.address)
    if address is None:
        return None
    if not config.address:
        console.print(f"joining the cluster at {address} (--address local: this machine alone)")
    for name in ("data", "runs_dir", "weights"):
        place = getattr(config, name)
        if cluster.in_job() and place and not is_url(place) and not Path(place).is_absolute():
            raise ConfigError(
                f"{name} '{place}' would lie in the job's own copy of the code, which is removed. "
                f"Give a URL, or a folder that all hosts share"
                + (", or set EMOTION_RUNS on them." if name == "runs_dir" else ".")
            )
    cluster.start_ray(address, None, dashboard=config.dashboard)
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
    from search.cluster import supply, wait_for

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


def offer_as_asked(config: SearchConfig, data: TrainingData, *further: str) -> Offer:
    """What the corpus, the configuration and the weights at hand allow.

    Args:
        config: The search.
        data: Its corpus.
        further: Architectures besides those of `--only`.
    """
    offer = offer_for(
        data.shape,
        (*config.architectures, *further),
        config.plan.epochs_scale,
        epochs=config.epochs,
        all_recipes=config.plan.all_recipes,
        weights=data.weights,
        longest_delay=_longest_delay(data),
    )
    refuse_known_speakers(offer, data.index)
    return offer


def _longest_delay(data: TrainingData) -> float:
    """Of labels, in seconds: a quarter of the shortest recording."""
    traces = data.traces
    if traces is None or not traces.over_time:
        return 0.0
    return float(np.diff(traces.offsets).min()) * traces.step_seconds / 4


def refuse_known_speakers(offer: Offer, index: ShardIndex) -> None:
    """A backbone that has been trained on who is scored would make every number a lie; raises ConfigError."""
    speakers = {own_name(index.corpus, entry.speaker): entry.speaker for entry in index.clips}
    checksums = {index.checksum, *(source.checksum for source in index.sources)}
    for name, transfer in offer.transfers.items():
        for found in transfer.checkpoints:
            for known in found.trained_on:
                others = {own_name(known["corpus"], speaker) for speaker in known["speakers"]}
                met = sorted(speakers[who] for who in others & set(speakers))
                if met or known["checksum"] in checksums:
                    raise ConfigError(
                        f"The weights '{found.file}' ({name}) were trained on speakers of this "
                        f"corpus: {', '.join(met[:5]) or 'all'}. Take them away, or search other speakers."
                    )


def check_weights(offer: Offer, weights: Path | None) -> None:
    """The files that a run began with are still there; raises ConfigError that names the first other."""
    for transfer in offer.transfers.values():
        for found in transfer.checkpoints:
            path = weights / found.file if weights else None
            if path is None or not path.exists():
                raise ConfigError(
                    f"This run uses the weights '{found.file}', which are not in '{weights or ''}'. "
                    "Say where they are with --weights."
                )
            if sha256(tensor_file(path)) != found.sha256:
                raise ConfigError(f"'{path}' is not the file that this run began with (--weights).")


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

        from search.trial import measure_there

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


def _absolute(place: str | None) -> str | None:
    return place if place is None or is_url(place) else str(Path(place).resolve())


def data_context(config: SearchConfig, data: TrainingData, device: str) -> dict[str, Any]:
    """What it takes to open the corpus, wherever it is."""
    index = data.cache.index
    return {
        "data": index.root if "://" in index.root else str(Path(index.root).resolve()),
        "checksum": index.checksum,
        "classes": list(config.class_names),
        "target": data.target,
        "protocol": data.folds.protocol,
        "test_speakers": list(data.folds.test_speakers),
        "folds": data.folds.fingerprint,
        "device": device,
        "cache_folder": str(Path(config.cache_dir).resolve()) if config.cache_dir else None,
        "cache_gb": config.cache_gb,
        "skip_corrupt": config.skip_corrupt,
        "soft_labels": config.soft_labels,
        "weights": _absolute(config.weights),
    }
