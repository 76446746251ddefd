"""Findings of a run's stages, from the search's posteriors to the test speakers' score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import Assessment, Scored
from ensembles.evaluation.breakdown import detail
from ensembles.evaluation.trace_assessment import Processed
from ensembles.metrics import Array


@dataclass(frozen=True)
class HeldOutScore:
    """Score of the averaged ensemble on the test speakers.

    Attributes:
        table: Their clips, fold -1.
        log_posteriors: (n, K).
        score: Over all their clips, by the run's metric.
        touches: How often any run was scored on speakers among these before, this corpus
            and protocol.
        people: What is known of them: attribute → speaker → value.
    """

    table: ClipTable
    log_posteriors: Array
    score: float
    touches: int
    people: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        found = detail(self.table, self.log_posteriors, self.people)
        return {
            "speakers": sorted(found.speakers),
            "clips": len(self.table.clips),
            "score": self.score,
            "metrics": found.metrics,
            "accuracy_by_speaker": found.speakers,
            "groups": found.groups,
            "scored_before": self.touches,
        }


@dataclass(kw_only=True)
class Findings:
    """Findings of a run so far.

    Attributes:
        experts: Posteriors of every finished trial.
        assessment: Of all fusions of them.
        searched: Seconds of the search itself, in this process.
        trials: How many ended how.
        failures: Trial → reason.
        confirmed: Fresh seed → row → score.
        enrolled: Clips of a new speaker → score.
        reproduced: A paper's figures beside ours, as JSON; None where nothing is reproduced.
        processed: The headline's post-processing, where it is of traces.
        unseen: The test speakers' score; None without test speakers.
    """

    experts: Experts
    assessment: Assessment
    searched: float
    trials: dict[str, int]
    failures: dict[str, str]
    confirmed: dict[int, dict[str, Scored]] = field(default_factory=dict)
    enrolled: dict[int, Scored] = field(default_factory=dict)
    reproduced: dict[str, Any] | None = None
    processed: Processed | None = None
    unseen: HeldOutScore | None = None
