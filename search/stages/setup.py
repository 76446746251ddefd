"""Before the first trial: what is searched, on what, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from rich.console import Console

from ensembles.metrics import CCC
from search.cluster.placement import choose_device
from search.config import ConfigError, SearchConfig
from search.data.bank_tables import people
from search.data.training_data import TrainingData
from search.execution.remote_cost import find_cost
from search.papers import reproduce
from search.papers.published import PAPERS
from search.persistence.run_folder import RunFolder
from search.space.eligibility import offer_as_asked
from search.space.scope import Offer, missing_weights
from search.space.step_cost import drop_expensive, key_of, slow_changes
from search.stages import nested_search


def new_facts(
    config: SearchConfig, data: TrainingData, console: Console, address: str | None
) -> dict[str, Any]:
    """What the search may try here; recorded once, so that a resumed run offers the same."""
    device = choose_device(config, address, console)
    asked = reproduce.offer_of if config.reproduce else offer_as_asked
    offer = asked(config, data)
    cost = find_cost(offer, data, device, config, address, console)
    seconds = cost.seconds
    if not (config.architectures or config.reproduce):
        offer = drop_expensive(offer, seconds, config.longest_seconds)
    offer = _without_slow_changes(offer, data, device, seconds, config)
    index = data.cache.index
    return {
        "corpus": index.corpus,
        "data_checksum": index.checksum,
        "protocol": data.folds.protocol,
        "folds_fingerprint": data.folds.fingerprint,
        "held_out": list(data.folds.test_speakers),
        "test_corpus": config.test_corpus,
        "fold_names": list(data.folds.names),
        "leak": data.folds.leak,
        "seed": config.seed,
        "preset": config.preset,
        "device": device,
        "inputs": {
            "sample_rate_hz": data.shape.sample_rate_hz,
            "frames": data.shape.frames,
            "frame_size": list(data.shape.frame_size),
            "frame_rate": index.frame_rate,
            "crop": index.crop.to_json(),
            "feature_names": list(index.feature_names),
            **({"trace_steps": data.shape.trace_steps} if data.shape.trace_steps else {}),
        },
        "people": people(index),
        "offer": offer.to_json(),
        "predicted_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "gpu_share": cost.gpu_share,
        "seconds_before": 0.0,
    }


def _without_slow_changes(
    offer: Offer,
    data: TrainingData,
    device: str,
    seconds: Mapping[str, float],
    config: SearchConfig,
) -> Offer:
    if offer.given or (device == "cuda" and config.address):  # this process may have no GPU
        return offer
    slow = slow_changes(offer, data, device, seconds, config.longest_seconds)
    return replace(offer, too_slow={**offer.too_slow, **slow})


def drop_slow_architectures(
    config: SearchConfig, data: TrainingData, facts: dict[str, Any]
) -> tuple[SearchConfig, dict[str, Any]]:
    """The search, narrowed to one that can be repeated without each fold."""
    searches = 1 + nested_search.outer_count(config, data.folds)
    seconds = facts["predicted_seconds"]
    config, offer = nested_search.narrowed(
        config, Offer.from_json(facts["offer"]), seconds, searches
    )
    return config, {**facts, "offer": offer.to_json()}


def extended_facts(
    facts: dict[str, Any],
    config: SearchConfig,
    data: TrainingData,
    console: Console,
    address: str | None,
) -> dict[str, Any]:
    """The facts of a finished run, with architectures that it had not."""
    had = Offer.from_json(facts["offer"])
    before = {*had.fusions, *(name for names in had.single.values() for name in names)}
    offer = had.joined(offer_as_asked(config, data, *sorted(before)))
    cost = find_cost(offer, data, facts["device"], config, address, console)
    slow = _without_slow_changes(offer, data, facts["device"], cost.seconds, config).too_slow
    # What was searched before stays as it was: a study's parameters cannot change.
    offer = replace(offer, too_slow={**slow, **dict.fromkeys(sorted(before), ()), **had.too_slow})
    rounded = {name: round(value, 1) for name, value in cost.seconds.items()}
    known = {"predicted_seconds": rounded, "gpu_share": cost.gpu_share}
    return {**facts, "offer": offer.to_json(), **known}


def check_same_data(facts: dict[str, Any], data: TrainingData, run: RunFolder | None) -> None:
    """Refuse to continue a run on other data or folds than it was started with."""
    if (
        facts["data_checksum"] != data.cache.index.checksum
        or facts["folds_fingerprint"] != data.folds.fingerprint
    ):
        assert run is not None
        raise ConfigError(
            f"The data of the run '{run.path.name}' changed since it was started. Start a new run."
        )


def print_scope(
    config: SearchConfig, data: TrainingData, facts: dict[str, Any], console: Console
) -> None:
    """Print what is searched, on what, and how long it may take."""
    offer = Offer.from_json(facts["offer"])
    plan = config.plan
    console.print(
        f"{facts['corpus']}: {len(data.cache.index.clips)} clips, {facts['protocol']}, {data.folds.count} folds; "
        f"{offer.given_trials or plan.trials} trials, at most {plan.minutes:g} min, "
        f"{plan.confirm_seeds} fresh seeds",
        highlight=False,
    )
    seconds = facts["predicted_seconds"]
    for side, names in offer.single.items():
        for name in names:
            modes = offer.transfers[name].modes if name in offer.transfers else (None,)
            for key in dict.fromkeys(key_of(name, mode) for mode in modes):
                told = f"  {side:5}  {key}: about {seconds[key]:.0f} s a trial"
                console.print(told, highlight=False)
    if offer.fusions:
        each = sorted(seconds["+".join(pair)] for pair in offer.pairs)
        told = f"about {each[0]:.0f} s" + (f" to {each[-1]:.0f} s" if len(each) > 1 else "")
        parts = " × ".join(f"({', '.join(names)})" for names in offer.parts.values())
        console.print(
            f"  early  {', '.join(offer.fusions)} of {parts}: {told} a trial", highlight=False
        )
    for name, keys in offer.too_slow.items():
        if keys:
            what = ", ".join(keys).replace("_", " ")
            console.print(
                f"  {name} is trained without {what}: a trial would take too long", highlight=False
            )
    if lacking := missing_weights(offer, data.weights):
        console.print(f"  {lacking}", highlight=False)
    for why in dict.fromkeys(offer.why_not.values()):
        left_out = ", ".join(name for name, reason in offer.why_not.items() if reason == why)
        console.print(f"  left out ({why}): {left_out}", highlight=False)


def for_numbers(config: SearchConfig, given: set[str]) -> SearchConfig:
    """A search for traces or values: scored by concordance.

    Raises:
        ConfigError: A setting that is of classes alone.
    """
    if "metric" in given and config.metric != CCC:
        raise ConfigError(f"metric {config.metric} is of classes; traces and numbers have ccc.")
    of_classes = (
        "classes",
        "soft_labels",
        "objective",
        "outer",
        "enrolment",
        "test_speakers",
        "test_corpus",
        "reproduce",
    )
    usual = {f.name: f.default for f in fields(SearchConfig)}
    if config.reproduce and PAPERS[config.reproduce].metric == CCC:
        usual["reproduce"] = config.reproduce
    if changed := [name for name in of_classes if getattr(config, name) != usual[name]]:
        raise ConfigError(f"{changed[0]} is not to be had for traces and numbers: leave it out.")
    if config.workers_per_trial > 1:
        raise ConfigError(
            "workers_per_trial must be 1 for traces and numbers: a recording's windows lie in "
            "several shards, and what is wanted of one reaches into the next."
        )
    return replace(config, metric=CCC)
