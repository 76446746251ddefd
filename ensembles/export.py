"""Exports a run's best ensemble: `python -m ensembles.export RUN --out DIR`.

RUN is a run's folder, such as runs/NAME. The exported folder holds every expert as ONNX,
which takes plain waveform, uint8 frames and features, and the same networks as safetensors
(a frozen backbone in a file of its own) and JSON; `python -m ensembles.predict DIR FILE…` uses it.
With `--max-latency-ms` or `--max-mb` it is the best ensemble within that budget.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from datasets.storage.synced_folder import KeptFolder, default_cache_folder
from ensembles import EnsembleError
from ensembles.artifact.formats import PROGRAM, PROGRAM_WARNING, parse_formats
from ensembles.artifact.manifest import FORMATS, MANIFEST, manifest_sha256
from ensembles.exporting.budget import Budget
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.pareto_front import print_choice
from ensembles.exporting.selection import under_a_budget
from ensembles.exporting.writer import export, folder_bytes, free_folder


def _here(run: str, console: Console) -> Path:
    """The run's folder on this machine; all of it, where it is kept elsewhere."""
    kept = KeptFolder.at(run, default_cache_folder())
    if kept.url:
        with console.status(f"getting {run}"):
            kept.pull(name for name in kept.names() if name not in {"checkpoints", "ray"})
    return kept.path


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: written; 2: in one line, why not."""
    parser = argparse.ArgumentParser(
        prog="python -m ensembles.export",
        description="Writes a run's best ensemble to a folder that python -m ensembles.predict uses.",
    )
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder, such as runs/NAME or s3://BUCKET/runs/NAME"
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--max-latency-ms",
        type=float,
        metavar="X",
        help="the best ensemble that takes no longer for one clip, measured here",
    )
    parser.add_argument(
        "--max-mb", type=float, metavar="Y", help="… and whose folder is no larger, in 10⁶ bytes"
    )
    parser.add_argument(
        "--format",
        default=",".join(FORMATS),
        help="what is written of each expert: onnx, torch (safetensors), pt2 (torch.export), "
        "separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--face-model",
        type=Path,
        metavar="ONNX",
        help="the YuNet that found the faces when the corpus was prepared; it is copied into the folder",
    )
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        formats = parse_formats(given.format)
        free_folder(given.out)
        budget = Budget(given.max_latency_ms, given.max_mb)
        run = read_run(_here(given.run, console))
        if str(budget) and run.summary.get("traces"):
            raise EnsembleError("A budget can be kept for classes alone: leave it out.")
        what = under_a_budget(run, budget, formats, console) if str(budget) else None
        artifact = export(
            run,
            given.out,
            what=what,
            formats=formats,
            face_model=given.face_model,
            console=console,
        )
    except (EnsembleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if PROGRAM in formats:
        print(f"warning: {PROGRAM_WARNING}", file=sys.stderr)
    if what and what.choice:
        print_choice(what.choice, what.hardware)
    print(
        f"{given.out}: {len(artifact.members)} experts, {artifact.fused.recipe}, "
        f"{folder_bytes(given.out) / 2**20:.1f} MiB. "
        f"Try: python -m ensembles.predict {given.out} FILE"
        f"{'' if 'onnx' in formats else ' --backend torch'}"
    )
    print(f"SHA-256 of {MANIFEST}, for --verify: {manifest_sha256(given.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
