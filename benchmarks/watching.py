"""Measure the cost of watching a search: gauges, counting, drawing. `python -m benchmarks.watching`."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

from optuna.trial import create_trial
from rich.console import Console

from benchmarks.common import context_of, scratch
from models import ClipShape
from search.cluster import connection
from search.monitoring.gauges import show_epoch, show_rung, trial_gauges
from search.monitoring.progress import ProgressTable
from search.space.scope import scope_for
from search.training.cross_validation import FoldEpoch
from search.trial_config import TrialConfig
from search.trial_spec import TrialSpec
from search.tuning.searcher import ModalitySearcher
from search.tuning.study import open_journal
from search.tuning.tally import tally

_SHAPE = ClipShape(num_classes=4, sample_rate_hz=16_000, num_features=5)


def _mean_us(call: Callable[[], object], times: int) -> float:
    call()
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times * 1e6


def _gauges() -> None:
    spec = TrialSpec(
        trial="audio-0001",
        modality="audio",
        plan=TrialConfig("functionals"),
        context=context_of("/runs/watched"),
    )
    done = FoldEpoch(fold=0, epoch=1, loss=1.0, clips=100, seconds=0.1)
    report = {"score": 0.5, "fold_scores": {str(fold): 0.5 for fold in range(5)}}
    with trial_gauges(spec) as gauges:
        print(
            f"an epoch of a fold: {_mean_us(lambda: show_epoch(gauges, done, 10, 0), 5000):.0f} µs"
        )
        print(f"a rung of 5 folds: {_mean_us(lambda: show_rung(gauges, report), 2000):.0f} µs")


def _table(trials: int, journal: Path) -> None:
    scope = scope_for(_SHAPE, ("functionals", "action_units", "concatenation"))
    deadline = time.monotonic() + 600
    search = ModalitySearcher(
        scope, open_journal(journal), seed=0, trials=trials, deadline=deadline
    )
    for part in search.parts.values():
        part.study.add_trials(
            [create_trial(value=0.5, params={}, distributions={}) for _ in range(trials // 3)]
        )
    # As a new process finds it.
    search = ModalitySearcher(
        scope, open_journal(journal), seed=0, trials=trials, deadline=deadline
    )
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    table = ProgressTable(console, search, "watched")
    count = _mean_us(lambda: tally(search), 20)
    draw = _mean_us(lambda: console.print(table.render()), 50)
    print(f"{trials} trials: counted in {count / 1e3:.1f} ms, drawn in {draw / 1e3:.1f} ms")


def main() -> None:
    """Prints milliseconds and microseconds."""
    connection.start_ray(None, 1, dashboard=False)
    try:
        _gauges()
        with scratch() as folder:
            for trials in (300, 5000):
                _table(trials, Path(folder) / f"journal-{trials}")
    finally:
        connection.stop_ray()


if __name__ == "__main__":
    main()
