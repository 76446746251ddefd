"""Record of a run's first start, kept in `run.json`: data, folds, search space, costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of the corpus's clips, as an exported ensemble has to prepare them.

    Attributes:
        sample_rate_hz: Of the audio; 0 without any.
        frames: Video frames of a typical clip.
        frame_size: (H, W) in pixels.
        frame_rate: Frames of a second where clips have as many as they are long; else 0.
        crop: How frames are cut out, as the index says it.
        feature_names: Of the columns of the features.
        trace_steps: Steps of a typical clip's continuous annotation; 0 without any.
    """

    sample_rate_hz: int
    frames: int
    frame_size: tuple[int, int]
    frame_rate: float
    crop: Mapping[str, Any]
    feature_names: tuple[str, ...]
    trace_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Record of a run, in plain values; written once, so that a resumed run searches the same.

    Attributes:
        corpus: Its name.
        data_checksum: Of the shards' index.
        protocol: How speakers are split.
        folds_fingerprint: Of that split.
        held_out: Test speakers.
        test_corpus: Of joined corpora the one that they are all of.
        fold_names: What each fold is, where that is more than a number.
        leak: What every output must say first; None for a split that keeps speakers apart.
        seed: Of the search.
        preset: Its name.
        device: cpu or cuda.
        inputs: What clips look like.
        people: Attribute → speaker → value.
        scope: The search's scope, as JSON.
        predicted_seconds: Cost key → seconds of a trial.
        gpu_share: Cost key → share of a GPU.
        trials_in_all: How many trials the run is to have; 0 before the search began.
        seconds_before: All that the run took so far.
        searched_before: What its search took of that.
    """

    corpus: str
    data_checksum: str
    protocol: str
    folds_fingerprint: str
    held_out: tuple[str, ...]
    test_corpus: str | None
    fold_names: tuple[str, ...]
    leak: str | None
    seed: int
    preset: str
    device: str
    inputs: Inputs
    people: Mapping[str, Mapping[str, str]]
    scope: Mapping[str, Any]
    predicted_seconds: Mapping[str, float]
    gpu_share: Mapping[str, float]
    trials_in_all: int = 0
    seconds_before: float = 0.0
    searched_before: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> RunRecord:
        """Read what `to_json` made."""
        values = {f.name: document[f.name] for f in fields(RunRecord)}
        size = tuple(document["inputs"]["frame_size"])
        names = tuple(document["inputs"]["feature_names"])
        inputs = {**document["inputs"], "frame_size": size, "feature_names": names}
        lists = {name: tuple(document[name]) for name in ("held_out", "fold_names")}
        return RunRecord(**{**values, **lists, "inputs": Inputs(**inputs)})
