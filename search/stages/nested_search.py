"""Nested search (`--outer`): the honest score's remaining optimism, measured by a whole search inside of each fold.

For each outer fold a search runs to which its speakers are test speakers: they are in none of its folds, so
neither training nor proposals, experts, fusion or recipe have met them. Its ensemble predicts them once. Beside
it stands the ordinary search of the same budget, whose honest score the same speakers get.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from datasets.protocols.folds import Folds
from datasets.sharding.index import ShardIndex
from datasets.storage.atomic import write_atomically
from ensembles.bank.prediction_tables import read_predictions
from ensembles.evaluation.assessment import Scored, scored
from ensembles.evaluation.paired_comparison import Difference, difference
from ensembles.metrics import Array, get_metric
from search.config import to_document
from search.persistence.run_folder import RunFolder
from search.space.scope import SearchScope
from search.stages.nested_splits import architectures_of, inner_splits, outer_count
from search.stages.session import Session

FILE_NAME = "outer.json"
FOLDER = "outer"


def search_nested(session: Session) -> int:
    """Run the nested search of a finished run; return the exit code of a part that failed, or 0."""
    if not session.run.config.outer:
        return 0
    data, trials = session.data, session.record.trials_in_all
    scope = session.search.scope
    return score_outer(
        session.run, data.index, data.folds, scope, trials, Console(), in_own_process
    )


def score_outer(
    run: RunFolder,
    index: ShardIndex,
    folds: Folds,
    scope: SearchScope,
    trials: int,
    console: Console,
    search: Callable[[list[str]], int],
) -> int:
    """Runs the searches that are left, and writes and prints what all of them say.

    Args:
        run: The ordinary search, done.
        index: Its corpus.
        folds: Its split.
        scope: What it searched.
        trials: How many.
        console: Where to.
        search: Runs `search.run` with arguments; returns its exit code.

    Returns:
        0, or the exit code of a search that did not come to its end.
    """
    splits = inner_splits(index, folds, outer_count(run.config, folds))
    for fold, inner in enumerate(splits):
        folder = run.path / FOLDER / f"fold-{fold}"
        if _is_done(folder):
            continue
        console.print(
            f"outer fold {fold + 1} of {len(splits)}: a search without {', '.join(inner.test_speakers)}",
            highlight=False,
        )
        if code := search(_arguments(run, scope, trials, folder, inner)):
            console.print(
                f"outer fold {fold + 1} is not done, those before it are. Continue with: {_continue_with(run)}",
                highlight=False,
                soft_wrap=True,
            )
            return code
    found = read_outer(run.path, run.config.metric, run.config.seed, len(splits))
    document = {**found.to_json(), "trials": trials, "of_folds": folds.count}
    write_atomically(run.path / FILE_NAME, json.dumps(document, indent=1).encode())
    console.print(in_words(found, run.config.metric), highlight=False, soft_wrap=True)
    return 0


def in_own_process(arguments: list[str]) -> int:
    """Runs `search.run` with arguments; returns its exit code.

    Ray started several times in one process has ended it with a segmentation fault.
    """
    child = subprocess.Popen([sys.executable, "-m", "search.run", *arguments])
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while True:
            with suppress(KeyboardInterrupt):  # Ctrl-C has reached it too; it ends in its own way
                return child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _continue_with(run: RunFolder) -> str:
    folds = run.config.outer_folds
    return f"{run.resume_command} --outer" + (f" --outer-folds {folds}" if folds else "")


def _is_done(folder: Path) -> bool:
    """Whether a search has come to its end: it has scored its test speakers."""
    summary = folder / "summary.json"
    return (
        summary.is_file()
        and (folder / "predictions_test.csv").is_file()
        and json.loads(summary.read_text(encoding="utf-8")).get("test_speakers") is not None
    )


def _arguments(
    run: RunFolder, scope: SearchScope, trials: int, folder: Path, inner: Folds
) -> list[str]:
    """Return the arguments of the search without a fold: new, or one that was interrupted."""
    if (folder / "config.yaml").is_file():
        return ["--resume", folder.name, "--runs-dir", str(folder.parent)]
    config = replace(
        run.config,
        name=folder.name,
        runs_dir=str(folder.parent),
        resume=None,
        outer=False,
        outer_folds=None,
        only=",".join(architectures_of(scope)),
        trials=trials,
        protocol=inner.protocol,
        test_speakers=",".join(inner.test_speakers),
        confirm_seeds=0,
        enrolment=None,
        keep_weights="chosen",
    )
    folder.parent.mkdir(exist_ok=True)
    asked = folder.with_suffix(".yaml")
    document = {key: value for key, value in to_document(config).items() if value is not None}
    write_atomically(asked, yaml.safe_dump(document, sort_keys=False).encode())
    return ["--config", str(asked)]


@dataclass(frozen=True)
class Outer:
    """Both scores on the same clips.

    Attributes:
        nested: By searches that had never met the speakers.
        ordinary: The ordinary search's honest score.
        shortcuts: How much better the ordinary one looks.
        search_score: The best that the ordinary search saw; over all of its folds.
    """

    nested: Scored
    ordinary: Scored
    shortcuts: Difference
    search_score: float | None

    def to_json(self) -> dict[str, Any]:
        """For `outer.json`; docs/run-folder.md is its schema."""
        table = self.nested.log_posteriors
        return {
            "format_version": 1,
            "folds": len(self.nested.fold_scores),
            "clips": len(table),
            "nested": _row(self.nested),
            "ordinary": _row(self.ordinary),
            "shortcuts": self.shortcuts.to_json(),
            "search_score": self.search_score,
        }


def _row(row: Scored) -> dict[str, Any]:
    return {
        "score": row.honest_score,
        "score_pooled": row.honest_pooled,
        "interval_95": [row.interval.low, row.interval.high],
        "interval_method": row.interval.method,
        "fold_scores": list(row.fold_scores),
    }


def read_outer(path: Path, metric: str, seed: int, count: int) -> Outer:
    """Scores what the searches have left.

    Args:
        path: The ordinary search's folder.
        metric: Of both.
        seed: Whose predictions of the ordinary search count.
        count: Outer folds.
    """
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    ours = read_predictions(path / "predictions.csv", seed=seed)
    unseen: dict[str, Array] = {}
    for fold in range(count):
        found = read_predictions(path / FOLDER / f"fold-{fold}" / "predictions_test.csv")
        posteriors = found.log_posteriors(found.held_out, ours.classes)
        unseen |= zip(found.held_out, posteriors, strict=True)
    clips = [c for c in ours.held_out if int(ours.folds[c]) < count and c in unseen]
    table = ours.clip_table(clips, [str(fold) for fold in range(count)])
    nested = np.stack([unseen[clip] for clip in clips])
    ordinary = ours.log_posteriors(clips, ours.classes)
    return Outer(
        scored("nested", table, metric, nested, None, (), ()),
        scored("ordinary", table, metric, ordinary, None, (), ()),
        difference(metric, table, ordinary, nested),
        summary["headline"]["fused"]["search_score"],
    )


def in_words(found: Outer, metric: str) -> str:
    """Describe it for the report."""
    scale = get_metric(metric)

    def show(row: Scored) -> str:
        interval = scale.format_interval(row.interval.low, row.interval.high)
        return f"{scale.format(row.honest_score)} ({interval})"

    apart = scale.format_differences(
        found.shortcuts.value, found.shortcuts.low, found.shortcuts.high
    )
    best = "–" if found.search_score is None else scale.format(found.search_score)
    return (
        f"Nested search, {len(found.nested.fold_scores)} outer folds, {len(found.nested.log_posteriors)} clips: "
        f"{metric} {show(found.nested)} on speakers that no part of their search had met\n"
        f"  the ordinary search of the same budget, honest, same clips: {show(found.ordinary)}; "
        f"search score {best}\n"
        f"  what the shortcuts leave (ordinary less nested, 95 % over speakers): {apart}\n"
        "  The nested ensemble averages its folds' networks, which had fewer speakers to learn from; "
        "see docs/honesty.md."
    )
