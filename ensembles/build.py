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
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from ensembles import EnsembleError
from ensembles.bank.posterior_bank import Experts, PosteriorBank, Table
from ensembles.bank.prediction_tables import PredictionTable, join, read_predictions
from ensembles.bank.run_format import RUN_FORMAT, refusal
from ensembles.bank.trace_table import TraceTable
from ensembles.bank.training_variant import SEARCH
from ensembles.evaluation.assessment import Assessment, Scored, assess, scored
from ensembles.evaluation.leaderboard import LEGEND, assessment_rows, leaderboard
from ensembles.fusion.candidates import recipes_for
from ensembles.metrics import CCC, Array, Labels, check_metric, metrics_of_classes


def fit_on_training(
    files: Sequence[PredictionTable], experts: Experts, metric: str
) -> list[Scored]:
    """Fits each fusion of all files on their in-sample training posteriors, as published work did.

    Raises:
        EnsembleError: If a file lacks the training posteriors of a fold, or has some of
            speakers whom the fold holds out.
    """
    table = experts.table
    folds = sorted({files[0].folds[clip] for clip in table.clips})
    training = [_training_rows(files, fold, table) for fold in folds]
    rows = []
    for recipe in recipes_for(experts):
        if recipe.name.startswith("all:"):
            out = np.empty(experts.log_posteriors.shape[1:])
            for number, fitted_on in enumerate(training):
                fusion = recipe.build(experts.modalities).fit(*fitted_on)
                held_out = table.folds == number
                out[held_out] = fusion.rule().apply(experts.log_posteriors[:, held_out])
            name = f"{recipe.name} [in-sample fit]"
            rows.append(scored(name, table, metric, out, None, experts.names, ()))
    return rows


def _training_rows(
    files: Sequence[PredictionTable], fold: str, table: Table
) -> tuple[Array, Labels, Labels]:
    """(M, n, K) posteriors of a fold's training clips, their (n,) labels and (n,) groups of speakers."""
    first = files[0]
    clips = [clip for of, clip in first.training if of == fold]
    held_out = {first.speakers[clip] for clip in table.clips if first.folds[clip] == fold}
    if leaked := [clip for clip in clips if first.speakers[clip] in held_out]:
        raise EnsembleError(
            f"Leak: fold {fold} holds out speaker '{first.speakers[leaked[0]]}', whose clip "
            f"'{leaked[0]}' is among its training posteriors (part = train)."
        )
    for file in files:
        lost = [clip for clip in clips if (fold, clip) not in file.training]
        if lost or not clips:
            raise EnsembleError(
                f"'{file.name}' has no training posteriors (part = train) of fold {fold}"
                + (f" for clip '{lost[0]}'." if lost else ".")
            )
    values = np.stack([file.of_training(fold, clips, table.classes) for file in files])
    labels = [table.classes.index(first.labels[clip]) for clip in clips]
    _, speakers = np.unique([first.speakers[clip] for clip in clips], return_inverse=True)
    return values, np.asarray(labels, np.int64), speakers.astype(np.int64) % 4


def _experts_of_run(run: Path, bank: PosteriorBank) -> Experts:
    path = run / "summary.json"
    summary = json.loads(path.read_bytes()) if path.is_file() else {}
    if (found := summary.get("format_version", RUN_FORMAT)) != RUN_FORMAT:
        raise EnsembleError(refusal(run, found))
    # A trial that was stopped at its very end has an entry, and is no expert of the run.
    finished = summary.get("experts")
    entries = [e for e in bank.read() if e.percent == 100 and e.variant == SEARCH]
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
    known = ", ".join(metrics_of_classes())
    parser.add_argument("--metric", default="accuracy", help=f"one of {known}")
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
            files = [read_predictions(path, options.kind) for path in options.posteriors]
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
    if options.json:
        rows = [*assessment_rows(assessment), *in_sample]
        print(json.dumps([row.to_json() for row in rows], indent=1))
    else:
        _print(assessment, in_sample)
    return 0


def _print(assessment: Assessment, in_sample: list[Scored]) -> None:
    table, metric, console = assessment.table, assessment.metric, Console()
    title = (
        f"{metric}, {len(table.labels)} {'clips' if metric != CCC else 'steps'}, "
        f"{len(set(table.speakers))} speakers, {len(set(table.folds.tolist()))} folds"
    )
    console.print(leaderboard(assessment_rows(assessment), metric, title))
    console.print(LEGEND, style="dim", highlight=False)
    if in_sample:
        title = "in-sample: the fusion was fitted on posteriors of clips that the experts were trained on"
        console.print(leaderboard(in_sample, metric, title))


if __name__ == "__main__":
    sys.exit(main())
