"""Measure what a frozen backbone saves when each clip passes through it once.

`python -m benchmarks.transfer [--only cnn14,resnet_lstm] [--epochs N]`

Seconds of a trial over two folds of 48 synthetic clips: frozen with the cache (the first trial, which
fills it, and every later one), frozen without it (the backbone runs on every batch), and fine-tuned.
Weights are random, saved as a checkpoint of the architecture: time does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.common import corpus, machine, save_random_weights, scratch
from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import open_cache
from models import get_architecture
from models.pretrained import find_checkpoints
from search.data.front_end_cache import FrontEndCache
from search.data.training_data import TrainingData
from search.training.cross_validation import LockstepTrial
from search.trial_config import TrialConfig


def main() -> None:
    """Prints a row an architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="cnn14,alexnet,resnet_lstm")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    print(f"{machine()}, {given.device}; {given.epochs} epochs, 2 folds; seconds a trial")
    print(f"{'':18}{'first':>8}{'later':>8}{'no cache':>10}{'fine-tuned':>12}{'saved':>8}")
    with scratch() as folder:
        home = Path(folder)
        index = corpus(None, home)
        cache = open_cache(index, home / "cache")
        folds = make_folds(index, "speaker-kfold:2")
        for name in given.only.split(","):
            data = TrainingData(cache, folds, weights=lambda: home / "weights")
            save_random_weights(name, data)
            first = _seconds(name, "frozen", data, given.epochs, given.device)
            later = _seconds(name, "frozen", data, given.epochs, given.device)
            plain = _seconds(name, "frozen", data, given.epochs, given.device, cached=False)
            tuned = _seconds(name, "finetune", data, given.epochs, given.device)
            print(
                f"{name:18}{first:8.1f}{later:8.2f}{plain:10.1f}{tuned:12.1f}{plain / later:7.0f}x",
                flush=True,
            )


def _seconds(
    name: str, mode: str, data: TrainingData, epochs: int, device: str, *, cached: bool = True
) -> float:
    assert data.weights is not None
    (found,) = find_checkpoints(get_architecture(name), data.weights)
    settings = {"transfer": mode, "checkpoint": found.to_json()}
    plan = TrialConfig.of(name, settings, {"epochs": epochs})
    started = time.perf_counter()
    trial = LockstepTrial(plan, data, seed=0, device=device)
    if not cached:
        for trainer in trial.trainers:
            (kind,) = trainer.expert.kinds
            trainer.expert.encoder(kind).frontend.worth_caching = False
        data.front_ends = FrontEndCache(data.cache)
        for trainer in trial.trainers:
            trainer.front_ends = data.front_ends
    for _ in trial.run():
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
