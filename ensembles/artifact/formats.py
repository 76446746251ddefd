"""An expert's files in an export: an ONNX graph, its weights, a torch.export program."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from ensembles import EnsembleError
from ensembles.artifact.fold_networks import FoldedExpert, frozen_file, load_folded, read_plan
from ensembles.artifact.manifest import FORMATS, Member
from ensembles.artifact.onnx_export import SEQUENCES, Graph, check_parity, example_batch, to_onnx
from models import ClipShape

PROGRAM = "pt2"
"""Written on request, and never read by `predict`."""
PROGRAM_WARNING = (
    f"loading a .{PROGRAM} file can run code: load those of people you trust. predict never does."
)


class UnknownLengthsError(Exception):
    """torch.export cannot make a program that takes clips of any length."""


def parse_formats(text: str) -> tuple[str, ...]:
    """`onnx,torch` → its formats, each once.

    Raises:
        EnsembleError: If one is unknown, or none of them can be predicted with.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in (*FORMATS, PROGRAM)]
    if unknown:
        raise EnsembleError(
            f"Unknown format '{unknown[0]}' (--format). Known: {', '.join((*FORMATS, PROGRAM))}."
        )
    if not set(names) & set(FORMATS):
        raise EnsembleError(
            f"--format needs onnx or torch, got '{text}': predict reads nothing else."
        )
    return names


def weight_files(weights: Path) -> list[Path]:
    """Return the files that the torch format copies of an expert: plan, a file a fold, a frozen backbone."""
    frozen = frozen_file(weights, read_plan(weights / "plan.json"))
    files = [weights / "plan.json", *sorted(weights.glob("fold-*.safetensors"))]
    return [*files, *([frozen] if frozen else [])]


def write_expert(
    expert: FoldedExpert,
    shape: ClipShape,
    weights: Path,
    member: Member,
    out: Path,
    formats: Sequence[str],
) -> bool:
    """Writes an expert in each format, each compared with the networks.

    Args:
        expert: The networks.
        shape: Of the clips that they take.
        weights: Their folder in the run.
        member: What the export calls them.
        out: The export's folder.
        formats: Of `FORMATS` and `PROGRAM`.

    Returns:
        Whether all could be written: torch.export may be unable to make its program.

    Raises:
        EnsembleError: If what was written differs from the networks.
        RuntimeError: If there can be no graph.
    """
    if "onnx" in formats:
        (out / member.onnx).write_bytes(to_onnx(expert, shape))
    if "torch" in formats:
        (out / member.torch).mkdir()
        for path in weight_files(weights):
            shutil.copyfile(path, out / member.torch / path.name)
        rebuilt = load_folded(out / member.torch)
        check_parity(expert, shape, lambda batch: _run(rebuilt, batch), "rebuilt network")
    if PROGRAM in formats:
        try:
            program = to_program(expert, shape)
        except UnknownLengthsError:
            return False
        (out / f"{member.torch}.{PROGRAM}").write_bytes(program)
    return True


def _run(expert: FoldedExpert, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        by_fold: Tensor = expert(batch)
    return by_fold


def to_program(expert: FoldedExpert, shape: ClipShape) -> bytes:
    """A torch.export program of an expert, with the inputs and outputs of its ONNX graph.

    Raises:
        UnknownLengthsError: If torch.export fails, or fixes the clips' length.
        EnsembleError: If the program differs from the network.
    """
    graph = Graph(expert).eval()
    example = example_batch(expert.kinds, shape, clips=3, share=1.0, seed=0)
    sizes = [{0: Dim.AUTO, **({1: Dim.AUTO} if n in SEQUENCES else {})} for n in graph.names]
    buffer = io.BytesIO()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch.export tells its own story of each failure
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            inputs = tuple(example[name] for name in graph.names)
            program = torch.export.export(graph, inputs, dynamic_shapes=(tuple(sizes),))
            torch.export.save(program, buffer)
            buffer.seek(0)
            loaded = torch.export.load(buffer).module()  # our own, of a moment ago
    except Exception as error:  # it raises whatever its parts do, TypeError and internal ones too
        raise UnknownLengthsError(str(error)) from error
    finally:
        logging.disable(level)

    def run(batch: dict[str, Tensor]) -> Tensor:
        try:
            with torch.no_grad():
                by_fold: Tensor = loaded(*(batch[name] for name in graph.names))[1]
        except (AssertionError, RuntimeError) as error:  # a guard on the length
            raise UnknownLengthsError(str(error)) from error
        return by_fold

    check_parity(expert, shape, run, "torch.export program")
    return buffer.getvalue()
