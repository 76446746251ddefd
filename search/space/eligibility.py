"""Select the architectures that a run may search: requested, fitting the data, and with their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.sharding.index import ShardIndex, own_name
from models.pretrained import sha256, tensor_file
from search.config import ConfigError, SearchConfig
from search.data.training_data import TrainingData
from search.space.scope import SearchScope, scope_for


def requested_scope(config: SearchConfig, data: TrainingData, *further: str) -> SearchScope:
    """Return what the corpus, the configuration and the given weights allow.

    Args:
        config: The search.
        data: Its corpus.
        further: Architectures besides those of `--only`.
    """
    scope = scope_for(
        data.shape,
        (*config.architectures, *further),
        config.plan.epochs_scale,
        epochs=config.epochs,
        all_recipes=config.plan.all_recipes,
        weights=data.weights,
        longest_delay=_longest_delay(data),
    )
    refuse_known_speakers(scope, data.index)
    return scope


def _longest_delay(data: TrainingData) -> float:
    """Return the longest delay of labels, in seconds: a quarter of the shortest recording."""
    traces = data.traces
    if traces is None or not traces.over_time:
        return 0.0
    return float(np.diff(traces.offsets).min()) * traces.step_seconds / 4


def refuse_known_speakers(scope: SearchScope, index: ShardIndex) -> None:
    """A backbone that has been trained on who is scored would make every number a lie; raises ConfigError."""
    speakers = {own_name(index.corpus, entry.speaker): entry.speaker for entry in index.clips}
    checksums = {index.checksum, *(source.checksum for source in index.sources)}
    for name, transfer in scope.transfers.items():
        for found in transfer.checkpoints:
            for known in found.trained_on:
                others = {own_name(known["corpus"], speaker) for speaker in known["speakers"]}
                met = sorted(speakers[who] for who in others & set(speakers))
                if met or known["checksum"] in checksums:
                    raise ConfigError(
                        f"The weights '{found.file}' ({name}) were trained on speakers of this "
                        f"corpus: {', '.join(met[:5]) or 'all'}. Take them away, or search other speakers."
                    )


def check_weights(scope: SearchScope, weights: Path | None) -> None:
    """The files that a run began with are still there; raises ConfigError that names the first other."""
    for transfer in scope.transfers.values():
        for found in transfer.checkpoints:
            path = weights / found.file if weights else None
            if path is None or not path.exists():
                raise ConfigError(
                    f"This run uses the weights '{found.file}', which are not in '{weights or ''}'. "
                    "Say where they are with --weights."
                )
            if sha256(tensor_file(path)) != found.sha256:
                raise ConfigError(f"'{path}' is not the file that this run began with (--weights).")
