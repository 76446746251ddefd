"""Plan a nested search: how each part splits its speakers, and whether all parts fit the time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from datasets.protocols.folds import Folds
from datasets.protocols.split import make_folds
from datasets.sharding.index import ShardIndex
from search.config import ConfigError, SearchConfig
from search.space.scope import SearchScope

_TRIALS = 12
"""Trials of each search, unless another number is requested."""

_LEAST_A_MODALITY = 2


def outer_count(config: SearchConfig, folds: Folds) -> int:
    """How many folds are held out of a search of their own.

    Raises:
        ConfigError: More than there are, or too few to leave two.
    """
    if folds.leak:
        raise ConfigError(f"outer holds speakers out: --protocol {folds.protocol} does not.")
    if folds.partners:
        raise ConfigError(
            f"outer does not keep partners apart, as {folds.protocol} does: take --protocol iemocap-loso5."
        )
    if folds.test_speakers:
        raise ConfigError(
            f"outer makes each fold's speakers test speakers, of which {folds.protocol} has some of its own: "
            "take --protocol speaker-kfold:5."
        )
    if folds.count < 3:
        raise ConfigError(
            f"outer needs 3 folds or more, so that two are left to search by; {folds.protocol} has "
            f"{folds.count}. Take --protocol speaker-kfold:3."
        )
    count = config.outer_folds or folds.count
    if count > folds.count:
        raise ConfigError(
            f"outer_folds must be at most {folds.count}, the folds of {folds.protocol}, got {count}."
        )
    return count


def inner_splits(index: ShardIndex, folds: Folds, count: int) -> list[Folds]:
    """How each search splits the speakers that are left to it; as many folds as outside.

    Raises:
        DataError: Some search could not be split so.
    """
    speakers = [
        sorted({index.clips[row].speaker for row in folds.test_rows(fold)})
        for fold in range(folds.count)
    ]
    everyone = sum(map(len, speakers))
    return [
        make_folds(
            index,
            f"speaker-kfold:{min(folds.count, everyone - len(speakers[fold]))}",
            speakers[fold],
        )
        for fold in range(count)
    ]


def narrowed(
    config: SearchConfig, scope: SearchScope, seconds: Mapping[str, float], searches: int
) -> tuple[SearchConfig, SearchScope]:
    """A search that is cheap enough to be repeated: cheapest architectures, few trials, its share of the time.

    Args:
        config: As asked; its time is for all searches together.
        scope: What it would search.
        seconds: Predicted, of a trial of each architecture.
        searches: How many there will be.

    Raises:
        ConfigError: The searches would not fit into the time.
    """
    if not config.architectures:
        scope = _cheapest(scope, seconds)
    a_trial = float(np.mean([_cost(name, seconds) for name in _keys(scope)]))
    at_once = config.workers or (1 if config.address else len(os.sched_getaffinity(0)))
    share = config.plan.minutes * 60 / searches
    fitting = int(share * at_once / max(a_trial, 1e-9))
    least = _LEAST_A_MODALITY * len(scope.modalities)
    trials = config.trials or max(least, min(_TRIALS, fitting))
    if trials > fitting:
        needed = trials * a_trial / at_once * searches / 60
        raise ConfigError(
            f"outer: {searches} searches of {trials} trials are predicted to take {needed:.1f} min, the time "
            f"budget is {config.plan.minutes:g} min. Raise --time-budget, or take fewer --outer-folds, "
            "fewer --trials or cheaper architectures (--only)."
        )
    config = replace(
        config,
        only=",".join(architectures_of(scope)),
        trials=trials,
        time_budget=f"{max(1, round(share))}s",
    )
    return config, scope


def architectures_of(scope: SearchScope) -> list[str]:
    """Return the names of all single networks and early fusions."""
    return [*dict.fromkeys(n for group in scope.single.values() for n in group), *scope.fusions]


def _cheapest(scope: SearchScope, seconds: Mapping[str, float]) -> SearchScope:
    """One architecture of each side, and no early fusion."""
    single = {
        side: tuple(sorted(names, key=lambda name: _cost(name, seconds))[:1])
        for side, names in scope.single.items()
    }
    taken = {name for names in single.values() for name in names}
    left_out = sorted(scope.networks.union(scope.fusions) - taken)
    why = "outer searches the cheapest of each modality; --only names others"
    return replace(
        scope,
        single=single,
        fusions=(),
        parts={},
        transfers={name: start for name, start in scope.transfers.items() if name in taken},
        why_not={**scope.why_not, **dict.fromkeys(left_out, why)},
    )


def _keys(scope: SearchScope) -> list[str]:
    """Return the names that trials are drawn from, as costs are named."""
    names = [name for group in scope.single.values() for name in group]
    return [*names, *("+".join(pair) for pair in scope.pairs)]


def _cost(name: str, seconds: Mapping[str, float]) -> float:
    """Return the cost of an architecture; with a backbone, of the cheapest way to start it."""
    return min(value for key, value in seconds.items() if key.split(" ")[0] == name)
