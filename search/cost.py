"""What a trial will cost here: one training step of each network, measured before the search."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from models import ClipShape, build_expert, get_architecture
from models.augmentation import time_crop
from models.expert import arrange_memory
from search.space import Offer
from search.train import TrainingData, TrialPlan, choose_precision, crop_seconds

_PROBE_CLIPS = 16
_CHEAP = 2e6  # multiply-accumulates; below, a step's fixed cost decides
_FIXED_SECONDS_A_STEP = 0.0012
_EVALUATION_SHARE = 1.15

_BYTES_A_PARAMETER = 16
"""Weight, gradient and AdamW's two averages, in float32."""

_PROCESS_BYTES = 0.7 * 2**30
"""What CUDA itself takes of a GPU for every process; differs by driver, so rather more."""

_USABLE, _LARGER, _MOST_ON_A_GPU = 0.9, 1.5, 8


@dataclass(frozen=True)
class Cost:
    """Of known-good trials, each on one worker; an architecture or an `audio+video` pair each.

    Attributes:
        seconds: Of a whole trial.
        gpu_share: How much of the GPU's memory it may take; empty without one.
    """

    seconds: dict[str, float]
    gpu_share: dict[str, float]


def measure_cost(offer: Offer, data: TrainingData, device: str, precision: str) -> Cost:
    """Trains a step of everything that is offered, here."""
    parts = {name for modality in ("audio", "video") for name in offer.single.get(modality, ())}
    parts |= {name for pair in offer.pairs for name in pair.split("+")}
    steps = {name: _measure_step(name, data, device, precision) for name in sorted(parts)}
    seconds, needed = {}, {}
    for modality in ("audio", "video"):
        for name in offer.single.get(modality, ()):
            plan = TrialPlan.of(name, {}, {})
            seconds[name] = _schedule(plan, steps[name].seconds, data, offer.epochs_scale)
            needed[name] = _gpu_bytes(plan, [steps[name]], data.folds.count)
    for pair in offer.pairs:
        audio, _, video = pair.partition("+")
        settings = {"audio": {"architecture": audio}, "video": {"architecture": video}}
        plan = TrialPlan.of("concatenation", settings, {})
        both = [steps[audio], steps[video]]
        seconds[pair] = _schedule(
            plan, sum(step.seconds for step in both), data, offer.epochs_scale
        )
        needed[pair] = _gpu_bytes(plan, both, data.folds.count)
    if device == "cpu":
        return Cost(seconds, {})
    whole = torch.cuda.get_device_properties(0).total_memory
    return Cost(seconds, {name: gpu_share(value, whole) for name, value in needed.items()})


def gpu_share(needed: float, whole: float) -> float:
    """What of a GPU a trial is given that needs so many bytes of so many: 1, 1/2, 1/3 …, 1/8.

    A configuration may be larger than the known-good one that was measured.
    """
    fitting = int(whole * _USABLE / (needed * _LARGER))
    return 1.0 / max(1, min(_MOST_ON_A_GPU, fitting))


def drop_expensive(offer: Offer, seconds: Mapping[str, float], longest: float) -> Offer:
    """Leaves out what is predicted to take longer than `longest`, unless nothing cheaper is there."""
    why_not = dict(offer.why_not)

    def keep(names: Iterable[str]) -> tuple[str, ...]:
        names = tuple(names)
        kept = tuple(name for name in names if seconds[name] <= longest)
        if names and not kept:
            kept = (min(names, key=lambda name: seconds[name]),)
        for name in names:
            if name not in kept:
                why_not[name] = (
                    f"a trial would take more than its share of the time budget, {longest:.0f} s"
                )
        return kept

    single = {modality: keep(names) for modality, names in offer.single.items()}
    return replace(offer, single=single, pairs=keep(offer.pairs), why_not=why_not)


def _gpu_bytes(plan: TrialPlan, steps: list[_Step], folds: int) -> float:
    """A process's own, the networks of all folds, and the activations of a batch."""
    clips = plan.training.batch_size
    return _PROCESS_BYTES + sum(
        folds * step.parameters * _BYTES_A_PARAMETER + clips * step.bytes_a_clip for step in steps
    )


def _schedule(plan: TrialPlan, a_clip: float, data: TrainingData, epochs_scale: float) -> float:
    epochs = max(4, round(plan.training.epochs * epochs_scale))
    clips = sum(len(data.rows(fold, training=True)) for fold in range(data.folds.count))
    steps = clips / plan.training.batch_size
    return epochs * (clips * a_clip + steps * _FIXED_SECONDS_A_STEP) * _EVALUATION_SHARE


@dataclass(frozen=True)
class _Step:
    """A training step, for one clip, from a step of a few on one core or the GPU."""

    seconds: float
    bytes_a_clip: float
    parameters: int


def _measure_step(name: str, data: TrainingData, device: str, precision: str) -> _Step:
    entry = get_architecture(name)
    if device == "cpu" and entry.cost(entry.default, data.shape) < _CHEAP:
        return _Step(0.0, 0.0, 0)
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        return _time_step(
            name, data.shape, data, device, choose_precision(name, {}, device, precision)
        )
    finally:
        torch.set_num_threads(threads)


def _time_step(
    name: str, shape: ClipShape, data: TrainingData, device: str, precision: str
) -> _Step:
    expert = arrange_memory(build_expert(name, {}, shape).to(device)).train()
    rows = np.linspace(0, len(data.cache.index.clips) - 1, _PROBE_CLIPS).astype(np.int64)
    batch = {k: x.to(device) for k, x in data.cache.batch(rows, expert.kinds).items()}
    fixed = expert.preprocess(batch)
    plan = TrialPlan.of(name, {}, {})
    for kind in expert.kinds:
        rate = expert.encoder(kind).frontend.frames_per_second
        frames = round(crop_seconds(plan, kind) * rate)
        if frames:
            lengths = fixed[f"{kind}_lengths"]
            fixed[kind], fixed[f"{kind}_lengths"] = time_crop(fixed[kind], lengths, frames)
    targets = batch["target"]
    before = _peak_bytes(device, reset=True)
    elapsed = float("inf")
    for _ in range(3):  # the first one warms up
        started = time.perf_counter()
        with torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"
        ):
            logits = expert.classify(fixed)
        nn.functional.cross_entropy(logits.float(), targets).backward()
        if device != "cpu":
            torch.cuda.synchronize()
        elapsed = min(elapsed, time.perf_counter() - started)
    activations = max(0, _peak_bytes(device) - before)
    parameters = sum(p.numel() for p in expert.parameters())
    return _Step(elapsed / _PROBE_CLIPS, activations / _PROBE_CLIPS, parameters)


def _peak_bytes(device: str, *, reset: bool = False) -> int:
    """The most that was in use on the GPU; from now on, if `reset`."""
    if device == "cpu":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.max_memory_allocated())
