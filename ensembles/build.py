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
from pathlib import Path

import numpy as np
from rich.console import Console

from ensembles import EnsembleError
from ensembles.bank.posterior_bank import Experts, PosteriorBank
from ensembles.bank.prediction_tables import PosteriorFile, in_order, join, read_posteriors
from ensembles.bank.run_format import RUN_FORMAT, refusal
from ensembles.bank.trace_table import TraceTable
from ensembles.bank.variant import SEARCH
from ensembles.evaluation.assessment import Scored, assess, scored
from ensembles.evaluation.leaderboard import LEGEND, assessment_rows, leaderboard
from ensembles.fusion.candidates import recipes_for
from ensembles.metrics import CCC, Array, check_metric, metrics_of_classes


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
                    np.stack([in_order(f, f.training[fold, c], table.classes) for c in clips])
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
            out[held_out] = fusion.rule().apply(experts.log_posteriors[:, held_out])
        rows.append(
            scored(f"{recipe.name} [in-sample fit]", table, metric, out, None, experts.names, ())
        )
    return rows


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
