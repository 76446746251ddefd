"""Count a search's trials by modality and state."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState

from search.tuning.searcher import ModalitySearcher


@dataclass
class Tally:
    """How a modality's trials stand.

    Attributes:
        running: Trials that are under way.
        finished: At the end of their schedule.
        stopped: Early, in the worse half.
        failed: For a reason that the journal has.
        best: The highest score of those that finished.
    """

    running: int = 0
    finished: int = 0
    stopped: int = 0
    failed: int = 0
    best: float | None = None


def tally(search: ModalitySearcher) -> dict[str, Tally]:
    """Modality → its trials, from the journal; what runs, from this process."""
    tallies = {}
    for modality, part in search.parts.items():
        counts = part.history.counts
        tallies[modality] = Tally(
            finished=counts[TrialState.COMPLETE],
            stopped=counts[TrialState.PRUNED],
            failed=counts[TrialState.FAIL],
            best=part.history.best,
        )
    for trial_id in list(search.running):
        tallies[search.modality_of(trial_id)].running += 1
    return tallies
