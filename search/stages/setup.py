"""Set a search up: its corpus, its folds, its scope, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rich.console import Console

from search.cluster.placement import check_cores, choose_device, join_cluster
from search.config import ConfigError, SearchConfig
from search.data.bank_tables import people
from search.data.corpus import corpus_spec, load_corpus
from search.data.training_data import TrainingData
from search.execution.remote_cost import find_cost
from search.papers import reproduce
from search.persistence.run_folder import RunFolder
from search.persistence.run_record import Inputs, RunRecord
from search.space.eligibility import check_weights, requested_scope
from search.space.scope import SearchScope, missing_weights
from search.space.step_cost import Cost, drop_expensive, key_of, slow_changes
from search.stages.nested_splits import inner_splits, narrowed, outer_count
from search.stages.task import Task, task_of
from search.trial_spec import RunContext


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Setup of a run: what is searched, on what, and where.

    Attributes:
        config: The settings, completed by what the corpus asks for.
        data: The corpus.
        task: Classification, or regression.
        record: What the run's first start found out.
        scope: What may be searched.
        address: Of the cluster that was joined; None for this machine alone.
    """

    config: SearchConfig
    data: TrainingData
    task: Task
    record: RunRecord
    scope: SearchScope
    address: str | None


def set_up(config: SearchConfig, given: set[str], run: RunFolder | None, console: Console) -> Setup:
    """Load the corpus, join the cluster, and find out, or read, what may be searched.

    Args:
        config: As requested, or as stored with a run.
        given: The settings that the user gave.
        run: The run that is continued; None for a new one.
        console: For progress and warnings.

    Raises:
        ConfigError: Whatever cannot be, before anything trains.
    """
    if config.reproduce:
        print(reproduce.flaw_of(config.reproduce), flush=True)
    data = load_corpus(config, console)
    task = task_of(data)
    config = task.completed(config, data, given)
    if data.folds.leak:
        print(f"{data.folds.leak}.", flush=True)
    if config.reproduce:
        reproduce.check_corpus(config.reproduce, data.index, console)
    if config.outer:
        inner_splits(data.index, data.folds, outer_count(config, data.folds))
    address = join_cluster(config, console)
    record = (run.read_record() if run else None) or new_record(config, data, console, address)
    if config.outer and not run:
        config, record = _narrowed(config, data, record)
    if run:
        _check_same_data(record, data, run)
        check_weights(SearchScope.from_json(record.scope), data.weights)
    if address is None:
        check_cores(config, choose_runner(config, record.device == "cuda"))
    if run and run.extended and config.architectures:
        record = _extended(record, config, data, console, address)
    scope = SearchScope.from_json(record.scope)
    return Setup(config=config, data=data, task=task, record=record, scope=scope, address=address)


def new_record(
    config: SearchConfig, data: TrainingData, console: Console, address: str | None
) -> RunRecord:
    """Find out what the search may try here, and what it costs."""
    device = choose_device(config, address, console)
    scope = (reproduce.scope_of if config.reproduce else requested_scope)(config, data)
    cost = find_cost(scope, data, device, config, address, console)
    if not (config.architectures or config.reproduce):
        scope = drop_expensive(scope, cost.seconds, config.longest_seconds)
    scope = _without_slow_changes(scope, data, device, cost.seconds, config)
    index, folds, shape = data.cache.index, data.folds, data.shape
    return RunRecord(
        corpus=index.corpus,
        data_checksum=index.checksum,
        protocol=folds.protocol,
        folds_fingerprint=folds.fingerprint,
        held_out=folds.test_speakers,
        test_corpus=config.test_corpus,
        fold_names=folds.names,
        leak=folds.leak,
        seed=config.seed,
        preset=config.preset,
        device=device,
        inputs=Inputs(
            sample_rate_hz=shape.sample_rate_hz,
            frames=shape.frames,
            frame_size=shape.frame_size,
            frame_rate=index.frame_rate,
            crop=index.crop.to_json(),
            feature_names=tuple(index.feature_names),
            trace_steps=shape.trace_steps,
        ),
        people=people(index),
        scope=scope.to_json(),
        predicted_seconds=_rounded(cost),
        gpu_share=cost.gpu_share,
    )


def _rounded(cost: Cost) -> dict[str, float]:
    return {name: round(value, 1) for name, value in cost.seconds.items()}


def _without_slow_changes(
    scope: SearchScope,
    data: TrainingData,
    device: str,
    seconds: Mapping[str, float],
    config: SearchConfig,
) -> SearchScope:
    if scope.given or (device == "cuda" and config.address):  # this process may have no GPU
        return scope
    slow = slow_changes(scope, data, device, seconds, config.longest_seconds)
    return replace(scope, too_slow={**scope.too_slow, **slow})


def _narrowed(
    config: SearchConfig, data: TrainingData, record: RunRecord
) -> tuple[SearchConfig, RunRecord]:
    """The search, narrowed to one that can be repeated without each fold."""
    searches = 1 + outer_count(config, data.folds)
    scope = SearchScope.from_json(record.scope)
    config, scope = narrowed(config, scope, record.predicted_seconds, searches)
    return config, replace(record, scope=scope.to_json())


def _extended(
    record: RunRecord,
    config: SearchConfig,
    data: TrainingData,
    console: Console,
    address: str | None,
) -> RunRecord:
    """The record of a finished run, with architectures that it had not."""
    had = SearchScope.from_json(record.scope)
    before = {*had.fusions, *(name for names in had.single.values() for name in names)}
    scope = had.joined(requested_scope(config, data, *sorted(before)))
    cost = find_cost(scope, data, record.device, config, address, console)
    slow = _without_slow_changes(scope, data, record.device, cost.seconds, config).too_slow
    # What was searched before stays as it was: a study's parameters cannot change.
    scope = replace(scope, too_slow={**slow, **dict.fromkeys(sorted(before), ()), **had.too_slow})
    return replace(
        record,
        scope=scope.to_json(),
        predicted_seconds=_rounded(cost),
        gpu_share=cost.gpu_share,
    )


def _check_same_data(record: RunRecord, data: TrainingData, run: RunFolder) -> None:
    """Refuse to continue a run on other data or folds than it was started with."""
    now = (data.cache.index.checksum, data.folds.fingerprint)
    if (record.data_checksum, record.folds_fingerprint) != now:
        raise ConfigError(
            f"The data of the run '{run.path.name}' changed since it was started. Start a new run."
        )


def choose_runner(config: SearchConfig, gpu: bool) -> str:
    """Return `actor` or `train`; where the user leaves it open, Ray Train where there are GPUs."""
    if config.runner != "auto":
        return config.runner
    return "train" if gpu or config.workers_per_trial > 1 else "actor"


def run_context(run: RunFolder, data: TrainingData, record: RunRecord) -> RunContext:
    """Return what all trials of the run share, wherever they train."""
    config = run.config
    share = dict(record.gpu_share)
    if config.gpu_packing:
        share = dict.fromkeys(record.predicted_seconds, 1.0 / config.gpu_packing)
    return RunContext(
        corpus=corpus_spec(config, data),
        run=run.kept.url or str(run.path.resolve()),
        metric=config.metric,
        seed=config.seed,
        device=record.device,
        precision=config.precision,
        runner=choose_runner(config, record.device == "cuda"),
        workers_per_trial=config.workers_per_trial,
        gpu_share=share,
    )


def print_scope(setup: Setup, console: Console) -> None:
    """Print what is searched, on what, and how long it may take."""
    record, data, scope, plan = setup.record, setup.data, setup.scope, setup.config.plan
    console.print(
        f"{record.corpus}: {len(data.cache.index.clips)} clips, {record.protocol}, {data.folds.count} folds; "
        f"{scope.given_trials or plan.trials} trials, at most {plan.minutes:g} min, "
        f"{plan.confirm_seeds} fresh seeds",
        highlight=False,
    )
    seconds = record.predicted_seconds
    for side, names in scope.single.items():
        for name in names:
            modes = scope.transfers[name].modes if name in scope.transfers else (None,)
            for key in dict.fromkeys(key_of(name, mode) for mode in modes):
                told = f"  {side:5}  {key}: about {seconds[key]:.0f} s a trial"
                console.print(told, highlight=False)
    if scope.fusions:
        each = sorted(seconds["+".join(pair)] for pair in scope.pairs)
        told = f"about {each[0]:.0f} s" + (f" to {each[-1]:.0f} s" if len(each) > 1 else "")
        parts = " × ".join(f"({', '.join(names)})" for names in scope.parts.values())
        console.print(
            f"  early  {', '.join(scope.fusions)} of {parts}: {told} a trial", highlight=False
        )
    for name, keys in scope.too_slow.items():
        if keys:
            what = ", ".join(keys).replace("_", " ")
            console.print(
                f"  {name} is trained without {what}: a trial would take too long", highlight=False
            )
    if lacking := missing_weights(scope, data.weights):
        console.print(f"  {lacking}", highlight=False)
    for why in dict.fromkeys(scope.why_not.values()):
        left_out = ", ".join(name for name, reason in scope.why_not.items() if reason == why)
        console.print(f"  left out ({why}): {left_out}", highlight=False)
