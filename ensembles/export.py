"""Exports a run's best ensemble: `python -m ensembles.export RUN --out DIR`.

RUN is a run's folder, such as runs/NAME. The exported folder holds every expert as ONNX,
which takes plain waveform, uint8 frames and features, and the same networks as safetensors
(a frozen backbone in a file of its own) and JSON; `python -m ensembles.predict DIR FILE…` uses it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from datasets.storage import KeptFolder, default_cache_folder
from ensembles import EnsembleError
from ensembles.artifact import (
    MANIFEST,
    SCRIPT,
    Artifact,
    Member,
    manifest_sha256,
    write_manifest,
)
from ensembles.bank import Experts, PosteriorBank
from ensembles.card import model_card
from ensembles.chosen import Chooser, Fused
from ensembles.folded import FoldedExpert, frozen_file, load_folded, read_plan, shape_of
from ensembles.metrics import check_metric
from ensembles.onnx_graph import to_onnx
from models import build_expert, get_architecture
from models.registry import ModelError

_SUMMARY_VERSION = 1
_ABOUT = ("run", "corpus", "protocol", "metric", "clips", "speakers", "commit", "versions")
_NEEDED = (*_ABOUT, "experts", "chosen_recipe", "headline", "inputs", "command")


@dataclass(frozen=True)
class FinishedRun:
    """What an export needs of a run.

    Attributes:
        path: The run's folder.
        summary: Its `summary.json`.
        experts: Every finished expert's out-of-fold posteriors.
    """

    path: Path
    summary: Mapping[str, Any]
    experts: Experts

    def weights(self, expert: str) -> Path:
        """Where an expert's networks lie."""
        return self.path / "weights" / expert


def read_run(path: Path) -> FinishedRun:
    """Opens a finished run.

    Raises:
        EnsembleError: No run, not finished, another format version, or damaged.
    """
    summary_path = path / "summary.json"
    if not path.is_dir():
        raise EnsembleError(f"No run in '{path}'.")
    if not summary_path.is_file():
        raise EnsembleError(
            f"The run in '{path}' has no finished expert yet (no summary.json). "
            f"Continue it with: python -m search.run --resume {path.name}"
        )
    try:
        summary = json.loads(summary_path.read_bytes())
        version = summary["format_version"]
        if version != _SUMMARY_VERSION:
            raise EnsembleError(
                f"The run in '{path}' is of format version {version}; this program reads version "
                f"{_SUMMARY_VERSION}."
            )
        finished = [str(name) for name in summary["experts"]]
        lacking = [key for key in _NEEDED if key not in summary]
        if lacking:
            raise KeyError(lacking[0])
        check_metric(summary["metric"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, EnsembleError):
            raise
        raise EnsembleError(
            f"'{summary_path}' is damaged or of an older program: {error!r}. Write it again with: "
            f"python -m search.run --resume {path.name}"
        ) from error
    bank = PosteriorBank.open(path / "bank")
    entries = {entry.trial: entry for entry in bank.read() if entry.percent == 100}
    lost = [name for name in finished if name not in entries]
    if lost:
        raise EnsembleError(f"The bank of '{path}' has lost the posteriors of '{lost[0]}'.")
    return FinishedRun(path, summary, bank.experts(entries[name] for name in finished))


def export(run: FinishedRun, out: Path, *, console: Console | None = None) -> Artifact:
    """Writes the run's chosen ensemble to a new folder.

    Raises:
        EnsembleError: Weights that are missing or damaged, an ONNX graph that differs from
            its network, or a folder that is there already or cannot be written.
    """
    chooser = Chooser(run.experts, run.summary["metric"])
    fused = chooser.fit(run.summary["chosen_recipe"])
    by_fold = [
        chooser.fit(choice["recipe"], [fold])
        for choice, fold in zip(
            run.summary["headline"]["fused"]["per_fold"], chooser.fitter.folds, strict=True
        )
    ]
    substitutes = chooser.substitutes(fused, _inputs(run))
    ensembles = [fused, *by_fold, *substitutes.values()]
    names = sorted({name for ensemble in ensembles for name in ensemble.experts})
    out = out.resolve()  # `.` has no name of its own
    if out.exists() and any(out.iterdir()):
        raise EnsembleError(f"'{out}' is not empty. Name another --out.")
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        (partial / "experts").mkdir(parents=True)
        members = [_write_member(run, name, partial, console) for name in names]
        artifact = _artifact(run, partial, members, fused, by_fold, substitutes)
        (partial / "model-card.md").write_text(model_card(artifact, run.summary))
        shutil.copyfile(Path(__file__).with_name("standalone.py"), partial / SCRIPT)
        write_manifest(artifact)
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


def _inputs(run: FinishedRun) -> dict[str, frozenset[str]]:
    """Expert → what it reads, of those whose weights were kept."""
    kept = [name for name in run.experts.names if run.weights(name).is_dir()]
    return {name: _inputs_of_plan(run.weights(name) / "plan.json") for name in kept}


def _inputs_of_plan(path: Path) -> frozenset[str]:
    plan = read_plan(path)
    try:
        parts = [plan["architecture"]]
        if not get_architecture(parts[0]).inputs:  # early fusion reads what its parts do
            parts = [plan["settings"][side]["architecture"] for side in ("audio", "video")]
        inputs = frozenset(kind for part in parts for kind in get_architecture(part).inputs)
        shape = shape_of(plan)
        if shape.saliency_maps and "video" in inputs:  # which settings decide
            network = build_expert(plan["architecture"], plan["settings"], shape)
            return _inputs_of_expert(FoldedExpert([network]))
        return inputs
    except (ModelError, KeyError, TypeError) as error:
        raise EnsembleError(f"'{path}' is damaged: {error!r}.") from error


def _inputs_of_expert(expert: FoldedExpert) -> frozenset[str]:
    return frozenset([*expert.kinds, *(["saliency"] if expert.reads_saliency else [])])


def _write_member(run: FinishedRun, name: str, out: Path, console: Console | None) -> Member:
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
        inputs=_inputs_of_expert(expert),
        folds=folds,
        parameters=sum(p.numel() for p in expert.networks[0].parameters()),
        frozen=plan["frozen"],
    )
    if console:
        console.print(
            f"{name}: {plan['architecture']}, {folds} networks of {member.parameters:,} parameters",
            highlight=False,
        )
    # Whoever does not look at saliency maps takes frames without.
    shape = replace(shape_of(plan), saliency_maps=expert.reads_saliency)
    try:
        graph = to_onnx(expert, shape)
    except (EnsembleError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise EnsembleError(
            f"'{name}' ({plan['architecture']}) cannot be exported: {first}"
        ) from error
    (out / member.onnx).write_bytes(graph)
    (out / member.torch).mkdir()
    frozen = frozen_file(weights, plan)
    files = [weights / "plan.json", *sorted(weights.glob("fold-*.safetensors"))]
    for path in [*files, *([frozen] if frozen else [])]:
        shutil.copyfile(path, out / member.torch / path.name)
    return member


def _artifact(
    run: FinishedRun,
    folder: Path,
    members: list[Member],
    fused: Fused,
    by_fold: list[Fused],
    substitutes: Mapping[frozenset[str], Fused],
) -> Artifact:
    inputs, headline = run.summary["inputs"], run.summary["headline"]
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
        fused=fused,
        by_fold=tuple(by_fold),
        substitutes=substitutes,
        about={
            **{key: run.summary[key] for key in _ABOUT},
            "honest_score": headline["fused"]["honest_score"],
            "interval_95": headline["fused"]["interval_95"],
            "test_speakers": run.summary.get("test_speakers"),
        },
    )


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
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        artifact = export(read_run(_here(given.run, console)), given.out, console=console)
    except (EnsembleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    print(
        f"{given.out}: {len(artifact.members)} experts, {artifact.fused.recipe}, "
        f"{size / 2**20:.1f} MiB. Try: python -m ensembles.predict {given.out} FILE"
    )
    print(f"SHA-256 of {MANIFEST}, for --verify: {manifest_sha256(given.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
