"""A trial in the process that trains it: what it trains, and all that it leaves. No scheduling here."""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.storage.synced_folder import KeptFolder, default_cache_folder, local_folder
from search import metrics

if TYPE_CHECKING:
    from search.train import FoldEpoch, LockstepTrial, RungResult
    from search.workers import Workers

Spec = dict[str, Any]
"""JSON that says all: `trial`, `modality`, `plan`, and the run's `context` (data, folds, paths)."""


def train(spec: Spec) -> Iterator[dict[str, Any]]:
    """Trains one trial; yields percent, score, loss and more at every rung, when all of it is on disk.

    A failure is yielded as `failed` with its reason instead of raised: the search goes on.
    """
    log = TrialLog(spec)
    try:
        from search.workers import Workers

        yield from train_part(spec, log, Workers())
    except Exception as error:  # any trial may fail in its own way; the journal keeps the reason
        if not isinstance(error, StorageError):
            log.write(traceback.format_exc())
        yield failed_by(error)


def train_part(spec: Spec, log: TrialLog, workers: Workers) -> Iterator[dict[str, Any]]:
    """What one of several workers does of it; the first one's reports count, the others' are empty."""
    import torch

    from search.checkpoint import Checkpoint, Progress
    from search.plan import TrialPlan
    from search.train import LockstepTrial

    context = spec["context"]
    torch.set_num_threads(max(1, int(context["cpus_per_trial"])))
    started = time.monotonic()
    trial = LockstepTrial(
        TrialPlan.from_json(spec["plan"]),
        open_data(context, workers),
        seed=context["seed"],
        device=context["device"],
        precision=context["precision"],
        workers=workers,
        by_speaker="enrolment" in spec,
        alone=gpus_for(spec) in (0.0, 1.0),
    )
    checkpoint = Checkpoint(kept_run(context), spec["trial"], _identity(spec))
    before = checkpoint.load()
    if not workers.agree(before.trial["epoch"] if before else 0):
        before = None
    if before:
        trial.load_state_dict(before.trial)
    reports = before.reports if before else []
    if workers.rank:  # one of several writes and tells
        for _ in chain(reports, trial.run()):
            yield {}
        return
    setup = time.monotonic() - started
    log.write(
        f"{describe(spec['plan'])}, {trial.precision}, setup {setup:.2f} s{_here()}\n"
        + (f"continued after epoch {trial.epoch}" if before else json.dumps(spec["plan"]))
    )
    # Told again: who judges them may have died before they were written down.
    yield from reports
    if before:
        started = time.monotonic() - before.seconds

    def save() -> None:
        if checkpoint.due:
            seconds = time.monotonic() - started
            with _writing(log.run):
                checkpoint.save(Progress(trial.state_dict(), reports, seconds))

    with metrics.trial_gauges(spec, describe(spec["plan"])) as gauges:
        record = _Record(spec, trial, log, started, gauges)
        record.told = int(reports[-1]["epoch"]) if reports else 0
        for rung in trial.run(save, record.epoch):
            reports.append(record.rung(rung))
            yield reports[-1]


def _here() -> str:
    """Which host this is, where Ray knows."""
    return f" on {ray.util.get_node_ip_address()}" if ray.is_initialized() else ""


def _identity(spec: Spec) -> dict[str, Any]:
    """What a trial's networks are a function of."""
    context = spec["context"]
    keys = (
        "seed",
        "checksum",
        "classes",
        "target",
        "protocol",
        "test_speakers",
        "folds",
        "skip_corrupt",
    )
    return {
        "plan": spec["plan"],
        "enrolment": spec.get("enrolment"),
        **{key: context[key] for key in keys},
        **({"soft_labels": True} if context["soft_labels"] else {}),
    }


class _Record:
    """What a trial leaves at its rungs: posteriors, its networks at the end, a line of its log."""

    def __init__(
        self,
        spec: Spec,
        trial: LockstepTrial,
        log: TrialLog,
        started: float,
        gauges: metrics.Gauges,
    ) -> None:
        import torch

        from ensembles.bank.posterior_bank import TABLE_FILES, PosteriorBank

        self.spec, self.trial, self.log, self.started = spec, trial, log, started
        self.gauges = gauges
        self.told = 0  # epochs whose losses are in a report
        self.clips, self.seconds = 0, 0.0  # trained on since then, and how long
        self.on_gpu = spec["context"]["device"] == "cuda"
        if self.on_gpu:  # of this trial, not of those that the process trained before
            torch.cuda.reset_peak_memory_stats()
        self.run = kept_run(spec["context"])
        for name in TABLE_FILES:
            self.run.fetch(f"bank/{name}")
        self.bank = PosteriorBank.open(self.run.path / "bank")

    def epoch(self, done: FoldEpoch) -> None:
        """After every epoch of every fold."""
        self.clips += done.clips
        self.seconds += done.seconds
        epochs = self.trial.plan.training.epochs
        metrics.show_epoch(self.gauges, done, epochs, self._gpu_memory_bytes())

    def _gpu_memory_bytes(self) -> int:
        if not self.on_gpu:
            return 0
        import torch

        return torch.cuda.max_memory_allocated()

    def rung(self, rung: RungResult) -> dict[str, Any]:
        """Writes what there is, and returns the report: it is sent when all is on disk."""
        with _writing(self.run):
            self._leave(rung)
        return self._report(rung)

    def _leave(self, rung: RungResult) -> None:
        if "enrolment" not in self.spec:
            self._write(self.spec["trial"], rung, rung.logits)
        elif rung.percent == 100:
            for count in self.spec["enrolment"]:
                title = enrolled_name(self.spec["trial"].removesuffix("+enrolled"), count)
                self._write(title, rung, self.trial.out_of_fold(enrolled=count))
        if rung.percent == 100 and self.spec.get("keep_weights", True):
            self._write_weights()

    def _report(self, rung: RungResult) -> dict[str, Any]:
        metric, by_fold = self.spec["context"]["metric"], self._scores(rung.logits)
        score, sign = float(np.mean(list(by_fold.values()))), -1 if metric == "log_loss" else 1
        report = {
            "percent": rung.percent,
            "epoch": rung.epoch,
            "score": sign * score,
            "fold_scores": {str(fold): sign * value for fold, value in by_fold.items()},
            "train_loss": rung.train_loss,
            "epoch_losses": self.trial.losses[self.told :],
            "clips_per_second": self.clips / max(self.seconds, 1e-9),
            "gpu_memory_mib": self._gpu_memory_bytes() / 2**20,
            "seconds": time.monotonic() - self.started,
            "architecture": describe(self.spec["plan"]),
        }
        self.told, self.clips, self.seconds = rung.epoch, 0, 0.0
        metrics.show_rung(self.gauges, report)
        self.log.write(
            f"{rung.percent:3d} %, epoch {rung.epoch}: {metric} {score:.4f} "
            f"(folds {' '.join(f'{value:.3f}' for value in by_fold.values())}), "
            f"training loss {rung.train_loss:.4f} "
            f"(folds {' '.join(f'{value:.3f}' for value in self.trial.losses[-1])}), "
            f"{report['clips_per_second']:.0f} clips/s, {report['seconds']:.1f} s"
            + (
                " (held-out speakers less the mean of all their clips)"
                if "enrolment" in self.spec
                else ""
            )
            + self._in_parts()
        )
        return report

    def _in_parts(self) -> str:
        """What became of batches for which the memory did not suffice."""
        parts = max(trainer.parts for trainer in self.trial.trainers)
        size = self.trial.plan.training.batch_size
        return f"; out of memory: batches of {size} in {parts} parts" if parts > 1 else ""

    def _write(self, title: str, rung: RungResult, logits: NDArray[np.float32]) -> None:
        from ensembles.bank.posterior_bank import BankEntry

        written = self.bank.write(
            BankEntry(
                trial=title,
                modality=self.spec["modality"],
                architecture=self.trial.plan.architecture,
                percent=rung.percent,
                epoch=rung.epoch,
                seed=self.spec["context"]["seed"],
                logits=logits,
            )
        )
        self.run.send(f"bank/{written.name}")

    def _write_weights(self) -> None:
        """The networks as safetensors, one file a fold; `plan.json` comes last: it is complete."""
        from safetensors.torch import save

        from datasets.storage.atomic import write_atomically

        name = f"weights/{self.spec['trial']}"
        folder = self.run.path / name
        folder.mkdir(parents=True, exist_ok=True)
        for trainer in self.trial.trainers:
            state = trainer.predictor.learned_state()
            tensors = {key: x.detach().cpu().contiguous() for key, x in state.items()}
            write_atomically(folder / f"fold-{trainer.fold}.safetensors", save(tensors))
            self.run.send(f"{name}/fold-{trainer.fold}.safetensors")
        plan = {
            **self.spec["plan"],
            "shape": self.trial.data.shape.__dict__,
            "frozen": self._write_frozen(),
        }
        write_atomically(folder / "plan.json", json.dumps(plan).encode())
        self.run.send(f"{name}/plan.json")

    def _write_frozen(self) -> str | None:
        """Frozen backbones are alike in all folds and trials: one file a run; its name."""
        from safetensors.torch import save

        from datasets.storage.atomic import write_atomically
        from models.pretrained import FrozenBackbone

        expert = self.trial.trainers[0].expert
        state = expert.frozen_state()
        if not state:
            return None
        fronts = [expert.encoder(kind).frontend for kind in expert.kinds]
        names = " ".join(f.name for f in fronts if isinstance(f, FrozenBackbone))
        name = f"frozen-{hashlib.sha256(names.encode()).hexdigest()[:24]}.safetensors"
        path = self.run.path / "weights" / name
        if not path.exists():
            tensors = {key: x.detach().cpu().contiguous() for key, x in state.items()}
            write_atomically(path, save(tensors))
        if self.run.url and f"weights/{name}" not in self.run.sizes("weights"):
            self.run.send(f"weights/{name}")
        return name

    def _scores(self, logits: NDArray[np.float32]) -> dict[int, float]:
        """Of each fold, of the clips that have a prediction."""
        return self.bank.table.fold_scores(self.spec["context"]["metric"], logits)


class TrialLog:
    """A trial's own log: in the run's folder, and twice where the dashboard looks.

    The page of its task shows what it prints; the Logs page lists files, so one has its name.
    """

    def __init__(self, spec: Spec) -> None:
        self.run, self.name = kept_run(spec["context"]), f"logs/{spec['trial']}.log"
        own = self.run.path / self.name
        with _writing(self.run):
            own.parent.mkdir(parents=True, exist_ok=True)
            self.run.fetch(self.name)  # of the host where the trial was before
        self.paths = [own]
        if folder := _ray_logs():
            self.paths.append(folder / f"trial-{self.run.path.name}-{own.name}")

    def write(self, text: str) -> None:
        """Appends."""
        print(text, file=sys.stderr, flush=True)  # stderr is the tab that opens first
        with _writing(self.run):
            for path in self.paths:
                with path.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
            self.run.send(self.name)


def _ray_logs() -> Path | None:
    """Ray's log folder on this host, by where it has sent what this process prints."""
    printed = Path(f"/proc/self/fd/{sys.__stderr__.fileno()}") if sys.__stderr__ else None
    if printed is None or not ray.is_initialized() or not printed.is_symlink():
        return None
    target = printed.readlink()
    return target.parent if target.name.startswith("worker-") else None


def enrolled_name(trial: str, clips: int) -> str:
    """What the bank calls a trial whose held-out speakers were normalised by so many clips."""
    return f"{trial}+enrol{clips}"


def describe(plan: dict[str, Any]) -> str:
    """`logmel_resnet`, `cnn14 frozen`, or of early fusion `functionals+cnn3d`, `gated(…+…)`."""
    name, settings = str(plan["architecture"]), plan["settings"]
    sides = [settings[m]["architecture"] for m in ("audio", "video") if m in settings]
    if sides:
        joined = "+".join(sides)
        return joined if name == "concatenation" else f"{name}({joined})"
    mode = settings.get("transfer", "scratch")
    return name if mode == "scratch" else f"{name} {mode}"


def _cost_key(plan: dict[str, Any]) -> str:
    """What the cost of a trial is found by (`search.cost.Cost`)."""
    sides = [
        plan["settings"][m]["architecture"] for m in ("audio", "video") if m in plan["settings"]
    ]
    mode = plan["settings"].get("transfer")
    return "+".join(sides) or (f"{plan['architecture']} {mode}" if mode else plan["architecture"])


def gpus_for(spec: Spec) -> float:
    """What a trial takes of a GPU: a share where it shares one, one a worker, or 0 without."""
    context = spec["context"]
    if context["device"] == "cpu":
        return 0.0
    if context["workers_per_trial"] > 1:
        return 1.0  # NCCL does not let workers share one
    measured = context["gpu_share"].get(_cost_key(spec["plan"]), 1.0)
    return min(1.0, float(measured) * float(spec.get("times_the_share", 1)))


def take_more(spec: Spec) -> bool:
    """Twice the share of a GPU for a trial that had too little memory; False if it had all."""
    if gpus_for(spec) in (0.0, 1.0):
        return False
    spec["times_the_share"] = 2 * spec.get("times_the_share", 1)
    return True


def kept_run(context: dict[str, Any]) -> KeptFolder:
    """The run's folder as this process sees it."""
    return KeptFolder.at(context["run"], default_cache_folder())


def failed(why: str) -> dict[str, Any]:
    """The report of a trial that came to nothing."""
    return {"failed": why, "percent": 0, "score": float("nan")}


def failed_by(error: Exception) -> dict[str, Any]:
    """The same, marked where it is not the trial's own fault: too little memory, storage, shards."""
    from search.train import is_out_of_memory

    not_its_own = isinstance(error, StorageError | DataError)
    report = failed(str(error).removesuffix(".") if not_its_own else _reason(error))
    if is_out_of_memory(error):
        report["out_of_memory"] = True
    if not_its_own:
        report["storage"] = True
    return report


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text}"[:300]


class StorageError(OSError):
    """The run's folder takes nothing more."""


@contextmanager
def _writing(run: KeptFolder) -> Iterator[None]:
    """Tells what the storage refuses from other mistakes."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"the run's folder '{run.url or run.path}': {why}") from error


_OPEN: dict[str, Any] = {}


def open_data(context: dict[str, Any], workers: Workers) -> Any:
    """The corpus, or this worker's part; opened once a process and kept for the next trials."""
    from datasets.protocols.split import make_folds
    from datasets.sharding.clip_cache import open_cache
    from datasets.sharding.index import read_index
    from search.inputs import TrainingData

    keys = (
        "data",
        "classes",
        "target",
        "protocol",
        "test_speakers",
        "checksum",
        "cache_folder",
        "skip_corrupt",
        "soft_labels",
        "weights",
    )
    part = (workers.rank, workers.count)
    identity = json.dumps([{key: context[key] for key in keys}, part])
    if identity not in _OPEN:
        index = read_index(context["data"])
        if context["classes"]:
            index = index.restrict(tuple(context["classes"]))
        cache = open_cache(
            index if workers.count == 1 else index.part_of(*part),
            Path(context["cache_folder"]) if context["cache_folder"] else None,
            max_bytes=int(context["cache_gb"] * 2**30),
            skip_corrupt=context["skip_corrupt"],
        )
        folds = make_folds(index, context["protocol"], context["test_speakers"])
        assert folds.fingerprint == context["folds"], (
            "a worker split the corpus otherwise than the driver"
        )
        _OPEN.clear()
        place = context["weights"]
        find = partial(local_folder, place, default_cache_folder()) if place else None
        whole = index if workers.count > 1 else None
        about = {"target": context["target"], "soft_labels": context["soft_labels"]}
        _OPEN[identity] = TrainingData(cache, folds, whole, weights=find, **about)
    return _OPEN[identity]
