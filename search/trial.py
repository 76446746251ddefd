"""The Ray side of a trial, in two ways around one training function.

`actor`: a reused Tune actor starts one named task a trial. The task's name is the trial's,
so that the Ray dashboard lists trials by name, each with its own log; Ray reuses the task's
process, so that a trial costs no interpreter start and no import. `train`: the same
function is the loop of a Ray Train `TorchTrainer` on one or more workers, each with its
part of the shards. Torch is imported in the tasks and workers alone.
"""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import tune

from datasets.storage import KeptFolder, default_cache_folder, is_url

if TYPE_CHECKING:
    from search.train import LockstepTrial, RungResult
    from search.workers import Workers

ATTEMPTS = 3
"""How many processes a trial may take one after the other, where they or their hosts die."""

_STALLED_SECONDS = 1800
"""After so long without its fellows a worker gives up; one may still be filling its cache."""

ACTOR_CPUS = 0.01
"""What the actor that waits for a trial's task takes of the trial's own share."""

Spec = dict[str, Any]
"""JSON that says all: `trial`, `modality`, `plan`, and the run's `context` (data, folds, paths)."""


def run_trial(config: dict[str, Any]) -> None:
    """Tune's trainable: runs the trial as a named task and passes its rungs on."""
    spec: Spec = {key: config[key] for key in ("trial", "modality", "plan", "context")}
    context = spec["context"]
    if context["runner"] == "train":
        _run_trainer(spec)
        return
    deaths = 0
    while deaths < ATTEMPTS:
        rungs = train_trial.options(
            name=f"{spec['trial']} {describe(spec['plan'])}",
            num_cpus=context["cpus_per_trial"] - ACTOR_CPUS,
            num_gpus=gpus_for(spec),
            # No more than the next rung is begun before this one was judged.
            _generator_backpressure_num_objects=1,
            scheduling_strategy="DEFAULT",
        ).remote(spec)
        try:
            if not _pass_on(rungs, spec):
                return
        except ray.exceptions.RayError as error:
            deaths += 1
            if deaths == ATTEMPTS:
                tune.report(failed(f"its process died {ATTEMPTS} times: {type(error).__name__}"))
        finally:
            ray.cancel(rungs, force=False)


def _pass_on(rungs: Any, spec: Spec) -> bool:
    """Reports a trial's rungs to Tune; True if it is to be started again, with more of a GPU."""
    for rung in rungs:
        report = ray.get(rung)
        if report.get("out_of_memory") and take_more(spec):
            return True
        tune.report(report)
    return False


def gpus_for(spec: Spec) -> float:
    """What a trial takes of a GPU: a share where it shares one, one a worker, or 0 without."""
    context = spec["context"]
    if context["device"] == "cpu":
        return 0.0
    if context["workers_per_trial"] > 1:
        return 1.0  # NCCL does not let workers share one
    measured = context["gpu_share"].get(describe(spec["plan"]), 1.0)
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


def _train_storage(run: str) -> dict[str, Any]:
    """Where Ray Train keeps its own records: where every worker may write."""
    if not is_url(run):
        return {"storage_path": f"{run}/ray/train"}
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    system, path = fsspec.core.url_to_fs(f"{run}/ray/train")
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(system))}


def failed(why: str) -> dict[str, Any]:
    """The report of a trial that came to nothing."""
    return {"failed": why, "percent": 0, "score": float("nan")}


def failed_by(error: Exception) -> dict[str, Any]:
    """The same, marked where it is not the trial's own fault: too little memory, or storage."""
    from search.train import is_out_of_memory

    report = failed(str(error) if isinstance(error, StorageError) else _reason(error))
    if is_out_of_memory(error):
        report["out_of_memory"] = True
    if isinstance(error, StorageError):
        report["storage"] = True
    return report


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


def _run_trainer(spec: Spec) -> None:
    """A trial as a Ray Train run, whose first worker's reports go to Tune."""
    from search.trainer import ReportToTune

    failure = fit_trainer(spec, [ReportToTune()])
    while failure and failure.get("out_of_memory") and take_more(spec):
        failure = fit_trainer(spec, [ReportToTune()])
    if failure:
        tune.report(failure)


def fit_trainer(spec: Spec, callbacks: list[Any]) -> dict[str, Any] | None:
    """Trains one trial on Ray Train workers; returns the report of its failure, or None."""
    import ray.train
    from ray.train.torch import TorchConfig

    from search.trainer import TrialTrainer

    context = spec["context"]
    gpus = gpus_for(spec)
    resources = {"CPU": context["cpus_per_trial"] - ACTOR_CPUS, **({"GPU": gpus} if gpus else {})}
    trainer = TrialTrainer(
        train_on_worker,
        train_loop_config=spec,
        torch_config=TorchConfig(timeout_s=_STALLED_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=context["workers_per_trial"],
            use_gpu=gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=f"{spec['trial']} {describe(spec['plan'])}",
            **_train_storage(context["run"]),
            callbacks=callbacks,
            # A worker that is preempted is replaced, and all go on from the checkpoint.
            failure_config=ray.train.FailureConfig(max_failures=ATTEMPTS - 1),
        ),
    )
    try:
        metrics = trainer.fit().metrics or {}
        return metrics if metrics.get("failed") else None
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {})
        if failures:
            return failed(_reason(next(iter(failures.values()))))
        # What went wrong in the controller stands at the end of its traceback.
        return failed([line.strip() for line in str(error).splitlines() if line.strip()][-1][:300])


def train_on_worker(spec: Spec) -> None:
    """`train_loop_per_worker`: trains this worker's part, in step with its fellows."""
    import ray.train

    from search.train import NonFiniteLossError, is_out_of_memory
    from search.workers import Workers

    workers = Workers.here()
    try:
        for report in _train(spec, TrialLog(spec), workers):
            # Ray waits here for every worker; the first one's report is the one that counts.
            ray.train.report(report)
    except NonFiniteLossError as error:  # on all workers alike; it would come again
        ray.train.report(failed(_reason(error)))
    except Exception as error:
        known = is_out_of_memory(error) or isinstance(error, StorageError)
        if not known or workers.count > 1:  # whose fellows wait for it
            raise
        ray.train.report(failed_by(error))


@ray.remote(num_cpus=0, num_returns="streaming", max_retries=0)
def train_with_trainer(spec: Spec) -> Iterator[dict[str, Any]]:
    """As `train_trial`, on Ray Train workers, for trials outside of Tune."""
    failure = fit_trainer(spec, [])
    while failure and failure.get("out_of_memory") and take_more(spec):
        failure = fit_trainer(spec, [])
    if failure:
        yield failure


def enrolled_name(trial: str, clips: int) -> str:
    """What the bank calls a trial whose held-out speakers were normalised by so many clips."""
    return f"{trial}+enrol{clips}"


def describe(plan: dict[str, Any]) -> str:
    """`logmel_resnet`, or `functionals+cnn3d` for early fusion."""
    parts = (
        [plan["settings"].get(m, {}).get("architecture") for m in ("audio", "video")]
        if plan["architecture"] == "concatenation"
        else []
    )
    return "+".join(parts) if parts else str(plan["architecture"])


@ray.remote(num_cpus=1, num_returns="streaming", max_retries=0)
def train_trial(spec: Spec) -> Iterator[dict[str, Any]]:
    """Trains one trial; at every rung its bank entry is on disk before the report is sent."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Ray cancels a task by this signal, which whatever a shell starts with & ignores.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield from train(spec)


def train(spec: Spec) -> Iterator[dict[str, Any]]:
    """As `train_trial`, without Ray: yields percent, score, loss and seconds at every rung.

    A failure is yielded as `failed` with its reason instead of raised: the search goes on.
    """
    log = TrialLog(spec)
    try:
        from search.workers import Workers

        yield from _train(spec, log, Workers())
    except Exception as error:  # any trial may fail in its own way; the journal keeps the reason
        if not isinstance(error, StorageError):
            log.write(traceback.format_exc())
        yield failed_by(error)


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text}"[:300]


def _train(spec: Spec, log: TrialLog, workers: Workers) -> Iterator[dict[str, Any]]:
    import torch

    from search.checkpoint import Checkpoint, Progress
    from search.train import LockstepTrial, TrialPlan

    context = spec["context"]
    torch.set_num_threads(max(1, int(context["cpus_per_trial"])))
    started = time.monotonic()
    trial = LockstepTrial(
        TrialPlan.from_json(spec["plan"]),
        _training_data(context, workers),
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
    record = _Record(spec, trial, log, started)

    def save() -> None:
        if checkpoint.due:
            seconds = time.monotonic() - started
            with _writing(record.run):
                checkpoint.save(Progress(trial.state_dict(), reports, seconds))

    for rung in trial.run(save):
        reports.append(record.rung(rung))
        yield reports[-1]


def _here() -> str:
    """Which host this is, where Ray knows."""
    return f" on {ray.util.get_node_ip_address()}" if ray.is_initialized() else ""


def _identity(spec: Spec) -> dict[str, Any]:
    """What a trial's networks are a function of."""
    context = spec["context"]
    keys = ("seed", "checksum", "classes", "protocol", "test_speakers", "folds", "skip_corrupt")
    return {
        "plan": spec["plan"],
        "enrolment": spec.get("enrolment"),
        **{key: context[key] for key in keys},
    }


class _Record:
    """What a trial leaves at its rungs: posteriors, its networks at the end, a line of its log."""

    def __init__(self, spec: Spec, trial: LockstepTrial, log: TrialLog, started: float) -> None:
        from ensembles.bank import PosteriorBank

        self.spec, self.trial, self.log, self.started = spec, trial, log, started
        self.run = kept_run(spec["context"])
        self.run.fetch("bank/clips.csv")
        self.bank = PosteriorBank.open(self.run.path / "bank")

    def rung(self, rung: RungResult) -> dict[str, Any]:
        """Writes what there is, and returns the report: it is sent when all is on disk."""
        with _writing(self.run):
            self._leave(rung)
        return self._report(rung)

    def _leave(self, rung: RungResult) -> None:
        enrolling = "enrolment" in self.spec
        if not enrolling:
            self._write(self.spec["trial"], rung, rung.logits)
        elif rung.percent == 100:
            for count in self.spec["enrolment"]:
                title = enrolled_name(self.spec["trial"].removesuffix("+enrolled"), count)
                self._write(title, rung, self.trial.out_of_fold(enrolled=count))
        if rung.percent == 100 and self.spec.get("keep_weights", True):
            self._write_weights()

    def _report(self, rung: RungResult) -> dict[str, Any]:
        enrolling = "enrolment" in self.spec
        metric, score = self.spec["context"]["metric"], self._score(rung.logits)
        report = {
            "percent": rung.percent,
            "epoch": rung.epoch,
            "score": -score if metric == "log_loss" else score,
            "train_loss": rung.train_loss,
            "seconds": time.monotonic() - self.started,
            "architecture": describe(self.spec["plan"]),
        }
        self.log.write(
            f"{rung.percent:3d} %, epoch {rung.epoch}: {metric} {score:.4f}, "
            f"training loss {rung.train_loss:.4f}, {report['seconds']:.1f} s"
            + (" (held-out speakers less the mean of all their clips)" if enrolling else "")
            + self._in_parts()
        )
        return report

    def _in_parts(self) -> str:
        """What became of batches for which the memory did not suffice."""
        parts = max(trainer.parts for trainer in self.trial.trainers)
        size = self.trial.plan.training.batch_size
        return f"; out of memory: batches of {size} in {parts} parts" if parts > 1 else ""

    def _write(self, title: str, rung: RungResult, logits: NDArray[np.float32]) -> None:
        from ensembles.bank import BankEntry

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

        from ensembles.bank import write_atomically

        name = f"weights/{self.spec['trial']}"
        folder = self.run.path / name
        folder.mkdir(parents=True, exist_ok=True)
        for trainer in self.trial.trainers:
            state = trainer.expert.state_dict()
            tensors = {key: x.detach().cpu().contiguous() for key, x in state.items()}
            write_atomically(folder / f"fold-{trainer.fold}.safetensors", save(tensors))
            self.run.send(f"{name}/fold-{trainer.fold}.safetensors")
        plan = {**self.spec["plan"], "shape": self.trial.data.shape.__dict__}
        write_atomically(folder / "plan.json", json.dumps(plan).encode())
        self.run.send(f"{name}/plan.json")

    def _score(self, logits: NDArray[np.float32]) -> float:
        """Mean over the folds, of the clips that have a prediction."""
        from ensembles.metrics import fold_mean, log_softmax

        present = np.isfinite(logits).all(axis=1)
        table = self.bank.table
        return fold_mean(
            self.spec["context"]["metric"],
            table.labels[present],
            log_softmax(logits[present].astype(np.float64)),
            table.folds[present],
        )


class TrialLog:
    """A trial's own log, in the run's folder and in Ray's (which the dashboard shows)."""

    def __init__(self, spec: Spec) -> None:
        self.run, self.name = kept_run(spec["context"]), f"logs/{spec['trial']}.log"
        self.path = self.run.path / self.name
        with _writing(self.run):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.run.fetch(self.name)  # of the host where the trial was before

    def write(self, text: str) -> None:
        """Appends."""
        print(text, flush=True)
        with _writing(self.run):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
            self.run.send(self.name)


_OPEN: dict[str, Any] = {}


def _training_data(context: dict[str, Any], workers: Workers) -> Any:
    """The corpus, or this worker's part; opened once a process and kept for the next trials."""
    from datasets.cache import open_cache
    from datasets.index import read_index
    from datasets.splits import make_folds
    from search.train import TrainingData

    keys = (
        "data",
        "classes",
        "protocol",
        "test_speakers",
        "checksum",
        "cache_folder",
        "skip_corrupt",
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
        _OPEN[identity] = TrainingData(cache, folds, index)
    return _OPEN[identity]


@ray.remote(num_cpus=1, max_retries=1)
def measure_there(
    context: dict[str, Any], offer: dict[str, Any], precision: str
) -> tuple[dict[str, float], dict[str, float]]:
    """What trials will cost on a cluster's hosts: seconds, and shares of a GPU."""
    from search.cost import measure_cost
    from search.space import Offer
    from search.workers import Workers

    data = _training_data(context, Workers())
    cost = measure_cost(Offer.from_json(offer), data, context["device"], precision)
    return cost.seconds, cost.gpu_share
