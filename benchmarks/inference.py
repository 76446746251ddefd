"""Clips a second and latency of an exported ensemble, against its experts one after another.

`python -m benchmarks.inference [--clips 32] [--repeats 20] [--folds 5] [--threads 2]`

The ensemble is made here: five registered experts in their known-good settings (sound, sound,
recurrent sound, features, early fusion), five fold networks each, with random weights, on which
speed does not depend, fused as a product. It is exported, read again and given the same clips
three ways: `Predictor` with ONNX, `Predictor` with torch, and what one would write first: every
expert's every fold network called in turn on the plain clips, in eager mode, without gradients. The
posteriors are compared. The three are measured in turn, so that what else the machine does hits
all alike. Latency is of one clip; clips a second are those of batches of 16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common import machine, scratch
from ensembles.artifact.fitted_ensemble import Fused
from ensembles.artifact.fold_networks import load_folded
from ensembles.artifact.formats import write_expert
from ensembles.artifact.manifest import Artifact, Member, read_artifact, write_manifest
from ensembles.artifact.onnx_export import TOLERANCE, example_batch
from ensembles.fusion.rules import Pooling
from ensembles.inference.predictor import Predictor
from ensembles.metrics import Array
from models import ClipShape, build_expert
from models.registry import get_architecture

_EXPERTS: dict[str, dict[str, Any]] = {
    "functionals": {},
    "logmel_resnet": {},
    "residual_lstm": {},
    "action_units": {},
    "gated": {
        "audio": {"architecture": "logmel_resnet", "settings": {}},
        "video": {"architecture": "action_units", "settings": {}},
    },
}
_BATCH = 16
_SHAPE = ClipShape(
    num_classes=8,
    sample_rate_hz=16_000,
    seconds=3.0,
    frames=0,
    frame_size=(0, 0),
    num_features=17,
    feature_steps=0,
)

Run = Callable[[Mapping[str, Tensor]], Array]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32, help="single clips, for the latency")
    parser.add_argument("--repeats", type=int, default=10, help="batches, for the clips a second")
    parser.add_argument("--folds", type=int, default=5, help="networks of each expert")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with scratch() as folder:
        artifact = make_ensemble(Path(folder), given.folds)
        ways: dict[str, Run] = {
            "experts in turn, eager": one_after_another(artifact),
            "exported, torch": Predictor(artifact, "torch").log_posteriors,
            "exported, ONNX": Predictor(artifact, "onnx").log_posteriors,
        }
        print(
            f"{machine()}, onnxruntime {onnxruntime.__version__}; {len(os.sched_getaffinity(0))} "
            f"cores, load {os.getloadavg()[0]:.1f}; {len(artifact.members)} experts of "
            f"{given.folds} networks, clips of {_SHAPE.seconds:.0f} s"
        )
        _compare(ways)
        alone = _times(ways, 1, given.clips)
        together = _times(ways, _BATCH, given.repeats)
    print(f"{'':26}{'clips/s':>9}{'median ms':>11}{'p95 ms':>9}{'speed':>8}{'latency':>9}")
    first = next(iter(ways))
    for name in ways:
        median, rate = statistics.median(alone[name]), _BATCH / statistics.median(together[name])
        print(
            f"{name:26}{rate:9.1f}{1000 * median:11.1f}"
            f"{1000 * float(np.quantile(alone[name], 0.95)):9.1f}"
            f"{statistics.median(together[first]) / statistics.median(together[name]):7.2f}×"
            f"{statistics.median(alone[first]) / median:8.2f}×"
        )
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def make_ensemble(folder: Path, folds: int) -> Artifact:
    """Writes experts with random weights as an export does, and reads the folder."""
    members = []
    for number, (architecture, settings) in enumerate(_EXPERTS.items()):
        name = f"{get_architecture(architecture).modality}-{number:04d}"
        weights = folder / "weights" / name
        _write_weights(weights, architecture, settings, folds)
        expert = load_folded(weights)
        member = Member(
            name=name,
            modality=name.partition("-")[0],
            architecture=architecture,
            inputs=frozenset(expert.kinds),
            folds=folds,
            parameters=sum(p.numel() for p in expert.networks[0].parameters()),
        )
        out = folder / "ensemble"
        (out / "experts").mkdir(parents=True, exist_ok=True)
        write_expert(expert, _SHAPE, weights, member, out, ("onnx", "torch"))
        members.append(member)
    fused = Fused(
        "product",
        tuple(member.name for member in members),
        Pooling(np.full(len(members), 1 / len(members)), "log"),
    )
    write_manifest(
        Artifact(
            folder=folder / "ensemble",
            labels=tuple(f"class {k}" for k in range(_SHAPE.num_classes)),
            sample_rate_hz=_SHAPE.sample_rate_hz,
            frames=0,
            frame_size=(0, 0),
            feature_names=tuple(f"AU{k}" for k in range(_SHAPE.num_features)),
            members={member.name: member for member in members},
            fused=fused,
            by_fold=(fused,) * folds,
            substitutes={},
            about={},
        )
    )
    return read_artifact(folder / "ensemble")


def _write_weights(
    folder: Path, architecture: str, settings: Mapping[str, Any], folds: int
) -> None:
    """Write the files that a trial leaves."""
    folder.mkdir(parents=True)
    for fold in range(folds):
        torch.manual_seed(fold)
        network = build_expert(architecture, settings, _SHAPE)
        save_file(network.learned_state(), folder / f"fold-{fold}.safetensors")
    plan = {
        "architecture": architecture,
        "settings": dict(settings),
        "training": {},
        "shape": {**_SHAPE.__dict__, "frame_size": list(_SHAPE.frame_size)},
    }
    (folder / "plan.json").write_text(json.dumps(plan))


def one_after_another(artifact: Artifact) -> Run:
    """Every network of every expert, each from the plain clips."""
    experts = {
        name: load_folded(artifact.folder / member.torch)
        for name, member in artifact.members.items()
    }

    def run(batch: Mapping[str, Tensor]) -> Array:
        each = {}
        with torch.no_grad():
            for name, expert in experts.items():
                folds = range(len(expert.networks))
                logits = [expert.network(fold)(batch) for fold in folds]
                by_fold = torch.stack([x.log_softmax(dim=1) for x in logits])
                each[name] = by_fold.mean(dim=0).log_softmax(dim=1).double().numpy()
        return artifact.fused.apply(each)

    return run


def _clips(count: int, seed: int) -> dict[str, Tensor]:
    return example_batch(["audio", "features"], _SHAPE, clips=count, share=1.0, seed=seed)


def _compare(ways: Mapping[str, Run]) -> None:
    for count in (1, _BATCH):
        answers = [np.exp(run(_clips(count, seed=count))) for run in ways.values()]
        furthest = max(float(np.abs(answer - answers[0]).max()) for answer in answers)
        assert furthest <= TOLERANCE, f"the ways differ by {furthest:.1e}"
        print(f"largest difference of a posterior, {count} clips: {furthest:.1e}")


def _times(ways: Mapping[str, Run], clips: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way on the same batches, in turn, after two that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 2):
        batch = _clips(clips, seed=number)
        for name, run in ways.items():
            started = time.perf_counter()
            run(batch)
            times[name].append(time.perf_counter() - started)
    return {name: own[2:] for name, own in times.items()}


if __name__ == "__main__":
    main()
