"""Settings of a search: presets, a YAML file and the command line, with the same keys."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from datasets.storage.synced_folder import is_url
from ensembles.metrics import METRICS

OBJECTIVES = ("solo", "ensemble")
"""Objectives: the worth of a finished trial to the search."""


class ConfigError(ValueError):
    """A setting that is unknown or impossible; the text names it, the value and the remedy."""


@dataclass(frozen=True)
class Preset:
    """How thorough a search is.

    Attributes:
        trials: Configurations tried, over all modalities.
        minutes: Time budget of the search.
        demo_minutes: The same for the embedded synthetic corpus.
        epochs_scale: Factor on every schedule.
        share: An architecture whose known-good default is predicted to take more than this
            share of the budget is left out, and the run says so.
        confirm_seeds: Fresh seeds that the headline's experts are trained again with.
        all_recipes: Search everything about training, not only each architecture's core.
    """

    trials: int
    minutes: float
    demo_minutes: float
    epochs_scale: float
    share: float
    confirm_seeds: int
    all_recipes: bool = False


PRESETS = {
    "quick": Preset(48, 9, 2.5, 0.6, 0.15, 0),
    "standard": Preset(90, 50, 20, 1.0, 0.25, 3),
    "thorough": Preset(300, 330, 60, 1.0, 0.35, 3, all_recipes=True),
}

_WHOLE_DAY = 24 * 60.0
LOGGERS = ("mlflow", "wandb")


def default_runs_dir() -> str:
    """`$EMOTION_RUNS`, or `runs`."""
    return os.environ.get("EMOTION_RUNS", "runs")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A search, as the user asks for it.

    Args:
        data: Folder or URL of prepared shards; without it the embedded synthetic corpus is made and searched.
        preset: quick, standard or thorough: how many trials, how long, how long each trains.
        trials: Configurations to try (default: the preset's).
        time_budget: Longest time for the search, such as 90s, 30m or 2h (default: the preset's).
        only: Architectures and early fusions to search, separated by commas (default: all that fit
            the data); python -m models.list names them.
        weights: Folder or URL of pretrained weights (default: EMOTION_WEIGHTS); without it, or
            where an architecture's file is not there, backbones start from random weights.
        epochs: Epochs of every trial (default: searched).
        classes: Classes to keep, separated by commas (default: all).
        protocol: How speakers are split: speaker-kfold:K, a published protocol of the corpus such as
            ravdess-luna5 (docs/data.md), corpus-out (of joined corpora each is a fold), manifest-split (the
            manifest's own: speakers of its test rows are test speakers), or random, which leaks and says
            so (default: the corpus's own).
        test_speakers: Speakers to put in no fold, separated by commas; the averaged ensemble is
            scored on them once, at the end.
        test_corpus: Of joined corpora (python -m datasets.join) the one to test on: all of its speakers
            are test speakers, and the search is on the others.
        target: What is predicted: emotion (a class), traces (arousal and valence over time), or names of
            numbers that every clip has, such as valence,activation (default: traces where the
            corpus has them, else emotion).
        soft_labels: Train on the shares of the raters who named each class, where clips have votes, instead
            of on the label alone; scores are by the label all the same.
        near_duplicates: Recordings of two sides of the split that are nearly the same: refuse, or warn.
        metric: accuracy, uar, macro_f1 or log_loss: what is searched for and reported; of traces and
            numbers ccc, the concordance.
        objective: What the search takes a finished trial to be worth: solo (its own score), or
            ensemble (and what it adds to the ensemble of those before it).
        outer: Also search once without each fold's speakers and score its ensemble on them, with cheap
            experts: what the honest score's shortcuts leave. The time budget is for all searches together.
        outer_folds: How many folds outer holds out (default: all).
        reproduce: Name of a paper, such as luna2022: train its networks as it describes them instead
            of searching, and print its figures beside the scores on unknown speakers.
        seed: Of proposals, weights, order and augmentation.
        confirm_seeds: Fresh seeds that the headline's experts are trained again with (default: the preset's).
        enrolment: Numbers of unlabelled clips, such as 5,10,20: also score the headline with
            inputs normalised by so many clips of each new speaker. A setting of its own.
        name: Name of the run, a folder under runs_dir (default: corpus, preset and date).
        resume: Name of an interrupted or finished run to continue; of the other options only
            trials, time_budget, confirm_seeds, enrolment, outer, keep_weights, weights, and where it runs
            (workers, runner, workers_per_trial, address) may be given with it.
        extend: Name of a finished run to search further: trials (so many more), time_budget, and
            with only, architectures besides those that it had.
        dry_run: Say what would be searched and how long it would take, and stop.
        keep_weights: all, or chosen: only the networks that an export of this run needs.
        skip_corrupt: Use what is intact of damaged shards instead of refusing them.
        workers: Trials at the same time (default: one a CPU core, or one a GPU).
        runner: actor (reused processes), train (Ray Train workers that stream the shards), or
            auto: train where there are GPUs.
        workers_per_trial: Ray Train workers that train one trial together.
        trials_per_gpu: How many trials share a GPU: a number, or auto: as many as fit, by the
            memory that a training step of each architecture takes.
        address: A Ray cluster: HOST:6379 or auto to join it, http://HOST:8265 to submit the search to
            it as a job, local for Ray on this machine alone (default: RAY_ADDRESS, or the cluster
            that this host belongs to, or this machine alone).
        wait: How long to wait for hosts that a cluster has not got yet, such as 10m.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16 (auto: bfloat16 where the hardware computes it and convolutions dominate).
        runs_dir: Where runs are kept: a folder, or a URL such as s3://BUCKET/runs (default:
            EMOTION_RUNS, or runs).
        cache_dir: Where decoded clips are cached on this machine (default: EMOTION_CACHE or the user's cache folder).
        cache_gb: Bound on the cache folder, in GiB.
        dashboard: Start the Ray dashboard (on this machine only).
        page: Draw report.html at the end; python -m search.report RUN draws it later too.
        log_to: mlflow, wandb or both, separated by commas: also tell them of every trial
            (TensorBoard's event files are always written).
    """

    data: str | None = None
    preset: str = "quick"
    trials: int | None = None
    time_budget: str | None = None
    only: str | None = None
    weights: str | None = field(default_factory=lambda: os.environ.get("EMOTION_WEIGHTS"))
    epochs: int | None = None
    classes: str | None = None
    protocol: str | None = None
    test_speakers: str | None = None
    test_corpus: str | None = None
    target: str = "auto"
    soft_labels: bool = False
    near_duplicates: str = "refuse"
    metric: str = "accuracy"
    objective: str = "solo"
    outer: bool = False
    outer_folds: int | None = None
    reproduce: str | None = None
    seed: int = 0
    confirm_seeds: int | None = None
    enrolment: str | None = None
    name: str | None = None
    resume: str | None = None
    extend: str | None = None
    dry_run: bool = False
    keep_weights: str = "all"
    skip_corrupt: bool = False
    workers: int | None = None
    runner: str = "auto"
    workers_per_trial: int = 1
    trials_per_gpu: str = "auto"
    address: str | None = None
    wait: str = "10m"
    device: str = "auto"
    precision: str = "auto"
    runs_dir: str = field(default_factory=default_runs_dir)
    cache_dir: str | None = None
    cache_gb: float = 16.0
    dashboard: bool = True
    page: bool = True
    log_to: str | None = None

    def __post_init__(self) -> None:
        """Every setting is checked once, here."""
        check_known("preset", self.preset, tuple(PRESETS))
        check_known("metric", self.metric, tuple(METRICS))
        check_known("near_duplicates", self.near_duplicates, ("refuse", "warn"))
        check_known("objective", self.objective, OBJECTIVES)
        check_known("device", self.device, ("auto", "cpu", "cuda"))
        check_known("runner", self.runner, ("auto", "actor", "train"))
        check_known("keep_weights", self.keep_weights, ("all", "chosen"))
        check_known("precision", self.precision, ("auto", "float32", "bfloat16"))
        for name, least in (
            ("trials", 1),
            ("epochs", 1),
            ("workers", 1),
            ("workers_per_trial", 1),
            ("confirm_seeds", 0),
            ("outer_folds", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be {least} or more, got {value}.")
        if self.cache_gb <= 0:
            raise ConfigError(f"cache_gb must be positive, got {self.cache_gb}.")
        for name in ("name", "resume", "extend"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w.+-]+", value):
                raise ConfigError(f"{name} must be letters, digits and . _ + -, got '{value}'.")
        if sum(map(bool, (self.name, self.resume, self.extend))) > 1:
            raise ConfigError(
                "Give one of name (a new run), resume (an interrupted one) and extend (a finished one)."
            )
        if self.workers_per_trial > 1 and self.runner == "actor":
            raise ConfigError(
                f"workers_per_trial {self.workers_per_trial} needs Ray Train: --runner train."
            )
        if self.test_corpus and self.test_speakers:
            raise ConfigError(
                f"Give one of test_corpus ({self.test_corpus}) and test_speakers ({self.test_speakers})."
            )
        _check_outer(self)
        parse_duration(self.time_budget or "1m")
        parse_duration(self.wait, "wait")
        _ = self.gpu_packing
        _ = self.enrolment_counts
        for name in self.loggers:
            check_known("log_to", name, LOGGERS)
            if find_spec(name) is None:
                raise ConfigError(
                    f"log_to {name}: {name} is not installed. "
                    f"Install it with: pip install -c constraints.txt '.[{name}]'"
                )
        if "wandb" in self.loggers:
            _check_wandb_login()

    @property
    def plan(self) -> Preset:
        """The preset with what was overridden."""
        base = PRESETS[self.preset]
        minutes = base.minutes if self.data else base.demo_minutes
        if self.reproduce:  # what it trains is known, and all of it is wanted
            minutes = _WHOLE_DAY
        return replace(
            base,
            trials=self.trials or base.trials,
            minutes=parse_duration(self.time_budget) / 60 if self.time_budget else minutes,
            confirm_seeds=base.confirm_seeds if self.confirm_seeds is None else self.confirm_seeds,
        )

    @property
    def longest_seconds(self) -> float:
        """Return the longest time of a trial that is still worth its share of the budget."""
        return self.plan.share * self.plan.minutes * 60

    @property
    def gpu_packing(self) -> int | None:
        """`trials_per_gpu`, None for auto; raises ConfigError."""
        if self.trials_per_gpu == "auto":
            return None
        if not self.trials_per_gpu.isdecimal() or int(self.trials_per_gpu) < 1:
            raise ConfigError(
                f"trials_per_gpu must be auto or a number from 1, got '{self.trials_per_gpu}'."
            )
        return int(self.trials_per_gpu)

    @property
    def architectures(self) -> tuple[str, ...]:
        """`only`, split."""
        return _split(self.only)

    @property
    def enrolment_counts(self) -> tuple[int, ...]:
        """`enrolment`, split; raises ConfigError."""
        parts = _split(self.enrolment)
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ConfigError(
                f"enrolment must be numbers of clips such as 5,10,20, got '{self.enrolment}'."
            )
        return tuple(sorted({int(part) for part in parts}))

    @property
    def loggers(self) -> tuple[str, ...]:
        """`log_to`, split."""
        return _split(self.log_to)

    @property
    def test_speaker_names(self) -> tuple[str, ...]:
        """`test_speakers`, split."""
        return _split(self.test_speakers)

    @property
    def class_names(self) -> tuple[str, ...]:
        """`classes`, split."""
        return _split(self.classes)


RESUME_KEYS = (
    "trials",
    "time_budget",
    "confirm_seeds",
    "enrolment",
    "outer",
    "outer_folds",
    "workers",
    "runner",
    "workers_per_trial",
    "trials_per_gpu",
    "address",
    "wait",
    "keep_weights",
    "weights",
    "page",
    "log_to",
    "runs_dir",
    "dry_run",
)
"""Options that may be given with --resume and --extend: how much more, and where; not what was searched."""


def parse_duration(text: str, name: str = "time_budget") -> float:
    """`90s`, `30m`, `2h` or `1h30m` → seconds; raises ConfigError."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    seconds = (
        sum(float(v) * unit for v, unit in zip(match.groups(), (3600, 60, 1), strict=True) if v)
        if match
        else 0.0
    )
    if seconds <= 0:
        raise ConfigError(f"{name} must be like 90s, 30m, 2h or 1h30m, got '{text}'.")
    return seconds


def parse_arguments(arguments: list[str] | None = None) -> tuple[SearchConfig, set[str]]:
    """Command line and `--config FILE` → the config, and the keys that were given.

    Raises:
        ConfigError: One line that names the key and lists the known ones.
    """
    parser = ArgumentParser(
        prog="python -m search.run",
        description="Searches architectures and fusions over prepared shards and reports honest scores. "
        "Without --data it makes a small synthetic corpus and searches that. "
        "Dashes and underscores in option names are the same.",
        exit_on_error=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with the same keys as below; the command line wins",
    )
    parser.add_class_arguments(SearchConfig, as_group=False)
    given = [_with_dashes_resolved(a) for a in (sys.argv[1:] if arguments is None else arguments)]
    known = [f.name for f in fields(SearchConfig)]
    try:
        explicit = parser.parse_args(given, defaults=False)
        settings = parser.parse_args(given)
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), known)) from error
    values = {key: getattr(settings, key) for key in known}
    return SearchConfig(**values), {key for key in known if key in _keys(explicit)}


def _keys(namespace: Namespace) -> set[str]:
    return {str(key) for key in namespace.as_dict()}


def _with_dashes_resolved(argument: str) -> str:
    """`--time-budget` and `--time_budget` are the same key; a switch needs no value."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = "--" + name[2:].replace("-", "_")
    if name in ("--dry_run", "--skip_corrupt", "--outer", "--soft_labels") and not equals:
        return f"{name}=true"
    return name + equals + value


def _explain(text: str, known: list[str]) -> str:
    """Jsonargparse's error as one line, with the known keys where one is unknown."""
    line = " ".join(text.split())
    wrong = re.search(r'key "(\w+)".*?Expected an? <class \'(\w+)\'>.*Given value: (.*)', line)
    if wrong:
        return f"{wrong[1]} must be of type {wrong[2]}, got '{wrong[3]}'."
    if re.search(
        r"[Uu]nrecognized|not expected|not accepted|is not defined|Unsupported|does not accept",
        line,
    ):
        return f"{line} Known keys: {', '.join(known)}."
    return line


def check_known(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError where a setting's value is none of its choices."""
    if value not in choices:
        raise ConfigError(f"Unknown {name} '{value}'. Known: {', '.join(choices)}.")


def _check_outer(config: SearchConfig) -> None:
    if config.outer_folds and not config.outer:
        raise ConfigError(f"outer_folds {config.outer_folds} needs --outer.")
    if config.outer and (config.test_speakers or config.test_corpus):
        name = "test_speakers" if config.test_speakers else "test_corpus"
        raise ConfigError(
            f"outer makes each fold's speakers test speakers of a search of their own: leave out {name}."
        )
    if config.outer and config.extend:
        raise ConfigError("outer cannot go with extend: extend first, then --resume NAME --outer.")
    if config.outer and is_url(config.runs_dir):
        raise ConfigError(
            f"outer keeps its searches in the run's folder, which must be on a disk, got '{config.runs_dir}'."
        )


def _check_wandb_login() -> None:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in {"offline", "disabled"}:
        return
    import wandb

    if not wandb.login(prompt=False):
        raise ConfigError(
            "log_to wandb needs a login: set WANDB_API_KEY or run `wandb login`; "
            "WANDB_MODE=offline keeps everything here."
        )


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def to_document(config: SearchConfig) -> dict[str, Any]:
    """For the run's `config.yaml`."""
    return asdict(config)


def from_document(document: dict[str, Any], path: Path) -> SearchConfig:
    """The inverse; raises ConfigError on an unknown key."""
    known = [f.name for f in fields(SearchConfig)]
    unknown = [key for key in document if key not in known]
    if unknown:
        raise ConfigError(
            f"Unknown key '{unknown[0]}' in '{path}'. Known keys: {', '.join(known)}."
        )
    return SearchConfig(**document)
