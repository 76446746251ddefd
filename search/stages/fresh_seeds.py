"""Fresh seeds: the experts behind the headline trained again, and the same choices scored."""

from __future__ import annotations

from dataclasses import replace

from ensembles.bank.training_variant import Variant
from ensembles.evaluation.assessment import Assessment, Scored, replay
from ensembles.evaluation.trace_assessment import Processed, apply_by_fold
from search.stages.session import Session

_FIRST_SEED = 1000
"""Added to the search's seed."""


def confirm(session: Session) -> None:
    """Train the headline's experts again, with as many fresh seeds as the settings ask for."""
    found, count = session.found, session.run.config.plan.confirm_seeds
    found.confirmed = confirmed_scores(session, found.assessment, count, found.processed)


def confirmed_scores(
    session: Session, assessment: Assessment, count: int, processed: Processed | None = None
) -> dict[int, dict[str, Scored]]:
    """Train every expert that the headline rests on with `count` fresh seeds.

    The scores of these seeds count, not that of the seed which won the search. Choices of
    experts and recipe stay as they are; only the fusion's parameters are fitted again, for
    each fold on the other folds; the post-processing of traces stays as it is.

    Returns:
        Seed → `fused`, `audio alone`, `best audio`, … → score. A seed of which a training failed
        or was interrupted is left out.
    """
    seeds = [session.context.seed + _FIRST_SEED + n for n in range(count)]
    rows = _rows(assessment)
    names = sorted({name for row in rows.values() for _, taken in row.per_fold for name in taken})
    have = session.entries()
    specs = [
        session.training(
            name, Variant("fresh seed", seed), context=replace(session.context, seed=seed)
        )
        for seed in seeds
        for name in names
        if fresh_name(name, seed) not in have
    ]
    if specs and not session.interrupt.asked:
        _announce(session, names, len(specs))
        session.train(specs)
    confirmed = _score(session, rows, names, seeds, assessment.metric)
    if processed:
        experts = session.bank.experts(session.entries_of(session.search.finished()).values())
        for row in confirmed.values():
            row["fused"] = apply_by_fold(experts, row["fused"], processed.by_fold)
    return confirmed


def _rows(assessment: Assessment) -> dict[str, Scored]:
    """Return the rows that are confirmed: the headline, each modality alone, and single experts among these."""
    rows = {"fused": assessment.fused}
    rows |= {f"{m} alone": row for m, row in assessment.alone.items()}
    singles = assessment.singles
    rows |= {row.name: row for m, row in singles.items() if m not in assessment.alone}
    names = {name for row in rows.values() for _, taken in row.per_fold for name in taken}
    # A single expert that no ensemble of its modality takes is not worth training three times.
    for row in singles.values():
        if all(name in names for _, taken in row.per_fold for name in taken):
            rows[row.name] = row
    return rows


def fresh_name(trial: str, seed: int) -> str:
    """Return the bank's name of a trial's retraining."""
    return trial + Variant("fresh seed", seed).suffix


def _announce(session: Session, names: list[str], trainings: int) -> None:
    session.ray.start()
    assert session.ray.workers is not None
    trials = session.search.all_trials()
    took = sum(float(trials[name].user_attrs.get("seconds") or 0.0) for name in names)
    minutes = took * trainings / len(names) / session.ray.workers / 60
    session.screen.print(
        f"fresh seeds: training {trainings} experts of the headline again, about {minutes:.1f} min",
        highlight=False,
    )


def _score(
    session: Session, rows: dict[str, Scored], names: list[str], seeds: list[int], metric: str
) -> dict[int, dict[str, Scored]]:
    entries, bank = session.entries(), session.bank
    finished = session.search.finished()
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
