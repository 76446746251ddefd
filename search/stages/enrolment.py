"""Speaker adaptation (enrolment): score the headline with a few unlabelled clips of each new speaker.

A setting of its own, with rows of its own: its figures use clips of the scored speaker, and
are never compared to, or mixed with, the honest score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts, of_clips
from ensembles.bank.training_variant import Variant
from ensembles.evaluation.assessment import Assessment, Scored, replay
from search.data.front_end_cache import enrolment_order
from search.data.training_data import TrainingData
from search.stages.session import Session


def adapt_to_speakers(session: Session) -> None:
    """Score the headline with inputs normalised by clips of each new speaker, where requested."""
    if counts := session.run.config.enrolment_counts:
        found = session.found
        found.enrolled = score_enrolment(session, found.assessment, counts)


def score_enrolment(
    session: Session, assessment: Assessment, counts: Sequence[int]
) -> dict[int, Scored]:
    """Train the headline's experts on speaker-normalised inputs, and scores each count.

    The largest count's clips are scored in no row, so that all rows, that without enrolment
    included, are of the same clips.

    Returns:
        Number of clips → the headline's choices with experts that were normalised by so
        many; 0 → the headline's own experts. Empty where a training failed.
    """
    names = sorted({name for _, taken in assessment.fused.per_fold for name in taken})
    have = session.entries()
    missing = [n for n in names if any(_adapted(n, c) not in have for c in counts)]
    # One worker a trial: a speaker's mean needs all of the speaker's clips in one place.
    alone = replace(session.context, workers_per_trial=1)
    specs = [
        session.training(name, Variant("adapted"), enrolment=tuple(counts), context=alone)
        for name in missing
    ]
    if specs and not session.interrupt.asked:
        session.screen.print(
            f"speaker enrolment: training {len(specs)} experts of the headline on inputs "
            "normalised by speaker",
            highlight=False,
        )
        session.train(specs)
    entries, bank = session.entries(), session.bank
    if any(_adapted(n, c) not in entries for n in names for c in counts):
        return {}
    plain = bank.experts(entries[name] for name in session.search.finished() if name in entries)
    scores = {0: plain}
    for count in counts:
        fresh = bank.experts(entries[_adapted(name, count)] for name in names)
        scores[count] = plain.replace(dict(zip(names, fresh.log_posteriors, strict=True)))
    others = _others(session.data, max(counts), of_clips(plain.table))
    return {
        count: replay(
            _restrict(experts, others), assessment.fused, assessment.metric, f"{count} clips"
        )
        for count, experts in scores.items()
    }


def _adapted(trial: str, clips: int) -> str:
    """Return the bank's name of a trial whose held-out speakers were normalised by so many clips."""
    return trial + Variant("adapted", clips).suffix


def _others(data: TrainingData, count: int, table: ClipTable) -> Any:
    """Rows of the clips that enrol nobody."""
    order = enrolment_order(data.cache.index, data.cache.missing)
    enrolling = {data.index.clips[row].clip for rows in order.values() for row in rows[:count]}
    rows = np.asarray([clip not in enrolling for clip in table.clips])
    return np.flatnonzero(rows)


def _restrict(experts: Experts, rows: Any) -> Experts:
    values = experts.log_posteriors[:, rows]
    return Experts(experts.table.take(rows), experts.names, experts.modalities, values)
