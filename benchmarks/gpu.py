"""Measure what a GPU gets out of this project: four questions, eight minutes.

`python -m benchmarks.gpu [--data SHARDS] [--parts step,packed,frozen,runner]`

1. `step`: a training step whose inputs come from the cache, against the same step with its inputs on the
   device already.
2. `packed`: trials that share a device, a process each, as `trials_per_gpu` packs them, against one.
3. `frozen`: the pass of a frozen backbone over the corpus, as a search makes it once, against the same
   backbone on clips that are on the device, in larger batches and in bfloat16. Weights are random.
4. `runner`: what `--runner train` costs a trial, against `--runner actor`; needs Ray.

Without a GPU, or with `--tiny`, the smallest form of each: it shows that they run, and no more. A part that cannot run
here is skipped with the reason. Prints a Markdown table, for docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import corpus, machine, save_random_weights, scratch, seconds
from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import ClipCache, open_cache
from datasets.sharding.index import ShardIndex, read_index
from models import Expert, build_expert, get_architecture
from models.pretrained import find_checkpoints
from search.data.front_end_cache import FrontEndCache
from search.data.training_data import TrainingData
from search.training.cross_validation import LockstepTrial
from search.training.device import choose_precision
from search.training.fold_builder import build_fold
from search.training.fold_trainer import FoldTrainer
from search.trial_config import TrainSettings, TrialConfig

FOLDS = "speaker-kfold:2"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much is measured.

    Attributes:
        stepped: Architectures of which a training step is timed.
        batches: Steps that are timed together.
        repeats: How often; the median counts.
        packed: The architecture of the trials that share a device.
        at_once: How many of them.
        window_s: Seconds that they train.
        frozen: Backbones.
        trials: Minimal trials of runner actor, and of runner train.
    """

    speakers: int
    repetitions: int
    stepped: tuple[str, ...]
    batches: int
    repeats: int
    packed: str
    at_once: tuple[int, ...]
    window_s: float
    frozen: tuple[str, ...]
    trials: tuple[int, int]


FULL = Form(
    speakers=10, repetitions=4, stepped=("functionals", "logmel_resnet", "waveform_cnn_lstm", "cnn3d", "r2plus1d_18"),
    batches=6, repeats=5, packed="logmel_resnet", at_once=(2, 4, 8), window_s=8.0,
    frozen=("cnn14", "wavlm", "r2plus1d_18"), trials=(20, 3),
)  # fmt: skip
TINY = Form(
    speakers=5, repetitions=1, stepped=("functionals", "logmel_resnet"),
    batches=1, repeats=5, packed="logmel_resnet", at_once=(2,), window_s=0.5,
    frozen=("spatial_transformer",), trials=(2, 1),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table; `ratio` is of the two in the direction in which more is better."""

    measured: str
    value: str
    against: str
    ratio: float

    def __str__(self) -> str:
        return f"| {self.measured} | {self.value} | {self.against} | {self.ratio:.2f} |"


@dataclass(frozen=True)
class Setting:
    """Where and on what the parts measure."""

    form: Form
    index: ShardIndex
    folder: Path
    device: str

    def data(self) -> TrainingData:
        """The corpus as a trial opens it; its weights are random."""
        return open_data(self.index, self.folder)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Median wall time, the device's work included."""

        def finished() -> None:
            run()
            self.wait()

        return seconds(finished, self.form.repeats)


def open_data(index: ShardIndex, folder: Path) -> TrainingData:
    """A corpus in two folds, from the node's cache."""
    cache = open_cache(index, folder / "cache")
    return TrainingData(cache, make_folds(index, FOLDS), weights=lambda: folder / "weights")


class HeldFrontEnds(FrontEndCache):
    """The same inputs as its parent's, which stay on the device."""

    def __init__(self, clips: ClipCache, device: str) -> None:
        super().__init__(clips)
        self._device, self._held = device, dict[bytes, dict[str, Tensor]]()

    def inputs(
        self, expert: Expert, rows: NDArray[Any], *, changed: TrainSettings | None = None
    ) -> dict[str, Tensor]:
        """See `FrontEndCache`."""
        key = rows.tobytes()
        if key not in self._held:
            inputs = super().inputs(expert, rows, changed=changed)
            self._held[key] = {name: x.to(self._device) for name, x in inputs.items()}
        return dict(self._held[key])


def measure_steps(setting: Setting) -> Iterator[Row]:
    """A training step from the cache, against one whose inputs are on the device."""
    for name in setting.form.stepped:
        data = setting.data()
        if not all(data.shape.has(kind) for kind in get_architecture(name).inputs):
            continue
        plan = TrialConfig.of(name, {}, {})
        precision = choose_precision(plan, setting.device)
        size, took = plan.training.batch_size, []
        for held in (False, True):
            if held:
                data.front_ends = HeldFrontEnds(data.cache, setting.device)
            trainer = build_fold(plan, data, 0, seed=0, device=setting.device, precision=precision)
            trainer.expert.train()
            rows = trainer.rows[: setting.form.batches * size]
            batches = [rows[start : start + size] for start in range(0, len(rows), size)]

            def train(trainer: FoldTrainer = trainer, batches: Any = batches) -> None:
                for number, batch in enumerate(batches):
                    trainer._step(batch, number)

            took.append(1000 * setting.seconds(train) / len(batches))
        yield Row(
            f"training step of {name}, {min(size, len(rows))} clips, {precision}, from the cache",
            f"{took[0]:.2f} ms",
            f"inputs on the device: {took[1]:.2f} ms",
            took[1] / took[0],
        )


def measure_packed(setting: Setting) -> Iterator[Row]:
    """Trials that share the device, against one that has it alone."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    most = max(setting.form.at_once)
    turns, found = context.Barrier(most), context.Queue()
    job = (setting.index.root, setting.folder, setting.form, setting.device, turns, found)
    processes = [
        context.Process(target=_train_in_turns, args=(number, *job)) for number in range(most)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"{len(failed)} of {most} processes ended with exit code {failed[0]}")
    rates: Counter[int] = Counter()
    for _ in range(1 + sum(setting.form.at_once)):
        count, rate = found.get()
        rates[count] += rate
    for count in setting.form.at_once:
        yield Row(
            f"{count} trials of {setting.form.packed} at a time, a process each",
            f"{rates[count]:.0f} clips/s",
            f"one at a time: {rates[1]:.0f} clips/s",
            rates[count] / rates[1],
        )


def _train_in_turns(
    number: int, root: str, folder: Path, form: Form, device: str, turns: Any, found: Any
) -> None:
    """Train one trial in this process, in the windows in which this many trials are to train."""
    torch.set_num_threads(1)  # as a trial does
    try:
        data = open_data(read_index(root), folder)
        trial = LockstepTrial(TrialConfig.of(form.packed, {}, {}), data, seed=0, device=device)
        for trainer in trial.trainers:
            trainer.step_epoch()  # warms up
        for count in (1, *form.at_once):
            turns.wait(timeout=300)  # one may have been killed
            if number < count:
                found.put((count, _rate(trial, device, form.window_s)))
    except BaseException:
        turns.abort()
        raise


def _rate(trial: LockstepTrial, device: str, window_s: float) -> float:
    """Clips a second that a trial trains on, its folds in turn."""
    clips, started = 0, time.monotonic()
    while time.monotonic() - started < window_s:
        for trainer in trial.trainers:
            trainer.step_epoch()
            clips += trainer.clips
    if device == "cuda":
        torch.cuda.synchronize()
    return clips / (time.monotonic() - started)


def measure_frozen(setting: Setting) -> Iterator[Row]:
    """The pass of a frozen backbone over all clips into the cache, against the backbone itself."""
    data = setting.data()
    for name in setting.form.frozen:
        if not all(data.shape.has(kind) for kind in get_architecture(name).inputs):
            continue
        save_random_weights(name, data)
        assert data.weights is not None
        (found,) = find_checkpoints(get_architecture(name), data.weights)
        plan = TrialConfig.of(name, {"transfer": "frozen", "checkpoint": found.to_json()}, {})
        expert = build_expert(name, plan.settings, data.shape, weights=data.weights)
        yield _frozen_pass(setting, name, expert.to(setting.device), data)


def _frozen_pass(setting: Setting, name: str, expert: Expert, data: TrainingData) -> Row:
    every = torch.arange(len(data.cache.index.clips)).numpy()
    some = every[:32]
    batch = {k: x.to(setting.device) for k, x in data.cache.batch(some, expert.kinds).items()}

    def in_bfloat16() -> None:
        with torch.autocast(setting.device, torch.bfloat16):
            expert.preprocess(batch)

    expert.preprocess(batch)  # warms up
    setting.wait()
    started = time.perf_counter()
    data.front_ends.inputs(expert, every[:1])  # of all clips, since it is the first time
    setting.wait()
    as_searched = len(every) / (time.perf_counter() - started)
    at_best = len(some) / setting.seconds(in_bfloat16)
    return Row(
        f"frozen pass of {name} (random weights) as a search makes it, into the cache",
        f"{as_searched:.1f} clips/s",
        f"batches of {len(some)} on the device, bfloat16: {at_best:.1f} clips/s",
        as_searched / at_best,
    )


def measure_runner(setting: Setting) -> Iterator[Row]:
    """Seconds a trial beyond its training, of Ray Train against the actor."""
    import ray  # noqa: F401

    from benchmarks.trial_overhead import ours

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    overhead = []
    for runner, trials in zip(("actor", "train"), setting.form.trials, strict=True):
        folder = setting.folder / f"runner-{runner}"
        total, training = ours(folder, runner, trials, setting.device, setting.index)
        overhead.append(total - training)
    yield Row(
        f"--runner train: a trial beyond its training ({setting.form.trials[1]} trials)",
        f"{overhead[1]:.2f} s",
        f"--runner actor ({setting.form.trials[0]} trials): {overhead[0]:.2f} s",
        overhead[0] / overhead[1],
    )


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "step": measure_steps,
    "packed": measure_packed,
    "frozen": measure_frozen,
    "runner": measure_runner,
}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all parts ran or were skipped; 1: one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="prepared shards (default: synthetic clips)")
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest form; without a GPU there is no other"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="parts that would start later are skipped"
    )
    given = parser.parse_args(arguments)
    names = given.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"Unknown part '{unknown[0]}'. Known: {', '.join(PARTS)}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = given.tiny or device == "cpu"
    form, until = TINY if tiny else FULL, time.monotonic() + 60 * given.minutes
    torch.set_num_threads(1)  # as a trial does
    failures = 0
    with scratch() as folder:
        home = Path(folder)
        index = corpus(given.data, home, speakers=form.speakers, repetitions=form.repetitions)
        setting = Setting(form, index, home, device)
        print(_heading(setting, tiny), flush=True)
        for name in names:
            failures += not _measure(name, setting, until)
    return 1 if failures else 0


def _measure(name: str, setting: Setting, until: float) -> bool:
    """Prints a part's rows; False if it failed."""
    try:
        rows = PARTS[name](setting)
        while time.monotonic() < until:
            if (row := next(rows, None)) is None:
                return True
            print(row, flush=True)
        print(f"| {name} | the rest is skipped: the time is over (--minutes) | | |", flush=True)
    except ImportError as error:
        print(f"| {name} | skipped: {error} | | |", flush=True)
    except Exception as error:  # what else was asked for is still measured
        traceback.print_exc(file=sys.stderr)
        print(f"| {name} | failed: {type(error).__name__}: {str(error)[:200]} | | |", flush=True)
        return False
    return True


def _heading(setting: Setting, tiny: bool) -> str:
    clips = len(setting.index.clips)
    form = "; the tiny form, whose figures say only that it runs" if tiny else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {_commit()}, {hardware(setting.device)}; {_versions()}; "
        f"{setting.index.corpus}, {clips} clips{form}.\n\n"
        "| measured | | against | ratio |\n|---|---|---|---|"
    )


def hardware(device: str) -> str:
    """The GPU, the processor, cores and memory."""
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    host = f"{machine()}, {cores} cores, {memory:.0f} GiB"
    if device == "cpu":
        return f"no GPU, {host}"
    gpu = torch.cuda.get_device_properties(0)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}; {host}"


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("ray", "numpy"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _commit() -> str:
    """Return the commit of this checkout, marked where files differ from it."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *command],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"`{commit}`{' with changes' if changes else ''}"


if __name__ == "__main__":
    sys.exit(main())
