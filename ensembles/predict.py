"""Predicts files with an exported ensemble: `python -m ensembles.predict DIR FILE…`.

A FILE is wav, flac, mp3, mp4, mkv, mpg or another container that FFmpeg reads, or a folder
of such. Files that cannot be used are named, the others go on; the exit code is then 2. With
`--window` each is a recording of any length, and is answered window by window. An ensemble of traces
(arousal and valence over time) answers recordings of any length step by step.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from datasets.clips import DataError
from datasets.features import read_features
from datasets.media.containers import AUDIO_SUFFIXES, CONTAINER_SUFFIXES, MediaError
from datasets.media.windows import Windows
from ensembles import EnsembleError
from ensembles.artifact.manifest import Artifact, read_artifact
from ensembles.inference.predictor import Answer, Predictor
from ensembles.inference.printers import Form, printer, trace_printer
from ensembles.inference.sliding_windows import Moment, timeline
from ensembles.inference.traces import trace_of

_MANY = 20


def find_media(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Files as given and folders as the media files below them, sorted; folders without any."""
    found: list[Path] = []
    empty: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        media = AUDIO_SUFFIXES | CONTAINER_SUFFIXES
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in media and p.is_file())
        found += inside
        empty += [] if inside else [path]
    return found, empty


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all predicted; 2: in one line each, what could not be."""
    given = _parser().parse_args(arguments)
    try:
        _check_windows(given)
        artifact = read_artifact(given.folder, verify=given.verify)
        predictor = Predictor(artifact, given.backend)
        features = read_features(given.features) if given.features else None
        paths, empty = find_media(given.files)
        for folder in empty:
            print(f"error: No sound or video files in '{folder}'.", file=sys.stderr)
        form: Form = given.form or "table"
        if artifact.answers == "traces":
            failed = _traces(predictor, paths, given, form)
        elif given.window and artifact.answers == "values":
            raise EnsembleError("This ensemble predicts values for whole clips; remove --window.")
        elif given.window:
            failed = _along(predictor, paths, given, form)
        else:
            answers = predictor.files(paths, features=features, fold=given.fold)
            failed = _show(answers, len(paths), artifact, form)
    except (EnsembleError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if failed or empty else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ensembles.predict",
        description="Predicts the emotion in each file with an exported ensemble.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="made by ensembles.export")
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="wav, flac, mp3, mp4, mkv, mpg …, or a folder of them",
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--json",
        action="store_const",
        dest="form",
        const="json",
        help="one JSON object a line and file, instead of a table",
    )
    forms.add_argument(
        "--csv",
        action="store_const",
        dest="form",
        const="csv",
        help="a header and one row a file (with --window: a window)",
    )
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="predict overlapping windows of this length along recordings of any length",
    )
    parser.add_argument(
        "--hop",
        type=float,
        metavar="SECONDS",
        help="from a window's start to the next one's (default: a third of the window)",
    )
    parser.add_argument(
        "--verify",
        metavar="SHA256",
        help="refuse DIR unless this is the SHA-256 of its ensemble.json, as its maker told it",
    )
    parser.add_argument(
        "--features",
        type=Path,
        metavar="TABLE",
        help="features, one row a clip (clip,<feature>,…) or one a frame (clip,frame,<feature>,…), "
        "joined by file name without suffix; any table that datasets.prepare reads",
    )
    parser.add_argument(
        "--fold",
        type=int,
        metavar="K",
        help="predict as fold K of the cross-validation did: its networks, and the fusion "
        "that was chosen without it",
    )
    parser.add_argument(
        "--backend",
        choices=("onnx", "torch"),
        default="onnx",
        help="onnx (default), or torch, which rebuilds the networks from safetensors",
    )
    return parser


def _check_windows(given: argparse.Namespace) -> None:
    if given.window is not None:
        Windows(given.window, given.window / 3 if given.hop is None else given.hop)
    elif given.hop is not None:
        raise DataError("--hop goes with --window.")


def _traces(predictor: Predictor, paths: list[Path], given: argparse.Namespace, form: Form) -> int:
    """Every recording over time; returns how many files failed."""
    settled = ("window", "hop", "fold", "features")
    if asked := [name for name in settled if getattr(given, name) is not None]:
        raise EnsembleError(
            f"This ensemble predicts {' and '.join(predictor.artifact.labels)} over time, where the option "
            f"has no meaning; remove --{asked[0]}."
        )
    failed = 0
    out = trace_printer(form, predictor.artifact.labels)
    for path in paths:
        try:
            with Console(stderr=True).status(f"predicting {path.name}"):
                trace = trace_of(predictor, path)
        except (MediaError, EnsembleError) as error:
            failed += 1
            print(f"error: '{path}' {error}", file=sys.stderr)
            continue
        for note in trace.notes:
            print(f"note: '{path}': {note}; predicted by experts that need none", file=sys.stderr)
        out.recording(trace)
    out.close()
    return failed


def _show(answers: Iterator[Answer], count: int, artifact: Artifact, form: Form) -> int:
    """Prints as it goes, or a table at the end; returns how many files failed."""
    if count > _MANY:
        answers = iter(
            track(
                answers,
                "predicting",
                total=count,
                console=Console(stderr=True),
                transient=True,
            )
        )
    failed = 0
    notes: Counter[str] = Counter()
    out = printer(form, artifact.labels, numbers=artifact.answers == "values")
    for answer in answers:
        if answer.error:
            failed += 1
            print(f"error: '{answer.name}' {answer.error}", file=sys.stderr)
        notes.update(answer.notes)
        out.clip(answer)
    out.close()
    _print_notes(notes, count, "files")
    return failed


def _along(predictor: Predictor, paths: list[Path], given: argparse.Namespace, form: Form) -> int:
    """Predict and show like `_show`, window by window."""
    failed = count = 0
    notes: Counter[str] = Counter()
    out = printer(form, predictor.artifact.labels, windows=True)
    if given.features:
        print(
            "note: --features are left out: those of a whole clip say nothing of a window, and "
            "of those of every frame it is not known when they are",
            file=sys.stderr,
        )
    for path in paths:
        moments: list[Moment] = []
        error = None
        try:
            with Console(stderr=True).status(f"predicting {path.name}"):
                for moment in timeline(predictor, path, given.window, given.hop, fold=given.fold):
                    moments.append(moment)
        except MediaError as broken:
            error = str(broken)
        error = error or next((m.answer.error for m in moments if m.reason and not m.silent), None)
        if error:
            failed += 1
            print(f"error: '{path}' {error}", file=sys.stderr)
        for moment in moments:
            notes.update(moment.answer.notes)
        count += len(moments)
        out.recording(str(path), moments, error)
    out.close()
    _print_notes(notes, count, "windows")
    return failed


def _print_notes(notes: Counter[str], count: int, what: str) -> None:
    for note, times in notes.items():
        print(
            f"note: {times} of {count} {what}: {note}; predicted by experts that need none",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
