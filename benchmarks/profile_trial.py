"""Where the time of a trial goes: `python -m benchmarks.profile_trial [--data DIR] [NAME …]`.

Trains the known-good trial of each architecture for a few epochs on one core and times the
stages of its steps, next to the same with what the profile led to remove put back ("plain"):
AdamW's loop over parameters in Python instead of one fused kernel, the walk through all modules
for gradient clipping, and (log-mel network) whole clips with their silence instead of random
seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.common import corpus, scratch
from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import open_cache
from models import get_architecture
from search.data.training_data import TrainingData
from search.training.device import choose_precision
from search.training.fold_builder import build_fold
from search.training.fold_trainer import FoldTrainer
from search.trial_config import TrialConfig

STAGES = ("examples", "loss", "backward", "update")
_EPOCHS = 3


def profile(name: str, data: TrainingData, *, plain: bool) -> dict[str, float]:
    """Milliseconds a step, by stage, and of predicting a clip."""
    settings: dict[str, Any] = {}
    training: dict[str, Any] = {}
    if plain and name == "logmel_resnet":
        settings, training = {"trim_db": 0.0, "range_db": 0.0}, {"crop_seconds": 0.0}
    plan = TrialConfig.of(name, settings, training)
    precision = choose_precision(plan, "cpu")
    trainer = build_fold(plan, data, 0, seed=0, precision=precision)
    if plain:
        _make_plain(trainer)
    trainer.step_epoch()  # warms up
    seconds = dict.fromkeys(STAGES, 0.0)
    places = {
        "examples": (trainer, "_examples"),
        "loss": (trainer, "_loss"),
        "backward": (torch.Tensor, "backward"),
        "update": (trainer.optimizer, "update"),
    }
    with ExitStack() as stack:
        for stage, (owner, method) in places.items():
            timed = _timed(getattr(owner, method), stage, seconds)
            stack.enter_context(mock.patch.object(owner, method, timed))
        started = time.perf_counter()
        for _ in range(_EPOCHS):
            trainer.step_epoch()
    steps = _EPOCHS * trainer.steps
    result = {stage: 1000 * value / steps for stage, value in seconds.items()}
    result["step"] = 1000 * (time.perf_counter() - started) / steps
    rows = data.rows(0, training=False)
    started = time.perf_counter()
    trainer.predict(rows)
    result["predict"] = 1000 * (time.perf_counter() - started) / len(rows)
    return result


def _timed(call: Callable[..., Any], stage: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments)
        seconds[stage] += time.perf_counter() - started
        return result

    return timed


def _make_plain(trainer: FoldTrainer) -> None:
    old = trainer.optimizer.optimizer
    groups = [{k: g[k] for k in ("params", "lr", "weight_decay")} for g in old.param_groups]
    plain = torch.optim.AdamW(groups)

    def update() -> None:
        nn.utils.clip_grad_norm_(trainer.expert.parameters(), 5.0)
        plain.step()

    trainer.optimizer.update = update  # type: ignore[method-assign]


def main() -> None:
    """Prints a table, as it was and as it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=["functionals", "logmel_resnet", "action_units"]
    )
    parser.add_argument("--data", help="prepared shards (default: the synthetic corpus)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with scratch() as folder:
        index = corpus(given.data, Path(folder))
        data = TrainingData(open_cache(index, Path(folder) / "cache"), make_folds(index))
        print(f"{'ms a step':24} {'in all':>8} " + " ".join(f"{s:>9}" for s in STAGES))
        for name in given.names:
            if not all(data.shape.has(kind) for kind in get_architecture(name).inputs):
                continue
            totals = []
            for plain in (True, False):
                found = profile(name, data, plain=plain)
                totals.append(found["step"])
                label = f"{name}{' (plain)' if plain else ''}"
                stages = " ".join(f"{found[stage]:9.2f}" for stage in STAGES)
                print(
                    f"{label:24} {found['step']:8.2f} {stages}   {found['predict']:.2f} ms a clip"
                )
            print(f"{'':24} {totals[0] / totals[1]:.2f}x")


if __name__ == "__main__":
    main()
