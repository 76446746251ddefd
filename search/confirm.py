"""Fresh seeds: the experts behind the headline trained again, and the same choices scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from ensembles.bank import PosteriorBank
from ensembles.honesty import Assessment, Scored, replay
from search import tuning, weights
from search.folder import RunFolder
from search.sampler import DealtSearch
from search.space import MODALITIES, plan_of
from search.trial import Spec

_FIRST_SEED = 1000
"""Added to the search's seed."""


def confirm(
    assessment: Assessment,
    bank: PosteriorBank,
    search: DealtSearch,
    context: dict[str, Any],
    *,
    count: int,
    screen: Console,
) -> dict[int, dict[str, Scored]]:
    """Trains every expert that the headline rests on with `count` fresh seeds.

    The scores of these seeds count, not that of the seed which won the search. Choices of
    experts and recipe stay as they are; only the fusion's parameters are fitted again, for
    each fold on the other folds.

    Returns:
        Seed → `fused`, `audio alone`, `best audio`, … → score. A seed of which a training failed
        is left out.
    """
    seeds = [int(context["seed"]) + _FIRST_SEED + n for n in range(count)]
    rows = {"fused": assessment.fused}
    rows |= {f"{m} alone": row for m, row in assessment.alone.items()}
    singles = {m: row for m in MODALITIES if (row := assessment.row(f"best {m}"))}
    rows |= {row.name: row for m, row in singles.items() if m not in assessment.alone}
    names = sorted({name for row in rows.values() for _, taken in row.per_fold for name in taken})
    # A single expert that no ensemble of its modality takes is not worth training three times.
    for modality in MODALITIES:
        row = assessment.row(f"best {modality}")
        if row and all(name in names for _, taken in row.per_fold for name in taken):
            rows[row.name] = row
    have = {entry.trial for entry in bank.read() if entry.percent == 100}
    specs = [
        retraining(name, fresh_name(name, seed), search, {**context, "seed": seed})
        for seed in seeds
        for name in names
        if fresh_name(name, seed) not in have
    ]
    if specs:
        _train(specs, names, search, context, screen)
    return _score(rows, names, seeds, bank, search, assessment.metric)


def fresh_name(trial: str, seed: int) -> str:
    """What the bank calls a trial's retraining."""
    return f"{trial}+seed{seed}"


def retraining(
    name: str, title: str, search: DealtSearch, context: dict[str, Any], *, keep: bool = False
) -> Spec:
    """A trial's configuration, to be trained again under another name; `keep` its weights?"""
    modality = name.rpartition("-")[0]
    plan = plan_of(search.all_trials()[name].params, modality, search.parts[modality].offer)
    return {
        "trial": title,
        "modality": modality,
        "plan": plan.to_json(),
        "keep_weights": keep,
        "context": context,
    }


def restore_weights(
    run: RunFolder,
    assessment: Assessment,
    search: DealtSearch,
    context: dict[str, Any],
    *,
    screen: Console,
) -> None:
    """Trains needed experts again whose networks an earlier end of the run did not keep.

    With the same seed: what comes back is what was scored.
    """
    titles = {name: f"{name}+again" for name in weights.lost(run, assessment)}
    if not titles:
        return
    screen.print(f"training {len(titles)} experts again, whose networks were not kept")
    specs = [retraining(name, titles[name], search, context, keep=True) for name in titles]
    tuning.run_seeds(specs, workers=int(context["workers"]), on_done=failures_on(screen))
    for name, title in titles.items():
        weights.put_back(run, name, title)


def _train(
    specs: list[Spec],
    names: list[str],
    search: DealtSearch,
    context: dict[str, Any],
    screen: Console,
) -> None:
    trials = search.all_trials()
    took = sum(float(trials[name].user_attrs.get("seconds") or 0.0) for name in names)
    minutes = took * len(specs) / len(names) / int(context["workers"]) / 60
    screen.print(
        f"fresh seeds: training {len(specs)} experts of the headline again, about {minutes:.1f} min",
        highlight=False,
    )

    tuning.run_seeds(specs, workers=int(context["workers"]), on_done=failures_on(screen))


def failures_on(screen: Console) -> Callable[[str, str | None], None]:
    """Names the trainings that failed, and why."""

    def done(name: str, why: str | None) -> None:
        if why:
            screen.print(f"{name} failed: {why}", highlight=False)

    return done


def _score(
    rows: dict[str, Scored],
    names: list[str],
    seeds: list[int],
    bank: PosteriorBank,
    search: DealtSearch,
    metric: str,
) -> dict[int, dict[str, Scored]]:
    entries = {entry.trial: entry for entry in bank.read() if entry.percent == 100}
    finished = search.finished()
    experts = bank.experts(entry for name, entry in entries.items() if name in finished)
    confirmed: dict[int, dict[str, Scored]] = {}
    for seed in seeds:
        again = [entries.get(fresh_name(name, seed)) for name in names]
        if all(again):
            fresh = bank.experts([entry for entry in again if entry]).log_posteriors
            swapped = experts.replace(dict(zip(names, fresh, strict=True)))
            confirmed[seed] = {
                name: replay(swapped, row, metric, name) for name, row in rows.items()
            }
    return confirmed
