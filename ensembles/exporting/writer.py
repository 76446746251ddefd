"""Write an exported ensemble's folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from datasets.clips import DataError
from datasets.media.crop import Crop
from datasets.media.faces import open_finder
from ensembles import EnsembleError
from ensembles.artifact.fold_networks import load_folded, read_plan, shape_of
from ensembles.artifact.formats import PROGRAM, write_expert
from ensembles.artifact.manifest import (
    FACE_MODEL,
    FORMATS,
    MANIFEST,
    Artifact,
    Member,
    write_manifest,
)
from ensembles.exporting.budget import Choice
from ensembles.exporting.finished_run import ABOUT, FinishedRun, inputs_by_expert, inputs_of_expert
from ensembles.exporting.model_card import model_card
from ensembles.exporting.pareto_front import budget_facts, budget_section, write_front
from ensembles.exporting.program import program_files
from ensembles.exporting.selection import ToExport, as_the_run_chose
from ensembles.fusion.postprocessing import PostProcessing


def export(
    run: FinishedRun,
    out: Path,
    *,
    what: ToExport | None = None,
    formats: tuple[str, ...] = FORMATS,
    face_model: Path | None = None,
    console: Console | None = None,
) -> Artifact:
    """Writes an ensemble of the run to a new folder.

    Args:
        run: The run.
        out: The folder.
        what: Which ensemble (default: the run's own choice).
        formats: In which formats every expert is written.
        face_model: YuNet's ONNX file, where frames were cropped by it; it is copied.
        console: Told of each expert.

    Raises:
        EnsembleError: Weights that are missing or damaged, something written that differs from
            its network, a folder that outgrows its budget, or that is there already or cannot
            be written; or a face model that is missing or another.
    """
    what = what or as_the_run_chose(run)
    crop = _checked_crop(run, what.experts, face_model)
    out = free_folder(out)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        (partial / "experts").mkdir(parents=True)
        members = _write_members(run, what.experts, partial, formats, console)
        artifact = _artifact(run, partial, members, what, formats)
        if face_model and artifact.frames and crop.detector == "yunet":
            shutil.copyfile(face_model, partial / FACE_MODEL)
        card = model_card(artifact, what.summary)
        if what.choice:
            card += "\n".join(budget_section(what.choice, what.hardware))
            write_front(what.choice, partial, what.hardware)
        (partial / "model-card.md").write_text(card)
        if "onnx" in formats and artifact.answers == "classes":  # which it runs, and prints
            _write_program(partial)
        write_manifest(artifact)
        _check_size(partial, what.choice)
        if out.exists():  # and is empty; it may be the working folder, or mounted
            for path in sorted(partial.iterdir(), key=lambda path: path.name == MANIFEST):
                shutil.move(path, out / path.name)
        else:
            partial.rename(out)
    except OSError as error:
        raise EnsembleError(f"Cannot write to '{out}': {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return replace(artifact, folder=out)


def _write_program(folder: Path) -> None:
    for name, source in program_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)


def _checked_crop(run: FinishedRun, experts: Iterable[str], face_model: Path | None) -> Crop:
    """Return the crop of the run's frames; raises EnsembleError if experts need a missing face model."""
    inputs = inputs_by_expert(run)
    sees = any("video" in inputs.get(name, ()) for name in experts)
    try:
        crop = Crop.from_json(run.summary["inputs"].get("crop"))
        if face_model and crop.detector != "yunet":
            raise DataError(f"The run's frames show {crop}; leave out --face-model.")
        if crop.detector == "yunet" and sees:
            open_finder(crop, face_model)
    except DataError as error:
        raise EnsembleError(str(error)) from error
    return crop


def free_folder(out: Path) -> Path:
    """The folder to write; raises EnsembleError if something is in it."""
    out = out.resolve()  # `.` has no name of its own
    if out.exists() and any(out.iterdir()):
        raise EnsembleError(f"'{out}' is not empty. Name another --out.")
    return out


def _check_size(folder: Path, choice: Choice | None) -> None:
    if choice is None or choice.budget.max_mb is None:
        return
    size = folder_bytes(folder) / 1e6
    if size > choice.budget.max_mb:
        raise EnsembleError(
            f"The folder takes {size:.4g} MB, more than --max-mb {choice.budget.max_mb:g}. "
            "Allow a little more."
        )


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_members(
    run: FinishedRun,
    names: Iterable[str],
    out: Path,
    formats: tuple[str, ...],
    console: Console | None,
) -> list[Member]:
    """Writes experts; those that torch.export can make no program of are named."""
    members, without = [], []
    for name in names:
        member, complete = _write_member(run, name, out, formats, console)
        members.append(member)
        without += [] if complete else [f"{name} ({member.architecture})"]
    if without:
        print(
            f"warning: no {PROGRAM} of {', '.join(without)}: torch.export fails on them, or fixes "
            "the length of clips; the other formats have them.",
            file=sys.stderr,
        )
    return members


def _write_member(
    run: FinishedRun, name: str, out: Path, formats: tuple[str, ...], console: Console | None
) -> tuple[Member, bool]:
    """The expert as the manifest has it, and whether every format could be written."""
    weights = run.weights(name)
    if not weights.is_dir():
        raise EnsembleError(
            f"The run has no weights of '{name}' ('{weights}'): they were not kept, or removed. "
            "Search again with --keep-weights all."
        )
    plan = read_plan(weights / "plan.json")
    expert = load_folded(weights)
    folds = len(set(run.experts.table.folds.tolist()))
    if len(expert.networks) != folds:
        raise EnsembleError(f"'{weights}' has {len(expert.networks)} of {folds} fold networks.")
    member = Member(
        name=name,
        modality=run.experts.modalities[run.experts.names.index(name)],
        architecture=plan["architecture"],
        inputs=inputs_of_expert(expert),
        folds=folds,
        parameters=sum(p.numel() for p in expert.networks[0].parameters()),
        frozen=plan["frozen"],
        label_delay=_delay(run, plan),
    )
    if console:
        console.print(
            f"{name}: {plan['architecture']}, {folds} networks of {member.parameters:,} parameters",
            highlight=False,
        )
    # Whoever does not look at saliency maps takes frames without.
    shape = replace(shape_of(plan), saliency_maps=expert.reads_saliency)
    try:
        return member, write_expert(expert, shape, weights, member, out, formats)
    except (EnsembleError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise EnsembleError(
            f"'{name}' ({plan['architecture']}) cannot be exported: {first}"
        ) from error


def _delay(run: FinishedRun, plan: dict[str, Any]) -> int:
    step = (run.summary.get("traces") or {}).get("step_seconds")
    return round(plan["training"].get("label_delay", 0.0) / step) if step else 0


def _artifact(
    run: FinishedRun,
    folder: Path,
    members: list[Member],
    what: ToExport,
    formats: tuple[str, ...],
) -> Artifact:
    inputs, headline = what.summary["inputs"], what.summary["headline"]
    read = frozenset().union(*(member.inputs for member in members))
    of_features = {"features", "feature_sequence"} & read
    return Artifact(
        folder=folder,
        labels=run.experts.table.classes,
        sample_rate_hz=inputs["sample_rate_hz"] if "audio" in read else 0,
        frames=inputs["frames"] if "video" in read else 0,
        frame_size=(inputs["frame_size"][0], inputs["frame_size"][1]),
        feature_names=tuple(inputs["feature_names"]) if of_features else (),
        members={member.name: member for member in members},
        fused=what.fused,
        by_fold=what.by_fold,
        substitutes=what.substitutes,
        about={
            **{key: run.summary[key] for key in ABOUT},
            "honest_score": headline["fused"]["honest_score"],
            "interval_95": headline["fused"]["interval_95"],
            "test_speakers": what.summary.get("test_speakers"),
            **({"budget": budget_facts(what.choice, what.hardware)} if what.choice else {}),
        },
        formats=tuple(name for name in FORMATS if name in formats),
        **_of_numbers(run),
        frame_rate=inputs.get("frame_rate", 0.0) if "video" in read else 0.0,
        crop=Crop.from_json(inputs.get("crop") if "video" in read else None),
    )


def _of_numbers(run: FinishedRun) -> dict[str, Any]:
    """Return the additional entries of an artifact of traces or values."""
    found = run.summary.get("traces")
    if not found:
        return {}
    step = float(found["step_seconds"])
    whole = found["postprocessing"]["whole"]
    return {
        "answers": "traces" if step else "values",
        "step_seconds": step,
        "window_seconds": step * run.summary["inputs"]["trace_steps"],
        "processing": PostProcessing.from_json(whole, len(run.experts.table.classes)),
    }
