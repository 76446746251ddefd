"""Compare two objectives: a trial's own score, or that plus its gain to the ensemble.

`python -m benchmarks.objective --data SHARDS` (RAVDESS with action units). The project's own sampler, stopping
and posterior bank, in one process without Ray: every proposal is trained for real, on one thread, on a part
of each speaker's clips and a short schedule. Both objectives have the same seeds, hence the same first
proposals, and the same number of trials; compared is the honest score of the greedy ensemble of what each found.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks.common import machine, scratch
from datasets.protocols.folds import Folds
from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import ShardIndex, read_index
from datasets.storage.synced_folder import default_cache_folder
from ensembles.bank.posterior_bank import BankEntry, PosteriorBank
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.fusion.candidates import recipes_for
from ensembles.metrics import get_metric, log_softmax
from search.data.bank_tables import clip_table
from search.data.training_data import TrainingData
from search.space.scope import SearchScope, scope_for
from search.training.cross_validation import LockstepTrial, RungResult
from search.trial_config import TrialConfig
from search.tuning.objective import GAIN_WEIGHT, EnsembleObjective
from search.tuning.searcher import ModalitySearcher

ONLY = ("functionals", "action_units")
METRIC = "accuracy"
RECIPE = "greedy: by log-loss"
"""Recipe of the leaderboard that is scored: honestly, as everywhere."""


def main() -> None:
    """Parse → load → search by both objectives, seed by seed → differences."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", required=True, help="prepared RAVDESS shards with action units")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=28, help="of a search, both modalities")
    parser.add_argument("--clips", type=int, default=10, help="of each speaker")
    parser.add_argument("--epochs-scale", type=float, default=0.1)
    parser.add_argument("--gain-weights", type=float, nargs="+", default=[GAIN_WEIGHT])
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    data = _open(options.data, options.clips)
    scope = scope_for(data.shape, ONLY, options.epochs_scale)
    kept = int((data.folds.fold_of_clip >= 0).sum())
    print(
        f"{machine()}; {kept} clips, {data.folds.protocol}, {options.trials} trials, "
        f"epochs x {options.epochs_scale:g}",
        flush=True,
    )
    arms = [("solo", 0.0), *(("ensemble", weight) for weight in options.gain_weights)]
    found: dict[tuple[str, float], list[tuple[float, float]]] = {arm: [] for arm in arms}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        trained: dict[str, _Trained] = {}
        for arm in arms:
            started, before = time.monotonic(), len(trained)
            found[arm].append(_search(arm, seed, data, scope, options.trials, trained))
            honest, best = found[arm][-1]
            print(
                f"seed {seed:2d} {arm[0]:8} {arm[1]:4g}: fused honest {100 * honest:.2f}, best expert "
                f"{100 * best:.2f}; {len(trained) - before} trained, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    for arm in arms:
        print(_line(arm, np.asarray(found[arm]), np.asarray(found[arms[0]])))


def _open(place: str, clips: int) -> TrainingData:
    """The corpus; of every speaker, clips that go round the classes, the rest in no fold."""
    index = read_index(place)
    folds = make_folds(index, "speaker-kfold:3")
    return TrainingData(open_cache(index, default_cache_folder()), _some_of(index, folds, clips))


def _some_of(index: ShardIndex, folds: Folds, clips: int) -> Folds:
    taken: dict[str, int] = {}
    fold_of_clip = np.full(len(index.clips), -1, np.int64)
    of_class: dict[tuple[str, str], int] = {}
    turn = []
    for row, entry in enumerate(index.clips):
        kind = (entry.speaker, entry.label)
        of_class[kind] = of_class.get(kind, 0) + 1
        turn.append((of_class[kind], row))
    for _, row in sorted(turn):
        speaker = index.clips[row].speaker
        if taken.get(speaker, 0) < clips:
            taken[speaker] = taken.get(speaker, 0) + 1
            fold_of_clip[row] = folds.fold_of_clip[row]
    return replace(folds, fold_of_clip=fold_of_clip)


class _Trained:
    """One configuration, trained as far as somebody asked; searches that propose it share it."""

    def __init__(self, plan: TrialConfig, data: TrainingData, seed: int) -> None:
        self._rungs: list[RungResult] = []
        self._trial: Iterator[RungResult] = LockstepTrial(plan, data, seed=seed).run()

    def rungs(self) -> Iterator[RungResult]:
        """From the first, training on where nobody was yet."""
        for place in range(4):
            if place == len(self._rungs):
                self._rungs.append(next(self._trial))
            yield self._rungs[place]


def _search(
    arm: tuple[str, float],
    seed: int,
    data: TrainingData,
    scope: SearchScope,
    trials: int,
    trained: dict[str, _Trained],
) -> tuple[float, float]:
    """Honest score of the greedy ensemble, and the best own score of an expert."""
    objective, weight = arm
    with scratch() as folder:
        bank = PosteriorBank.create(Path(folder) / "bank", clip_table(data))
        search = ModalitySearcher(
            scope,
            optuna.storages.InMemoryStorage(),  # type: ignore[arg-type]
            seed=1000 * seed,
            trials=trials,
            deadline=time.monotonic() + 3600,
            objective=EnsembleObjective(bank, METRIC, weight=weight)
            if objective == "ensemble"
            else None,
        )
        while isinstance(spec := search.suggest("one"), dict):
            key = json.dumps(spec["plan"].to_json(), sort_keys=True)
            trained.setdefault(key, _Trained(spec["plan"], data, seed))
            _run(search, spec, trained[key], bank)
        ended = [e for e in bank.read() if e.percent == 100 and e.trial in search.finished()]
        fitter = CrossFitter(bank.experts(ended), METRIC)
        recipe = next(r for r in recipes_for(fitter.experts, METRIC) if r.name == RECIPE)
        table = fitter.experts.table
        honest = get_metric(METRIC).fold_mean(table.labels, fitter.honest(recipe), table.folds)
        return honest, max(part.history.best or 0.0 for part in search.parts.values())


def _run(
    search: ModalitySearcher, spec: dict[str, Any], trial: _Trained, bank: PosteriorBank
) -> None:
    """Deals one trial with as Tune would: bank, rung, stop or go on."""
    for rung in trial.rungs():
        bank.write(
            BankEntry(
                trial=spec["trial"],
                modality=spec["modality"],
                architecture=spec["plan"].architecture,
                percent=rung.percent,
                epoch=rung.epoch,
                seed=0,
                logits=rung.logits,
            )
        )
        score = _score(bank, rung.logits)
        if search.report_rung("one", rung.percent, score) or rung.percent == 100:
            search.on_trial_complete("one", {"score": score, "percent": rung.percent})
            return


def _score(bank: PosteriorBank, logits: NDArray[np.float32]) -> float:
    present, table = np.isfinite(logits).all(axis=1), bank.table
    found = log_softmax(logits[present].astype(np.float64))
    return get_metric(METRIC).fold_mean(table.labels[present], found, table.folds[present])


def _line(arm: tuple[str, float], found: NDArray[np.float64], solo: NDArray[np.float64]) -> str:
    """Mean of both scores; of the ensemble's, the difference from `solo` with its 95 % interval."""
    means = 100 * found.mean(axis=0)
    text = f"{arm[0]:8} {arm[1]:4g}: fused {means[0]:.2f}, best expert {means[1]:.2f}"
    if arm[0] == "solo" or len(found) < 2:
        return text
    apart = 100 * (found - solo)[:, 0]
    half = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
    won = int((apart > 0).sum())
    return (
        f"{text}; fused less solo {apart.mean():+.2f} ({apart.mean() - half:+.2f} to "
        f"{apart.mean() + half:+.2f}), better in {won} of {len(apart)}"
    )


if __name__ == "__main__":
    main()
