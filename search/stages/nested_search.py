"""`--outer`: what the honest score's shortcuts leave, measured by whole searches inside of each fold.

For each outer fold a search runs to which its speakers are test speakers: they are in none of its folds, so
neither training nor proposals, experts, fusion or recipe have met them. Its ensemble predicts them once. Beside
it stands the ordinary search of the same budget, whose honest score the same speakers get.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from datasets.protocols.folds import Folds
from datasets.protocols.split import make_folds
from datasets.sharding.index import ShardIndex
from datasets.storage.atomic import write_atomically
from ensembles.bank.prediction_tables import read_predictions
from ensembles.evaluation.assessment import Scored, scored
from ensembles.evaluation.paired_comparison import Difference, difference
from ensembles.metrics import Array, get_metric
from search.config import ConfigError, SearchConfig, to_document
from search.persistence.run_folder import RunFolder
from search.space.scope import Offer

FILE_NAME = "outer.json"
FOLDER = "outer"
_TRIALS = 12
"""Of each search, unless another number is asked for."""

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
    config: SearchConfig, offer: Offer, seconds: Mapping[str, float], searches: int
) -> tuple[SearchConfig, Offer]:
    """A search that is cheap enough to be repeated: cheapest architectures, few trials, its share of the time.

    Args:
        config: As asked; its time is for all searches together.
        offer: What it would search.
        seconds: Predicted, of a trial of each architecture.
        searches: How many there will be.

    Raises:
        ConfigError: The searches would not fit into the time.
    """
    if not config.architectures:
        offer = _cheapest(offer, seconds)
    a_trial = float(np.mean([_cost(name, seconds) for name in _keys(offer)]))
    at_once = config.workers or (1 if config.address else len(os.sched_getaffinity(0)))
    share = config.plan.minutes * 60 / searches
    fitting = int(share * at_once / max(a_trial, 1e-9))
    least = _LEAST_A_MODALITY * len(offer.modalities)
    trials = config.trials or max(least, min(_TRIALS, fitting))
    if trials > fitting:
        needed = trials * a_trial / at_once * searches / 60
        raise ConfigError(
            f"outer: {searches} searches of {trials} trials are predicted to take {needed:.1f} min, the time "
            f"budget is {config.plan.minutes:g} min. Raise --time-budget, or take fewer --outer-folds, "
            "fewer --trials or cheaper architectures (--only)."
        )
    names = [*dict.fromkeys(n for group in offer.single.values() for n in group), *offer.fusions]
    config = replace(
        config, only=",".join(names), trials=trials, time_budget=f"{max(1, round(share))}s"
    )
    return config, offer


def _cheapest(offer: Offer, seconds: Mapping[str, float]) -> Offer:
    """One architecture of each side, and no early fusion."""
    single = {
        side: tuple(sorted(names, key=lambda name: _cost(name, seconds))[:1])
        for side, names in offer.single.items()
    }
    taken = {name for names in single.values() for name in names}
    left_out = sorted(offer.networks.union(offer.fusions) - taken)
    why = "outer searches the cheapest of each modality; --only names others"
    return replace(
        offer,
        single=single,
        fusions=(),
        parts={},
        transfers={name: start for name, start in offer.transfers.items() if name in taken},
        why_not={**offer.why_not, **dict.fromkeys(left_out, why)},
    )


def _keys(offer: Offer) -> list[str]:
    """What trials are drawn from, as costs are named."""
    names = [name for group in offer.single.values() for name in group]
    return [*names, *("+".join(pair) for pair in offer.pairs)]


def _cost(name: str, seconds: Mapping[str, float]) -> float:
    """Of an architecture with a backbone, the cheapest way to start it."""
    return min(value for key, value in seconds.items() if key.split(" ")[0] == name)


def score_outer(
    run: RunFolder,
    index: ShardIndex,
    folds: Folds,
    facts: Mapping[str, Any],
    console: Console,
    search: Callable[[list[str]], int],
) -> int:
    """Runs the searches that are left, and writes and prints what all of them say.

    Args:
        run: The ordinary search, done.
        index: Its corpus.
        folds: Its split.
        facts: What `run.json` says.
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
        if code := search(_arguments(run, facts, folder, inner)):
            console.print(
                f"outer fold {fold + 1} is not done, those before it are. Continue with: {_continue_with(run)}",
                highlight=False,
                soft_wrap=True,
            )
            return code
    found = read_outer(run.path, run.config.metric, run.config.seed, len(splits))
    document = {**found.to_json(), "trials": _trials(run, facts), "of_folds": folds.count}
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


def _arguments(run: RunFolder, facts: Mapping[str, Any], folder: Path, inner: Folds) -> list[str]:
    """Of the search without a fold: new, or one that was interrupted."""
    if (folder / "config.yaml").is_file():
        return ["--resume", folder.name, "--runs-dir", str(folder.parent)]
    offer = Offer.from_json(facts["offer"])
    names = [*dict.fromkeys(n for group in offer.single.values() for n in group), *offer.fusions]
    config = replace(
        run.config,
        name=folder.name,
        runs_dir=str(folder.parent),
        resume=None,
        outer=False,
        outer_folds=None,
        only=",".join(names),
        trials=_trials(run, facts),
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


def _trials(run: RunFolder, facts: Mapping[str, Any]) -> int:
    return int(facts.get("trials_in_all") or run.config.plan.trials)


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
    """What the report says of it."""
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
