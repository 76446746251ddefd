"""What a trial will cost here: one training step of each network, measured before the search."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

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


def predict_seconds(
    offer: Offer, data: TrainingData, device: str, precision: str
) -> dict[str, float]:
    """Architecture (or `audio+video` pair) → seconds of its known-good trial on one worker."""
    parts = {name for modality in ("audio", "video") for name in offer.single.get(modality, ())}
    parts |= {name for pair in offer.pairs for name in pair.split("+")}
    a_clip = {name: _seconds_a_clip(name, data, device, precision) for name in sorted(parts)}
    seconds = {
        name: _schedule(name, {}, a_clip[name], data, offer.epochs_scale)
        for modality in ("audio", "video")
        for name in offer.single.get(modality, ())
    }
    for pair in offer.pairs:
        audio, _, video = pair.partition("+")
        settings = {"audio": {"architecture": audio}, "video": {"architecture": video}}
        seconds[pair] = _schedule(
            "concatenation", settings, a_clip[audio] + a_clip[video], data, offer.epochs_scale
        )
    return seconds


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


def _schedule(
    name: str,
    settings: Mapping[str, object],
    a_clip: float,
    data: TrainingData,
    epochs_scale: float,
) -> float:
    plan = TrialPlan.of(name, settings, {})
    epochs = max(4, round(plan.training.epochs * epochs_scale))
    clips = sum(len(data.rows(fold, training=True)) for fold in range(data.folds.count))
    steps = clips / plan.training.batch_size
    return epochs * (clips * a_clip + steps * _FIXED_SECONDS_A_STEP) * _EVALUATION_SHARE


def _seconds_a_clip(name: str, data: TrainingData, device: str, precision: str) -> float:
    """Seconds of a training step for one clip, from a step of a few on one core."""
    entry = get_architecture(name)
    if entry.cost(entry.default, data.shape) < _CHEAP:
        return 0.0
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
) -> float:
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
    return elapsed / _PROBE_CLIPS
