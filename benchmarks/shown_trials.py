"""Measure the cost to a search of showing TPE a bounded part of its trials (`search/tuning/history.py`).

`python -m benchmarks.shown_trials`. The score is a made-up function of the real audio space,
with noise; a search takes the trial with the best noisy score. The same seeds for every bound.
"""

from __future__ import annotations

import math
import random
import statistics
import time
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import optuna

from search.space.scope import SearchScope
from search.tuning import history
from search.tuning.study import StudySearch

SEEDS, TRIALS, NOISE = 5, 1000, 0.01
SCOPE = SearchScope(single={"audio": ("functionals", "logmel_resnet")})


def score(params: Mapping[str, Any]) -> float:
    """At most 0.02: smooth in the numbers, arbitrary in the choices, one interaction."""
    name = params["architecture"]
    rate = math.log10(params[f"{name}.learning_rate"]) + 2.6
    decay = math.log10(params[f"{name}.weight_decay"]) + 0.5
    dropout = params[f"{name}.dropout"] - 0.35
    total = 0.02 if name == "logmel_resnet" else 0.0
    total -= 0.03 * rate**2 + 0.03 * decay**2 + 0.3 * dropout**2 + 0.1 * abs(rate * dropout)
    for key, value in params.items():
        if key != "architecture" and not key.endswith(("_rate", "_decay", ".dropout")):
            total -= 0.02 * (zlib.crc32(f"{key}={value}".encode()) % 1000) / 1000
    return float(total)


def search(seed: int) -> list[tuple[float, float]]:
    """Noisy and true score of every trial."""
    rng, scores = random.Random(seed), []
    storage: Any = optuna.storages.InMemoryStorage()
    part = StudySearch("audio", SCOPE, storage, seed)
    for number in range(TRIALS):
        name = str(number)
        part.suggest(name)
        true = score(part.history.running[number].params)
        noisy = true + rng.gauss(0, NOISE)
        part.report_rung(name, 100, noisy)
        part.on_trial_complete(name, {"score": noisy, "percent": 100})
        scores.append((noisy, true))
    return scores


def main() -> None:
    """Prints a row for every bound."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    print(f"{SEEDS} seeds of {TRIALS} trials: mean and deviation; CPU ms a trial")
    print("shown    chosen trial       last 200 trials    CPU")
    for shown in (100, 250, 500, TRIALS):
        history.SHOWN = shown
        started = time.process_time()
        runs = [search(seed) for seed in range(SEEDS)]
        cpu = 1000 * (time.process_time() - started) / (SEEDS * TRIALS)
        chosen = [max(run)[1] for run in runs]
        late = [statistics.mean(true for _, true in run[-200:]) for run in runs]
        columns = [f"{statistics.mean(x):.4f} ± {statistics.stdev(x):.4f}" for x in (chosen, late)]
        print(f"{shown:5d} {columns[0]} {columns[1]} {cpu:6.1f}")


if __name__ == "__main__":
    main()
