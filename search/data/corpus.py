"""The corpus that a search runs on: prepared shards, or the embedded synthetic one."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from datasets.clips import DataError
from datasets.corpora.synthetic import VERSION, load_synthetic
from datasets.protocols.folds import Folds
from datasets.protocols.leakage import near_leaks
from datasets.protocols.split import corpus_speakers, make_folds
from datasets.sharding.clip_cache import ClipCache, open_cache
from datasets.sharding.index import FILE_NAME, KINDS, ShardIndex, read_index
from datasets.sharding.writer import prepare
from datasets.storage.synced_folder import default_cache_folder, is_url, local_folder
from search.config import ConfigError, SearchConfig
from search.data.front_end_cache import enrolment_order
from search.data.training_data import EMOTION, TRACES, TrainingData
from search.trial_spec import CorpusSpec

_SPEAKERS, _REPETITIONS, _SEED = 12, 3, 0


def load_corpus(config: SearchConfig, console: Console) -> TrainingData:
    """Reads the index, splits it, and opens the cache, filling it on first use.

    Raises:
        DataError: Whatever is wrong with the data; names the culprit.
        ConfigError: Enrolment by more clips than a speaker has.
    """
    cache_folder = Path(config.cache_dir) if config.cache_dir else default_cache_folder()
    index = read_index(config.data or _synthetic_shards(cache_folder, console))
    if config.class_names:
        index = index.restrict(config.class_names)
    target = target_of(config, index)
    if target == EMOTION and not index.labels:
        raise ConfigError("The clips of this corpus have no class. Take --target traces.")
    index.part_of(0, config.workers_per_trial)  # raises where a worker would have no shard
    test_speakers = config.test_speaker_names
    if config.test_corpus:
        test_speakers = corpus_speakers(index, config.test_corpus)
    folds = make_folds(index, config.protocol, test_speakers)
    with _bar("reading shards", console) as bar:
        task = bar.add_task("", total=None)
        cache = open_cache(
            index,
            cache_folder,
            max_bytes=int(config.cache_gb * 2**30),
            skip_corrupt=config.skip_corrupt,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if folds.leak is None:
        _guard_near_duplicates(config, cache, folds, console)
    for kind in KINDS:
        if 0 < index.has(kind) < len(index.clips):
            console.print(
                f"{len(index.clips) - index.has(kind)} of {len(index.clips)} clips have no {kind.replace('_', ' ')}: "
                f"nothing that reads it is searched.",
                highlight=False,
            )
    if cache.missing.any():
        lost = [entry.clip for entry, gone in zip(index.clips, cache.missing, strict=True) if gone]
        console.print(
            f"warning: {len(lost)} corrupt clips are left out: {', '.join(lost[:5])}",
            highlight=False,
        )
    _check_enrolment(config, cache)
    if config.soft_labels and not any(entry.votes for entry in index.clips):
        raise ConfigError(f"soft_labels needs clips with votes; '{index.corpus}' has none.")
    find = partial(_weights, config, cache_folder) if config.weights else None
    data = TrainingData(cache, folds, weights=find, target=target, soft_labels=config.soft_labels)
    _ = data.traces  # raises where clips lack a number
    return data


def _guard_near_duplicates(
    config: SearchConfig, cache: ClipCache, folds: Folds, console: Console
) -> None:
    """Refuses recordings that are nearly the same on two sides, or says so, as asked."""
    with _bar("comparing recordings", console) as bar:
        task = bar.add_task("", total=None)
        pairs = cache.near_duplicates(
            lambda done, total: bar.update(task, completed=done, total=total)
        )
    leaks = near_leaks(folds, cache.index, pairs)
    if not leaks:
        return
    more = f" {len(leaks) - 1} more such pairs." if len(leaks) > 1 else ""
    if config.near_duplicates == "refuse":
        raise DataError(
            f"{leaks[0]}.{more} Remove one, give them the same speaker, or, where they are not the same, take "
            "--near-duplicates warn."
        )
    console.print(f"warning: {leaks[0]}.{more}", markup=False, highlight=False, soft_wrap=True)


def target_of(config: SearchConfig, index: ShardIndex) -> str:
    """Return the target: the requested one, or the corpus's.

    Raises:
        ConfigError: Traces of a corpus without.
    """
    if config.target != "auto":
        if config.target == TRACES and not index.dimensions:
            raise ConfigError(f"The corpus '{index.corpus}' has no traces (--target traces).")
        return config.target
    return TRACES if index.dimensions else EMOTION


def _weights(config: SearchConfig, cache_folder: Path) -> Path:
    """Pretrained weights on this machine."""
    assert config.weights
    try:
        return local_folder(config.weights, cache_folder)
    except OSError as error:
        raise ConfigError(f"weights '{config.weights}': {error.strerror or error}.") from error


def _check_enrolment(config: SearchConfig, cache: ClipCache) -> None:
    """Every speaker needs a clip that is left to be scored."""
    order = enrolment_order(cache.index, cache.missing)
    speaker = min(order, key=lambda name: len(order[name]))
    counts = config.enrolment_counts
    if not counts:
        return
    if max(counts) >= len(order[speaker]):
        raise ConfigError(
            f"enrolment by {max(counts)} clips leaves none to score: speaker '{speaker}' has "
            f"{len(order[speaker])}."
        )
    scored = {
        cache.index.clips[row].label for rows in order.values() for row in rows[max(counts) :]
    }
    if lost := [label for label in cache.index.labels if label not in scored]:
        raise ConfigError(f"enrolment by {max(counts)} clips leaves no '{lost[0]}' to score.")


def _synthetic_shards(cache_folder: Path, console: Console) -> str:
    """The embedded corpus, rendered once a machine."""
    home = cache_folder / f"synthetic{VERSION}-{_SPEAKERS}x{_REPETITIONS}-{_SEED}"
    shards = home / "shards"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(str(home / ".lock")):
            if (shards / FILE_NAME).exists():
                return str(shards)
            console.print(
                "no --data: making the synthetic corpus (12 speakers, 6 emotions, voices and drawn faces)",
                highlight=False,
            )
            corpus = load_synthetic(
                home / "media", speakers=_SPEAKERS, repetitions=_REPETITIONS, seed=_SEED
            )
            with _bar("preparing", console) as bar:
                task = bar.add_task("", total=len(corpus.clips))
                prepare(
                    corpus, shards, on_progress=lambda done, _: bar.update(task, completed=done)
                )
            shutil.rmtree(home / "media")
    except OSError as error:
        raise DataError(
            f"Cannot write the cache in '{cache_folder}': {error.strerror or error}. Set --cache-dir or EMOTION_CACHE."
        ) from error
    return str(shards)


def _bar(what: str, console: Console) -> Progress:
    return Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips"),
        console=console,
        transient=True,
    )


def corpus_spec(config: SearchConfig, data: TrainingData) -> CorpusSpec:
    """Return what it takes to open the corpus, wherever a trial trains."""
    index = data.cache.index
    return CorpusSpec(
        place=_absolute(index.root),
        checksum=index.checksum,
        classes=tuple(config.class_names),
        target=data.target,
        protocol=data.folds.protocol,
        test_speakers=data.folds.test_speakers,
        folds=data.folds.fingerprint,
        skip_corrupt=config.skip_corrupt,
        soft_labels=config.soft_labels,
        cache_folder=_absolute(config.cache_dir) if config.cache_dir else None,
        cache_gb=config.cache_gb,
        weights=_absolute(config.weights) if config.weights else None,
    )


def _absolute(place: str) -> str:
    return place if is_url(place) else str(Path(place).resolve())
