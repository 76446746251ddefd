"""Predicts files with an exported ensemble: `python -m ensembles.predict DIR FILE…`.

A FILE is wav, flac, mp3, mp4, mkv, mpg or another container that FFmpeg reads, or a folder
of such. Files that cannot be used are named, the others go on; the exit code is then 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from datasets.clips import DataError
from datasets.features import read_features
from datasets.media import AUDIO_SUFFIXES, CONTAINER_SUFFIXES
from ensembles import EnsembleError
from ensembles.artifact import read_artifact
from ensembles.predictor import Answer, Predictor

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
        predictor = Predictor(read_artifact(given.folder), given.backend)
        features = read_features(given.features) if given.features else None
        paths, empty = find_media(given.files)
        for folder in empty:
            print(f"error: No sound or video files in '{folder}'.", file=sys.stderr)
        answers = predictor.files(paths, features=features, fold=given.fold)
        failed = _show(answers, len(paths), as_json=given.json)
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
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line and file, instead of a table"
    )
    parser.add_argument(
        "--features",
        type=Path,
        metavar="CSV",
        help="features, one row a clip (clip,<feature>,…) or one a frame (clip,frame,<feature>,…), "
        "joined by file name without suffix",
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


def _show(answers: Iterator[Answer], count: int, *, as_json: bool) -> int:
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
    notes: dict[str, int] = {}
    table = Table("file", "emotion", "probability", "runners-up", "experts", box=box.SIMPLE)
    for answer in answers:
        if answer.error:
            failed += 1
            print(f"error: '{answer.name}' {answer.error}", file=sys.stderr)
        for note in answer.notes:
            notes[note] = notes.get(note, 0) + 1
        if as_json:
            print(json.dumps(_document(answer)), flush=True)
        elif not answer.error:
            ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])
            others = ", ".join(f"{name} {100 * value:.0f} %" for name, value in ranked[1:3])
            table.add_row(
                escape(Path(answer.name).name),  # [brackets] are no markup here
                escape(answer.label),
                f"{100 * ranked[0][1]:.1f} %",
                escape(others),
                str(len(answer.experts)),
            )
    if table.row_count:
        Console().print(table)
    for note, times in notes.items():
        print(
            f"note: {times} of {count} files: {note}; predicted by experts that need none",
            file=sys.stderr,
        )
    return failed


def _document(answer: Answer) -> dict[str, object]:
    if answer.error:
        return {"file": answer.name, "error": answer.error}
    return {
        "file": answer.name,
        "label": answer.label,
        "probabilities": dict(answer.probabilities),
        "experts": list(answer.experts),
        "notes": list(answer.notes),
    }


if __name__ == "__main__":
    sys.exit(main())
