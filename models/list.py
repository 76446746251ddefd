"""Every architecture at a glance: `python -m models.list [--weights DIR]`.

Modality, inputs, parameters, multiply-accumulates of a clip of three seconds, the paper it
comes from, and whether pretrained weights for it are at hand and where they would go.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from models.build import build_expert
from models.pretrained import find_checkpoints
from models.registry import Architecture, ClipShape, ModelError, architectures, get_architecture

SHAPE = ClipShape(
    num_classes=8,
    sample_rate_hz=16_000,
    seconds=3.0,
    frames=20,
    num_features=35,
    feature_steps=90,
    saliency_maps=True,
)
"""Three seconds of sound and pictures, 35 features a frame, eight classes."""

_PARTS: dict[str, Any] = {
    "audio": {"architecture": "logmel_resnet"},
    "video": {"architecture": "frame_cnn"},
}
"""Parts that early fusions are counted with."""


@dataclass(frozen=True)
class Row:
    """One architecture.

    Attributes:
        name: As in `--only`.
        modality: audio, video or early.
        inputs: What it reads of a clip.
        parameters: Of the known-good default.
        macs: Multiply-accumulates of a clip of three seconds, forward.
        paper: Authors and year.
        weights: Pretrained files that are there; those that would be taken; empty without a backbone.
    """

    name: str
    modality: str
    inputs: tuple[str, ...]
    parameters: int
    macs: float
    paper: str
    weights: dict[str, bool]


def describe(entry: Architecture, weights: Path | None) -> Row:
    """Counts an architecture's known-good default."""
    settings = dict(_PARTS) if entry.modality == "early" else {}
    expert = build_expert(entry.name, settings, SHAPE)
    files = {name: False for checkpoint in entry.checkpoints for name in checkpoint.files}
    if weights is not None and files:
        files |= {found.file: True for found in find_checkpoints(entry, weights)}
    return Row(
        name=entry.name,
        modality=entry.modality,
        inputs=entry.inputs or ("audio", "video"),
        parameters=sum(p.numel() for p in expert.parameters()),
        macs=entry.cost({**entry.default, **settings}, SHAPE),
        paper=entry.paper,
        weights=files,
    )


def _asked(only: str | None) -> list[Architecture]:
    """Those named, or all: audio, video, early fusion; raises ModelError."""
    if only:
        return [get_architecture(name.strip()) for name in only.split(",")]
    return [*architectures("audio"), *architectures("video"), *architectures("early")]


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def _weights(row: Row) -> str:
    if not row.weights:
        return ""
    present = [name for name, there in row.weights.items() if there]
    return ", ".join(present) if present else f"no {next(iter(row.weights))}"


def print_table(rows: list[Row], console: Console) -> None:
    """For people."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("architecture", "modality", "reads"):
        table.add_column(title, no_wrap=title != "reads", overflow="fold")
    for title in ("parameters", "MACs, 3 s"):
        table.add_column(title, justify="right", no_wrap=True, min_width=len(title))
    for title in ("paper", "weights"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(
            row.name,
            row.modality,
            ", ".join(row.inputs).replace("_", " "),
            _short(row.parameters),
            _short(row.macs),
            row.paper,
            _weights(row),
        )
    console.print(table)
    console.print(
        f"Early fusions are counted with {_PARTS['audio']['architecture']} and "
        f"{_PARTS['video']['architecture']} as parts. `no FILE`: backbones that start from random "
        "weights until a file of that name lies in --weights DIR (--json names every file that would "
        "be taken, docs/models.md where they come from).",
        highlight=False,
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: listed; 2: in one line, why not."""
    parser = argparse.ArgumentParser(
        prog="python -m models.list",
        description="Lists every architecture: what it reads, its size, its paper, and whether "
        "pretrained weights for it are there.",
    )
    parser.add_argument(
        "--weights",
        default=os.environ.get("EMOTION_WEIGHTS"),
        help="folder of pretrained weights (default: EMOTION_WEIGHTS)",
    )
    parser.add_argument("--only", help="these architectures, separated by commas")
    parser.add_argument("--json", action="store_true", help="for programs, every file named")
    given = parser.parse_args(arguments)
    elsewhere = "://" in (given.weights or "")
    if elsewhere:
        print(f"note: '{given.weights}' is not on this machine: not looked into", file=sys.stderr)
    weights = Path(given.weights) if given.weights and not elsewhere else None
    try:
        if weights is not None and not weights.is_dir():
            raise ModelError(f"No such folder: '{weights}' (--weights).")
        with Console(stderr=True).status("building every architecture"):
            rows = [describe(entry, weights) for entry in _asked(given.only)]
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print_table(rows, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
