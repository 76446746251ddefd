"""Clips a second: our cache against WebDataset decoding every epoch, and inside a training step.

`python -m benchmarks.loader [--data SHARDS]`
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.common import arguments, corpus, machine, scratch, seconds
from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.stream import stream_clips
from models import build_expert
from search.data.training_data import TrainingData
from search.training.fold_builder import build_fold
from search.trial_config import TrialConfig

BATCH = 32


def _batches(count: int, seed: int) -> list[NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(count)
    return [order[i : i + BATCH] for i in range(0, count, BATCH)]


def _first(items: list[object]) -> object:
    return items[0]


def main() -> None:
    """Prints three comparisons."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    with scratch() as folder:
        index = corpus(options.data, Path(folder))
        cache = open_cache(index, Path(folder) / "cache")
        clips = len(index.clips)
        print(f"{machine()}; {index.corpus}, {clips} clips, audio, batches of {BATCH}")

        loader = DataLoader(stream_clips(index), batch_size=None, num_workers=2)

        def webdataset() -> None:
            for _ in loader:
                pass

        def cached() -> None:
            for rows in _batches(clips, 0):
                cache.batch(rows, ["audio"])

        tensors = [cache.batch(rows, ["audio"]) for rows in _batches(clips, 0)]

        def in_memory() -> None:
            for batch in tensors:
                {name: x.clone() for name, x in batch.items()}

        rates = {
            "WebDataset, FLAC decoded every epoch, 2 workers": clips
            / seconds(webdataset, min(options.repeats, 3)),
            "cache, from the second epoch on": clips / seconds(cached, options.repeats),
            "tensors in memory, copied": clips / seconds(in_memory, options.repeats),
        }
        for name, rate in rates.items():
            print(f"  {rate:9.0f} clips/s  {name}")
        ratio = (
            rates["cache, from the second epoch on"]
            / rates["WebDataset, FLAC decoded every epoch, 2 workers"]
        )
        print(f"  cache / WebDataset: {ratio:.1f}x")
        _inside_a_step(TrainingData(cache, make_folds(index)), options.repeats)


def _inside_a_step(data: TrainingData, repeats: int) -> None:
    """A training epoch from the cache, against the same steps on tensors that are at hand."""
    plan = TrialConfig.of("logmel_resnet", {}, {"mixup": 0.0})
    trainer = build_fold(plan, data, 0, seed=0)
    batches = [
        trainer.rows[i : i + BATCH] for i in range(0, min(len(trainer.rows), 8 * BATCH), BATCH)
    ]
    at_hand: list[dict[str, Tensor]] = [trainer._inputs(rows) for rows in batches]
    targets = [torch.from_numpy(data.cache.targets[rows]) for rows in batches]
    expert = build_expert("logmel_resnet", {}, data.shape)
    optimizer = torch.optim.AdamW(expert.parameters())

    def step(inputs: dict[str, Tensor], target: Tensor) -> None:
        nn.functional.cross_entropy(expert.answer(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    def from_memory() -> None:
        for inputs, target in zip(at_hand, targets, strict=True):
            step(inputs, target)

    def from_cache() -> None:
        for rows, target in zip(batches, targets, strict=True):
            step(trainer._inputs(rows), target)

    clips = sum(map(len, batches))
    ratios = []
    for _ in range(3):  # side by side, so that a drifting machine hits both
        memory, cached = seconds(from_memory, repeats), seconds(from_cache, repeats)
        ratios.append(memory / cached)
    print(f"  training step of logmel_resnet: {clips / cached:.0f} clips/s from the cache, "
          f"{clips / memory:.0f} from tensors in memory; ratio {np.median(ratios):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
