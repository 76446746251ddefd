"""Predict what a trial costs here, from one training step of each network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from models import build_expert, get_architecture
from models.build import arrange_memory
from models.pretrained import FrozenBackbone
from search.data.training_data import TrainingData
from search.space.domains import Choice
from search.space.scope import SIDES, SearchScope, Transfer
from search.space.search_space import WAVEFORM_RECIPE
from search.space.suggest import space_of
from search.training.augmentation import augment
from search.training.device import choose_precision
from search.trial_config import TrainSettings, TrialConfig

_PROBE_CLIPS = 16
_CHEAP = 4e5  # multiply-accumulates; below, a step's fixed cost decides
_HEAVY = 5e8  # from here on two clips tell enough
_FASTEST = {"cpu": 2e12, "cuda": 1e15}
"""Floating-point operations a second that no core, and no GPU, reaches in training."""
_FIXED_SECONDS_A_STEP = 0.0012
_EVALUATION_SHARE = 1.15

_BYTES_A_PARAMETER = 16
"""Weight, gradient and AdamW's two averages, in float32."""

_PROCESS_BYTES = 0.7 * 2**30
"""Bytes of a GPU that CUDA itself takes for every process; differs by driver, so rather more."""

_USABLE, _LARGER, _MOST_ON_A_GPU = 0.9, 1.5, 8


@dataclass(frozen=True)
class Cost:
    """Costs of default trials, each on one worker.

    Keys are what is trained: an architecture, `ARCHITECTURE MODE` where it has a backbone, or
    `AUDIO+VIDEO` parts of early fusion.

    Attributes:
        seconds: Of a whole trial.
        gpu_share: How much of the GPU's memory it may take; empty without one.
    """

    seconds: dict[str, float]
    gpu_share: dict[str, float]


def slow_changes(
    scope: SearchScope,
    data: TrainingData,
    device: str,
    seconds: Mapping[str, float],
    longest: float,
) -> dict[str, tuple[str, ...]]:
    """Architecture → what of `WAVEFORM_RECIPE` would make its known-good trial too long.

    Waveforms that are changed pass the front end in every step, where others come from the cache.

    Args:
        scope: What is searched.
        data: The corpus.
        device: cpu or cuda.
        seconds: Of trials, as `measure_cost` found them.
        longest: What a trial may take.
    """
    clips = sum(len(data.rows(fold, training=True)) for fold in range(data.folds.count))
    rows = np.linspace(0, len(data.cache.index.clips) - 1, _PROBE_CLIPS).astype(np.int64)
    found: dict[str, tuple[str, ...]] = {}
    for name in scope.single.get("audio", ()):
        settings = scope.start_of(name)
        asked = {k: c for k, c in space_of(name, scope).items() if k in WAVEFORM_RECIPE}
        if not asked or settings.get("transfer") == "frozen":
            continue
        plan = TrialConfig.of(name, settings, {})
        expert = build_expert(name, plan.settings, data.shape, weights=data.weights).to(device)
        heard = clips * _epochs(plan, scope)
        known = seconds[key_of(name, settings.get("transfer"))]
        slow = []
        for key, choice in asked.items():
            assert isinstance(choice, Choice)
            changed = TrainSettings(**{key: max(choice.values)})
            elapsed = float("inf")
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                data.front_ends.inputs(expert, rows, changed=changed)
                _wait(device)
                elapsed = min(elapsed, time.perf_counter() - started)
            if known + heard * elapsed / len(rows) > longest:
                slow.append(key)
        if slow:
            found[name] = tuple(slow)
    return found


def key_of(architecture: str, mode: str | None) -> str:
    """Return the key of a trial's cost; `mode` is how its backbone starts, None without one."""
    return f"{architecture} {mode}" if mode else architecture


def measure_cost(
    scope: SearchScope,
    data: TrainingData,
    device: str,
    precision: str,
    longest: float | None = None,
) -> Cost:
    """Trains a step of everything that is offered, here.

    Args:
        scope: What.
        data: The corpus.
        device: cpu or cuda.
        precision: As a trial's.
        longest: Seconds of a trial above which it is not offered: what would take more than that
            at the fastest that any machine computes is not timed.
    """
    clips = sum(len(data.rows(fold, training=True)) for fold in range(data.folds.count))
    seconds: dict[str, float] = {}
    needed: dict[str, float] = {}
    steps: dict[str, _Step] = {}
    plans: dict[str, TrialConfig] = {}
    untimed: set[str] = set()

    def measure(key: str) -> None:
        plan = plans[key]
        steps[key] = _measure_step(plan, data, device, precision)
        seconds[key] = _schedule(plan, [steps[key]], data, _epochs(plan, scope))
        needed[key] = _gpu_bytes(plan, [steps[key]], data.folds.count)

    for name in sorted(scope.networks):
        modes = scope.transfers[name].modes if name in scope.transfers else (None,)
        for mode in modes:
            key = key_of(name, mode)
            plan = plans[key] = TrialConfig.of(name, _start(name, mode, scope), {})
            a_clip = 6 * _macs(plan, data) / _FASTEST[device]
            least = a_clip * clips * _epochs(plan, scope)
            if longest is not None and mode != "frozen" and least > longest:
                seconds[key], needed[key] = least, 0.0
                steps[key] = _Step(a_clip, 0.0, 0)
                untimed.add(key)
                continue
            measure(key)
    for pair in scope.pairs:
        keys = [key_of(n, scope.start_of(n).get("transfer")) for n in pair]
        settings = {s: {"architecture": n} for s, n in zip(SIDES, pair, strict=True)}
        plan = TrialConfig.of(scope.fusions[0], {str(k): v for k, v in settings.items()}, {})
        name, epochs = "+".join(pair), _epochs(plan, scope)
        seconds[name] = _schedule(plan, [steps[key] for key in keys], data, epochs)
        if longest is not None and seconds[name] <= longest and not untimed.isdisjoint(keys):
            # Its schedule is shorter than its part's own: what no machine reaches says too little.
            for key in untimed.intersection(keys):
                measure(key)
            untimed.difference_update(keys)
            seconds[name] = _schedule(plan, [steps[key] for key in keys], data, epochs)
        needed[name] = _gpu_bytes(plan, [steps[key] for key in keys], data.folds.count)
    if device == "cpu":
        return Cost(seconds, {})
    whole = torch.cuda.get_device_properties(0).total_memory
    return Cost(seconds, {name: gpu_share(value, whole) for name, value in needed.items()})


def _start(name: str, mode: str | None, scope: SearchScope) -> dict[str, Any]:
    """Settings for a backbone that starts in this way."""
    if mode is None or mode == "scratch":
        return {"transfer": mode} if mode else {}
    return {"transfer": mode, "checkpoint": scope.transfers[name].checkpoints[0].to_json()}


def _epochs(plan: TrialConfig, scope: SearchScope) -> int:
    return scope.epochs or max(4, round(plan.training.epochs * scope.epochs_scale))


def _macs(plan: TrialConfig, data: TrainingData) -> float:
    settings = dict(plan.settings)
    settings |= dict((settings.get("checkpoint") or {}).get("settings", {}))
    return get_architecture(plan.architecture).cost(settings, data.shape)


def gpu_share(needed: float, whole: float) -> float:
    """Return the share of a GPU for a trial that needs so many bytes of so many: 1, 1/2, 1/3 …, 1/8.

    A configuration may be larger than the known-good one that was measured.
    """
    fitting = int(whole * _USABLE / (needed * _LARGER))
    return 1.0 / max(1, min(_MOST_ON_A_GPU, fitting))


def drop_expensive(scope: SearchScope, seconds: Mapping[str, float], longest: float) -> SearchScope:
    """Leaves out what is predicted to take longer than `longest`, unless nothing cheaper is there."""
    why_not = dict(scope.why_not)
    transfers: dict[str, Transfer] = {}
    cheapest: dict[str, float] = {}
    for names in [*scope.single.values(), *scope.parts.values()]:
        for name in names:
            transfer = scope.transfers.get(name)
            modes = transfer.modes if transfer else (None,)
            cost = {mode: seconds[key_of(name, mode)] for mode in modes}
            cheapest[name] = min(cost.values())
            kept = tuple(mode for mode in modes if mode and cost[mode] <= longest)
            if transfer:
                best = min(cost, key=lambda mode: cost[mode])
                transfers[name] = replace(transfer, modes=kept or (str(best),))

    def keep(names: tuple[str, ...], cost: Mapping[str, float]) -> tuple[str, ...]:
        by_cost = sorted(names, key=lambda name: cost[name])  # cheap ones are tried first
        return tuple(name for name in by_cost if cost[name] <= longest) or tuple(by_cost[:1])

    single = {side: keep(names, cheapest) for side, names in scope.single.items()}
    for side, names in scope.single.items():
        for name in names:
            if name not in single[side]:
                why_not[name] = (
                    f"a trial would take more than its share of the time budget, {longest:.0f} s"
                )
    parts = {}
    for number, (side, names) in enumerate(scope.parts.items()):
        with_cheapest = {
            name: min(
                (seconds["+".join(p)] for p in scope.pairs if p[number] == name),
                default=float("inf"),
            )
            for name in names
        }
        parts[side] = keep(names, with_cheapest)
    return replace(scope, single=single, parts=parts, transfers=transfers, why_not=why_not)


def _gpu_bytes(plan: TrialConfig, steps: list[_Step], folds: int) -> float:
    """A process's own, the networks of all folds, and the activations of a batch."""
    clips = plan.training.batch_size
    return _PROCESS_BYTES + sum(
        folds * step.parameters * _BYTES_A_PARAMETER + clips * step.bytes_a_clip for step in steps
    )


def _schedule(plan: TrialConfig, steps: list[_Step], data: TrainingData, epochs: int) -> float:
    """Seconds of a trial; what a frozen backbone makes of every clip is computed once."""
    clips = sum(len(data.rows(fold, training=True)) for fold in range(data.folds.count))
    batches = clips / plan.training.batch_size
    a_clip = sum(step.seconds for step in steps)
    once = sum(step.once for step in steps) * len(data.cache.index.clips)
    trained = epochs * (clips * a_clip + batches * _FIXED_SECONDS_A_STEP) * _EVALUATION_SHARE
    return trained + once


@dataclass(frozen=True)
class _Step:
    """A training step, for one clip, from a step of a few on one core or the GPU.

    Attributes:
        seconds: Forward and backward.
        bytes_a_clip: Activations on a GPU.
        parameters: Of the network.
        once: Seconds of a frozen backbone, which sees a clip once.
    """

    seconds: float
    bytes_a_clip: float
    parameters: int
    once: float = 0.0


def _measure_step(plan: TrialConfig, data: TrainingData, device: str, precision: str) -> _Step:
    cost = _macs(plan, data)
    if device == "cpu" and cost < _CHEAP and plan.modes != {"frozen"}:
        return _Step(0.0, 0.0, 0)
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        chosen = choose_precision(plan, device, precision)
        heavy = device == "cpu" and cost > _HEAVY
        return _time_step(plan, data, device, chosen, clips=2 if heavy else _PROBE_CLIPS)
    finally:
        torch.set_num_threads(threads)


def _time_step(
    plan: TrialConfig, data: TrainingData, device: str, precision: str, clips: int
) -> _Step:
    expert = build_expert(plan.architecture, plan.settings, data.shape, weights=data.weights)
    expert = arrange_memory(expert.to(device)).train()
    rows = np.linspace(0, len(data.cache.index.clips) - 1, clips).astype(np.int64)
    batch = {k: x.to(device) for k, x in data.cache.batch(rows, expert.kinds).items()}
    if expert.answers == "traces" and data.traces:
        batch["trace_lengths"] = torch.from_numpy(data.traces.steps[rows]).to(device)
    before = _peak_bytes(device, reset=True)
    fixed = expert.preprocess(batch)
    _wait(device)
    started = time.perf_counter()
    fixed = expert.preprocess(batch)  # the first one warms up
    _wait(device)
    preprocessed = time.perf_counter() - started
    frozen = any(isinstance(expert.encoder(k).frontend, FrozenBackbone) for k in expert.kinds)
    augment(fixed, expert, plan)
    elapsed = float("inf")
    for _ in range(3):  # the first one warms up
        started = time.perf_counter()
        with torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"
        ):
            said = expert.answer(fixed).float()
        if expert.answers == "classes":
            nn.functional.cross_entropy(said, batch["target"]).backward()
        else:
            said.square().mean().backward()
        _wait(device)
        elapsed = min(elapsed, time.perf_counter() - started)
    activations = max(0, _peak_bytes(device) - before)
    parameters = sum(p.numel() for p in expert.parameters())
    once = preprocessed / clips if frozen else 0.0
    return _Step(elapsed / clips, activations / clips, parameters, once)


def _wait(device: str) -> None:
    """Until the GPU has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize()


def _peak_bytes(device: str, *, reset: bool = False) -> int:
    """The most that was in use on the GPU; from now on, if `reset`."""
    if device == "cpu":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.max_memory_allocated())
