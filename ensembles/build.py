"""Fuses posteriors: of a run, or anybody's.

`python -m ensembles.build RUN` or `python -m ensembles.build --posteriors A.csv B.csv …`

A posteriors file has the columns `clip,speaker,fold,label` and one column a class, with
probabilities (or logits, `--kind logits`) that were made for clips of speakers the model
was not trained on. With a column `part` (train/test) it also holds each fold's
predictions of its own training clips; `--fit-on train-posteriors` then fits the fusion on
those, as published work often did, and the result is labelled in-sample.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensembles import EnsembleError
from ensembles.bank import ClipTable, Experts, PosteriorBank
from ensembles.honesty import Assessment, Scored, assess, scored
from ensembles.metrics import CCC, METRICS, Array, check_metric, log_softmax, told
from ensembles.recipes import recipes_for
from ensembles.traces.table import TraceTable

_FIXED = ("clip", "speaker", "fold", "label")
_EXTRA = ("part", "seed")


@dataclass(frozen=True)
class PosteriorFile:
    """One expert's posteriors as read: by (fold, clip), its training side apart."""

    name: str
    classes: tuple[str, ...]
    about: dict[str, tuple[str, str]]  # clip -> speaker, label
    fold_of: dict[str, str]  # clip -> fold that holds it out
    held_out: dict[str, Array]  # clip -> (K,) log-posteriors
    training: dict[tuple[str, str], Array]  # (fold, clip) -> (K,)


def read_posteriors(path: Path, kind: str = "probabilities") -> PosteriorFile:
    """Reads one expert's posteriors.

    Args:
        path: CSV; the columns that are not fixed are the classes.
        kind: probabilities or logits.

    Raises:
        EnsembleError: Names the file, and the rows that are wrong.
    """
    if not path.is_file():
        raise EnsembleError(f"No such file: '{path}'.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        missing = [c for c in _FIXED if c not in columns]
        classes = tuple(c for c in columns if c not in (*_FIXED, *_EXTRA))
        if missing or len(classes) < 2:
            raise EnsembleError(
                f"'{path}' needs the columns clip,speaker,fold,label and one a class; it has: {', '.join(columns)}."
            )
        rows = list(reader)
    seeds = sorted({row["seed"] or "none" for row in rows}) if "seed" in columns else []
    if len(seeds) > 1:
        raise EnsembleError(
            f"'{path}' holds posteriors of several seeds ({', '.join(seeds[:5])}); keep one a file."
        )
    result = PosteriorFile(path.stem, classes, {}, {}, {}, {})
    bad = [
        f"row {n}: {why}"
        for n, row in enumerate(rows, start=2)
        if (why := _take(row, result, kind))
    ]
    if bad:
        raise EnsembleError(f"'{path}' has {len(bad)} bad rows:\n  " + "\n  ".join(bad[:20]))
    if not result.held_out:
        raise EnsembleError(f"'{path}' has no row of held-out clips.")
    return result


def _take(row: dict[str, str], into: PosteriorFile, kind: str) -> str | None:
    """Adds a row; returns what is wrong with it, or None."""
    if None in row or None in row.values():
        return "the number of fields differs from the header's"
    clip, fold, part = row["clip"], row["fold"], row.get("part", "test")
    if row["label"] not in into.classes:
        return f"label '{row['label']}' is not a class column"
    if part not in ("train", "test"):
        return f"part is '{part}', not train or test"
    try:
        values = np.asarray([float(row[name]) for name in into.classes])
    except ValueError:
        return f"clip '{clip}' has values that are not numbers"
    if not np.isfinite(values).all():
        return f"clip '{clip}' has values that are not finite"
    if kind == "probabilities":
        if (values < 0).any() or abs(values.sum() - 1.0) > 0.02:
            return (
                f"clip '{clip}': probabilities must be 0 or more and sum to 1, "
                f"got {values.sum():.3f} (or: --kind logits)"
            )
        values = np.log(np.maximum(values, 1e-12))
    known = into.about.setdefault(clip, (row["speaker"], row["label"]))
    if known != (row["speaker"], row["label"]):
        return f"clip '{clip}' has another speaker or label than in an earlier row"
    if part == "train":
        into.training[fold, clip] = log_softmax(values)
    elif clip in into.held_out:
        return f"clip '{clip}' is held out twice (one seed a file)"
    else:
        into.held_out[clip], into.fold_of[clip] = log_softmax(values), fold
    return None


def join(files: list[PosteriorFile]) -> Experts:
    """Joins experts by clip, whatever the row order.

    Raises:
        EnsembleError: Classes, clips, speakers, labels or folds differ between files, or a
            speaker is held out in several folds.
    """
    first = files[0]
    names = tuple(f.name for f in files)
    if len(set(names)) < len(names):
        raise EnsembleError("Two files have the same name; rename one: the name is the expert's.")
    for file in files[1:]:
        if set(file.classes) != set(first.classes):
            raise EnsembleError(
                f"'{file.name}' has the classes {sorted(file.classes)}, '{first.name}' {sorted(first.classes)}."
            )
        differing = sorted(set(file.held_out) ^ set(first.held_out))
        if differing:
            raise EnsembleError(
                f"{len(differing)} clips are not in both '{first.name}' and '{file.name}': {', '.join(differing[:5])}."
            )
        for clip in first.held_out:
            if file.about[clip] != first.about[clip] or file.fold_of[clip] != first.fold_of[clip]:
                raise EnsembleError(
                    f"'{first.name}' and '{file.name}' differ in speaker, label or fold of clip '{clip}'."
                )
    clips = tuple(sorted(first.held_out))
    fold_names = sorted({first.fold_of[c] for c in clips})
    side: dict[str, str] = {}
    for clip in clips:
        speaker = first.about[clip][0]
        if side.setdefault(speaker, first.fold_of[clip]) != first.fold_of[clip]:
            raise EnsembleError(
                f"Leak: speaker '{speaker}' is held out in several folds: these are not speaker-disjoint folds."
            )
    if len(fold_names) < 2:
        raise EnsembleError(
            "The posteriors have one fold; cross-fitting a fusion needs two or more."
        )
    table = ClipTable(
        clips=clips,
        speakers=tuple(first.about[c][0] for c in clips),
        folds=np.asarray([fold_names.index(first.fold_of[c]) for c in clips], np.int64),
        labels=np.asarray([first.classes.index(first.about[c][1]) for c in clips], np.int64),
        classes=first.classes,
    )
    stacked = np.stack(
        [np.stack([_in_order(f, f.held_out[c], first.classes) for c in clips]) for f in files]
    )
    return Experts(table, names, names, stacked)


def _in_order(file: PosteriorFile, values: Array, classes: tuple[str, ...]) -> Array:
    return values[[file.classes.index(name) for name in classes]]


def fit_on_training(files: list[PosteriorFile], experts: Experts, metric: str) -> list[Scored]:
    """Fits each fusion of all files on their in-sample training posteriors, as published work did.

    Raises:
        EnsembleError: If a file lacks the training posteriors of a fold, or has some of
            speakers whom the fold holds out.
    """
    table = experts.table
    fold_names = sorted({files[0].fold_of[c] for c in table.clips})
    held_out_in = {files[0].about[c][0]: files[0].fold_of[c] for c in table.clips}
    rows = []
    for recipe in recipes_for(experts):
        if not recipe.name.startswith("all:"):
            continue
        out = np.empty(experts.log_posteriors.shape[1:])
        for number, fold in enumerate(fold_names):
            clips = [c for f, c in files[0].training if f == fold]
            for clip in clips:
                speaker = files[0].about[clip][0]
                if held_out_in.get(speaker) == fold:
                    raise EnsembleError(
                        f"Leak: fold {fold} holds out speaker '{speaker}', whose clip '{clip}' is among its "
                        "training posteriors (part = train)."
                    )
            for file in files:
                lost = [c for c in clips if (fold, c) not in file.training]
                if lost or not clips:
                    raise EnsembleError(
                        f"'{file.name}' has no training posteriors (part = train) of fold {fold}"
                        + (f" for clip '{lost[0]}'." if lost else ".")
                    )
            values = np.stack(
                [
                    np.stack([_in_order(f, f.training[fold, c], table.classes) for c in clips])
                    for f in files
                ]
            )
            labels = np.asarray(
                [table.classes.index(files[0].about[c][1]) for c in clips], np.int64
            )
            speakers = np.unique([files[0].about[c][0] for c in clips], return_inverse=True)[
                1
            ].astype(np.int64)
            fusion = recipe.build(experts.modalities).fit(values, labels, speakers % 4)
            held_out = table.folds == number
            out[held_out] = fusion.predict(experts.log_posteriors[:, held_out])
        rows.append(
            scored(f"{recipe.name} [in-sample fit]", table, metric, out, None, experts.names, ())
        )
    return rows


def leaderboard(rows: list[Scored], metric: str, title: str) -> Table:
    """The table that every command prints."""

    def show(value: float | None) -> str:
        return "" if value is None else told(metric, value)

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")  # a long name takes a second line, rather than the numbers their digits
    for heading in ("honest", "95 %", "BBC", "pooled"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("search", justify="right", style="dim", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row.name),
            show(row.honest_score),
            f"{show(row.interval.low)} – {show(row.interval.high)}",
            show(row.corrected.score if row.corrected else None),
            show(row.honest_pooled),
            show(row.search_score),
            style="bold" if row.name == "fused" else None,
        )
    return table


LEGEND = """\
honest   experts and fusion chosen for each fold from the other folds only
95 %     interval of the honest score over speakers
BBC      of the best candidate, chosen on some speakers, scored on the others
search   chosen on the very folds that are scored: optimistic
fused    the recipe too is chosen fold by fold: the headline
a, v, e  best audio, video, early expert; logistic: regression on posteriors"""


def assessment_rows(assessment: Assessment) -> list[Scored]:
    """Leaderboard order: the headline first, each modality alone, then by honest score."""
    sign = 1.0 if assessment.metric == "log_loss" else -1.0
    recipes = sorted(assessment.recipes, key=lambda row: sign * row.honest_score)
    return [assessment.fused, *assessment.alone.values(), *recipes]


def _experts_of_run(run: Path, bank: PosteriorBank) -> Experts:
    summary = run / "summary.json"
    # A trial that was stopped at its very end has an entry, and is no expert of the run.
    finished = json.loads(summary.read_bytes()).get("experts") if summary.is_file() else None
    entries = [e for e in bank.read() if e.percent == 100 and "+" not in e.trial]
    entries = [e for e in entries if finished is None or e.trial in finished]
    for damaged in bank.damaged:
        print(f"warning: bank entry left out: {damaged}", file=sys.stderr)
    return bank.experts(entries)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ensembles.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, help="a run's folder, such as runs/my-run")
    parser.add_argument(
        "--posteriors",
        nargs="+",
        type=Path,
        metavar="CSV",
        help="anybody's out-of-fold posteriors, one file an expert",
    )
    parser.add_argument(
        "--kind",
        choices=["probabilities", "logits"],
        default="probabilities",
        help="what the class columns hold",
    )
    parser.add_argument(
        "--fit-on",
        choices=["held-out", "train-posteriors"],
        default="held-out",
        help="train-posteriors: fit as published fusions often were, in-sample, shown beside the cross-fitted scores",
    )
    parser.add_argument("--metric", default="accuracy", help=f"one of {', '.join(METRICS)}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Parse → read → join → assess → print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.run is None) == (options.posteriors is None):
        parser.error("name either a run or --posteriors files")
    if options.fit_on == "train-posteriors" and len(options.posteriors or ()) < 2:
        parser.error("--fit-on train-posteriors needs two or more --posteriors files")
    try:
        metric = check_metric(options.metric)
        in_sample: list[Scored] = []
        rungs: Iterable[tuple[str, Array]] | None = None
        if options.posteriors:
            files = [read_posteriors(path, options.kind) for path in options.posteriors]
            experts = join(files)
            if options.fit_on == "train-posteriors":
                in_sample = fit_on_training(files, experts, metric)
        else:
            bank = PosteriorBank.open(options.run / "bank")
            experts = _experts_of_run(options.run, bank)
            metric = CCC if isinstance(bank.table, TraceTable) else metric
            rungs = bank.rungs(experts.table)
        assessment = assess(experts, metric, rungs=rungs)
    except (EnsembleError, UnicodeDecodeError, csv.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = assessment_rows(assessment)
    if options.json:
        print(json.dumps([row.to_json() for row in [*rows, *in_sample]], indent=1))
        return 0
    table = experts.table
    console = Console()
    console.print(
        leaderboard(
            rows,
            metric,
            f"{metric}, {len(table.labels)} {'clips' if metric != CCC else 'steps'}, "
            f"{len(set(table.speakers))} speakers, {len(set(table.folds.tolist()))} folds",
        )
    )
    console.print(LEGEND, style="dim", highlight=False)
    if in_sample:
        console.print(
            leaderboard(
                in_sample,
                metric,
                "in-sample: the fusion was fitted on posteriors of clips that the experts were trained on",
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
