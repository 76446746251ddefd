"""Record a trial while it trains: bank entries, weights, checkpoints, gauges and its log."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray
from numpy.typing import NDArray

from datasets.storage.synced_folder import KeptFolder, default_cache_folder
from ensembles.bank.training_variant import Variant
from ensembles.metrics import get_metric
from search.execution.reports import Report, writing_run
from search.monitoring import gauges
from search.trial_spec import TrialSpec

if TYPE_CHECKING:
    from search.training.cross_validation import FoldEpoch, LockstepTrial, RungResult


class Recorder:
    """Recorder of what a trial leaves at its rungs: posteriors, its networks at the end, a line of its log."""

    def __init__(
        self,
        spec: TrialSpec,
        trial: LockstepTrial,
        log: TrialLog,
        gauges: gauges.Gauges,
        *,
        started: float,
        reported_epochs: int,
    ) -> None:
        import torch

        from ensembles.bank.posterior_bank import TABLE_FILES, PosteriorBank

        self.spec, self.trial, self.log, self.started = spec, trial, log, started
        self.gauges = gauges
        self.reported_epochs = reported_epochs  # whose losses are in a report
        self.clips, self.seconds = 0, 0.0  # trained on since then, and how long
        self.on_gpu = spec.context.device == "cuda"
        if self.on_gpu:  # of this trial, not of those that the process trained before
            torch.cuda.reset_peak_memory_stats()
        self.run = log.run
        for name in TABLE_FILES:
            self.run.fetch(f"bank/{name}")
        self.bank = PosteriorBank.open(self.run.path / "bank")

    def epoch(self, done: FoldEpoch) -> None:
        """After every epoch of every fold."""
        self.clips += done.clips
        self.seconds += done.seconds
        epochs = self.trial.plan.training.epochs
        gauges.show_epoch(self.gauges, done, epochs, self._gpu_memory_bytes())

    def _gpu_memory_bytes(self) -> int:
        if not self.on_gpu:
            return 0
        import torch

        return torch.cuda.max_memory_allocated()

    def rung(self, rung: RungResult) -> Report:
        """Writes what there is, and returns the report: it is sent when all is on disk."""
        with writing_run(self.run):
            self._leave(rung)
        return self._report(rung)

    def _leave(self, rung: RungResult) -> None:
        if not self.spec.enrolment:
            self._write(self.spec.variant, rung, rung.logits)
        elif rung.percent == 100:
            for count in self.spec.enrolment:
                logits = self.trial.out_of_fold(enrolled=count)
                self._write(Variant("adapted", count), rung, logits)
        if rung.percent == 100 and self.spec.keep_weights:
            self._write_weights()

    def _report(self, rung: RungResult) -> Report:
        metric, by_fold = self.spec.context.metric, self._scores(rung.logits)
        score, sign = float(np.mean(list(by_fold.values()))), get_metric(metric).sign
        report: Report = {
            "percent": rung.percent,
            "epoch": rung.epoch,
            "score": sign * score,
            "fold_scores": {str(fold): sign * value for fold, value in by_fold.items()},
            "train_loss": rung.train_loss,
            "epoch_losses": self.trial.losses[self.reported_epochs :],
            "clips_per_second": self.clips / max(self.seconds, 1e-9),
            "gpu_memory_mib": self._gpu_memory_bytes() / 2**20,
            "seconds": time.monotonic() - self.started,
            "architecture": self.spec.plan.title,
        }
        self.reported_epochs, self.clips, self.seconds = rung.epoch, 0, 0.0
        gauges.show_rung(self.gauges, report)
        self.log.write(
            f"{rung.percent:3d} %, epoch {rung.epoch}: {metric} {score:.4f} "
            f"(folds {' '.join(f'{value:.3f}' for value in by_fold.values())}), "
            f"training loss {rung.train_loss:.4f} "
            f"(folds {' '.join(f'{value:.3f}' for value in self.trial.losses[-1])}), "
            f"{report['clips_per_second']:.0f} clips/s, {report['seconds']:.1f} s"
            + (
                " (held-out speakers less the mean of all their clips)"
                if self.spec.enrolment
                else ""
            )
            + self._in_parts()
        )
        return report

    def _in_parts(self) -> str:
        """Describe how batches were split for which the memory did not suffice."""
        parts = max(trainer.micro_batches.parts for trainer in self.trial.trainers)
        size = self.trial.plan.training.batch_size
        return f"; out of memory: batches of {size} in {parts} parts" if parts > 1 else ""

    def _write(self, variant: Variant, rung: RungResult, logits: NDArray[np.float32]) -> None:
        from ensembles.bank.posterior_bank import BankEntry

        written = self.bank.write(
            BankEntry(
                trial=self.spec.trial,
                variant=variant,
                modality=self.spec.modality,
                architecture=self.trial.plan.architecture,
                percent=rung.percent,
                epoch=rung.epoch,
                seed=self.spec.context.seed,
                logits=logits,
            )
        )
        self.run.send(f"bank/{written.name}")

    def _write_weights(self) -> None:
        """The networks as safetensors, one file a fold; `plan.json` comes last: it is complete."""
        from safetensors.torch import save

        from datasets.storage.atomic import write_atomically

        name = f"weights/{self.spec.name}"
        folder = self.run.path / name
        folder.mkdir(parents=True, exist_ok=True)
        for trainer in self.trial.trainers:
            state = trainer.predictor.learned_state()
            tensors = {key: x.detach().cpu().contiguous() for key, x in state.items()}
            write_atomically(folder / f"fold-{trainer.fold}.safetensors", save(tensors))
            self.run.send(f"{name}/fold-{trainer.fold}.safetensors")
        plan = {
            **self.spec.plan.to_json(),
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
        """Return the score of each fold, on the clips that have a prediction."""
        return self.bank.table.fold_scores(self.spec.context.metric, logits)


class TrialLog:
    """A trial's own log: in the run's folder, and twice where the dashboard looks.

    The page of its task shows what it prints; the Logs page lists files, so one has its name.
    """

    def __init__(self, spec: TrialSpec) -> None:
        self.run = KeptFolder.at(spec.context.run, default_cache_folder())
        self.name = f"logs/{spec.name}.log"
        own = self.run.path / self.name
        with writing_run(self.run):
            own.parent.mkdir(parents=True, exist_ok=True)
            self.run.fetch(self.name)  # of the host where the trial was before
        self.paths = [own]
        if folder := _ray_logs():
            self.paths.append(folder / f"trial-{self.run.path.name}-{own.name}")

    def write(self, text: str) -> None:
        """Appends."""
        print(text, file=sys.stderr, flush=True)  # stderr is the tab that opens first
        with writing_run(self.run):
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
