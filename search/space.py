"""The whole conditional search space, on one page, define-by-run.

A parameter is called `architecture.argument`, the constructor's own argument name, so that
one setting can be grepped from here to the network. Early fusion's parts take their
known-good settings; which parts, and how they are trained together, is searched.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import optuna

from models import ClipShape, get_architecture
from models.registry import Architecture, ModelError, architectures
from search.train import TrainSettings, TrialPlan

MODALITIES = ("audio", "video", "early")
_CHOICE = "architecture"


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Asks Optuna."""
        return trial.suggest_categorical(name, list(self.values))


@dataclass(frozen=True)
class Range:
    """A number between two bounds, on a logarithmic scale if asked."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Asks Optuna."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


Space = dict[str, Choice | Range]

_CNN_TRAINING: Space = {
    "epochs": Choice((20, 30, 50)),
    "learning_rate": Range(1e-4, 3e-3, log=True),
    "weight_decay": Range(1e-3, 0.3, log=True),
    "dropout": Range(0.1, 0.5),
    "label_smoothing": Choice((0.0, 0.05, 0.1)),
    "mixup": Choice((0.0, 0.2, 0.4)),
    "spec_augment": Choice((0.0, 0.1, 0.2)),
}

SPACE: dict[str, Space] = {
    # audio
    "functionals": {
        "hidden_units": Choice((0, 128, 256, 512)),
        "trim_db": Choice((15.0, 20.0, 25.0, 30.0)),
        "epochs": Choice((40, 60, 100)),
        "learning_rate": Range(5e-4, 5e-3, log=True),
        "weight_decay": Range(0.1, 4.0, log=True),
        "dropout": Range(0.2, 0.7),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4, 0.8)),
    },
    "logmel_resnet": {
        "num_mels": Choice((48, 64, 80)),
        "width": Choice((12, 16, 24)),
        "recurrent_units": Choice((0, 32)),
        "trim_db": Choice((30.0, 45.0)),
        "range_db": Choice((60.0, 70.0, 80.0)),
        "epochs": Choice((25, 30, 40)),
        "learning_rate": Range(1e-3, 6e-3, log=True),
        "weight_decay": Range(0.01, 0.3, log=True),
        "dropout": Range(0.2, 0.5),
        "label_smoothing": Choice((0.05, 0.1)),
        "mixup": Choice((0.0, 0.2)),
        "spec_augment": Choice((0.0, 0.05)),
        "speed_perturbation": Choice((0.0, 0.1)),
        "crop_seconds": Choice((0.8, 1.0, 1.5)),
    },
    "spectrogram_cnn": {
        **_CNN_TRAINING,
        "crop_seconds": Choice((2.0, 3.0)),
        "num_bins": Choice((100, 200)),
    },
    "spectrogram_cnn_rnn": {
        **_CNN_TRAINING,
        "crop_seconds": Choice((2.0, 3.0)),
        "num_bins": Choice((100, 200)),
        "one_step": Choice((False, True)),
    },
    "spectrogram_cnn_lstm": {
        **_CNN_TRAINING,
        "crop_seconds": Choice((2.0, 3.0)),
        "num_bins": Choice((100, 200)),
        "one_step": Choice((False, True)),
        "epochs": Choice((20, 30)),
    },
    # video
    "action_units": {
        "hidden_units": Choice((0, 80, 128, 256)),
        "epochs": Choice((30, 40, 60)),
        "learning_rate": Range(5e-4, 2e-2, log=True),
        "weight_decay": Range(0.01, 1.0, log=True),
        "dropout": Range(0.1, 0.7),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
    },
    "cnn3d": {
        "frames": Choice((10, 16, 20)),
        "height": Choice((46, 60)),
        "width": Choice((76, 100)),
        "epochs": Choice((16, 24, 40)),
        "learning_rate": Range(1e-4, 2e-3, log=True),
        "weight_decay": Range(1e-3, 0.3, log=True),
        "dropout": Range(0.1, 0.5),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "frame_cnn": {
        "frames": Choice((8, 12)),
        "grey": Choice((True, False)),
        "width": Choice((12, 16, 24)),
        "epochs": Choice((20, 30, 50)),
        "learning_rate": Range(5e-4, 8e-3, log=True),
        "weight_decay": Range(0.01, 0.5, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
    },
    # early fusion
    "concatenation": {
        "epochs": Choice((15, 30, 40)),
        "learning_rate": Range(3e-4, 5e-3, log=True),
        "weight_decay": Range(0.01, 1.0, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
        "spec_augment": Choice((0.0, 0.1)),
    },
}

_TRAINING_KEYS = {f.name for f in fields(TrainSettings)}


@dataclass(frozen=True)
class Offer:
    """Which architectures a search may take: `audio`, `video`, and pairs for `early`.

    Attributes:
        single: Modality → architecture names.
        pairs: Early fusion's `audio+video` parts.
        epochs_scale: A preset shortens or lengthens every schedule.
        why_not: Architecture → why it is not offered.
        generation: 1, and one more whenever a finished search was given more architectures.
    """

    single: Mapping[str, tuple[str, ...]]
    pairs: tuple[str, ...]
    epochs_scale: float
    why_not: Mapping[str, str]
    generation: int = 1

    @property
    def modalities(self) -> list[str]:
        """Those with something to search."""
        found = [m for m in ("audio", "video") if self.single.get(m)]
        return [*found, "early"] if self.pairs else found

    def choices(self, modality: str) -> tuple[str, ...]:
        """Values of the modality's `architecture` parameter."""
        return self.pairs if modality == "early" else self.single[modality]

    @property
    def parameter(self) -> str:
        """Optuna's name of the choice of architecture: a study cannot change a parameter's values."""
        return _CHOICE if self.generation == 1 else f"{_CHOICE}@{self.generation}"

    def joined(self, other: Offer) -> Offer:
        """This one, and what another one has besides."""
        single = {
            modality: tuple(dict.fromkeys([*self.single.get(modality, ()), *more]))
            for modality, more in other.single.items()
        }
        pairs = tuple(dict.fromkeys([*self.pairs, *other.pairs]))
        if (single, pairs) == (dict(self.single), self.pairs):
            return self
        why_not = {name: why for name, why in self.why_not.items() if name in other.why_not}
        return Offer(single, pairs, self.epochs_scale, why_not, self.generation + 1)

    def to_json(self) -> dict[str, Any]:
        """For the run's `run.json`: a resumed run must offer the same."""
        return {
            "single": {modality: list(names) for modality, names in self.single.items()},
            "pairs": list(self.pairs),
            "epochs_scale": self.epochs_scale,
            "why_not": dict(self.why_not),
            "generation": self.generation,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Offer:
        """The inverse of `to_json`."""
        single = {modality: tuple(names) for modality, names in document["single"].items()}
        return Offer(
            single,
            tuple(document["pairs"]),
            document["epochs_scale"],
            document["why_not"],
            int(document.get("generation", 1)),
        )


def offer_for(shape: ClipShape, only: tuple[str, ...] = (), epochs_scale: float = 1.0) -> Offer:
    """Adapts the space to what the clips hold and to `--only`.

    Raises:
        ModelError: An unknown architecture in `only`, or nothing is left.
    """
    for name in only:
        get_architecture(name)
    single: dict[str, tuple[str, ...]] = {}
    why_not: dict[str, str] = {}
    for modality in ("audio", "video"):
        names = []
        for entry in architectures(modality):
            reason = _unfit(entry, shape, only)
            if reason:
                why_not[entry.name] = reason
            else:
                names.append(entry.name)
        single[modality] = tuple(names)
    pairs = tuple(f"{a}+{v}" for a in single["audio"] for v in single["video"])
    if only and "concatenation" not in only:
        pairs = ()
    elif only and not pairs:  # early fusion alone: its parts may be anything that fits
        fitting = [
            [e.name for e in architectures(m) if not _unfit(e, shape, ())]
            for m in ("audio", "video")
        ]
        pairs = tuple(f"{a}+{v}" for a in fitting[0] for v in fitting[1])
    if not pairs and not any(single.values()):
        reasons = "; ".join(
            f"{name}: {why}" for name, why in why_not.items() if why != "not asked for"
        )
        raise ModelError(
            f"No architecture is left to search. {reasons or 'The clips hold nothing that one reads.'}"
        )
    return Offer(
        single, pairs, epochs_scale, {n: w for n, w in why_not.items() if w != "not asked for"}
    )


def _unfit(entry: Architecture, shape: ClipShape, only: tuple[str, ...]) -> str | None:
    if only and entry.name not in only:
        return "not asked for"
    lacking = [kind for kind in entry.inputs if not shape.has(kind)]
    return f"not every clip has {lacking[0]}" if lacking else None


def suggest_plan(trial: optuna.Trial, modality: str, offer: Offer) -> TrialPlan:
    """Asks Optuna for one configuration of a modality."""
    # A trial that was interrupted between two parameters has its choice already.
    asked = _choice_in(trial.params)
    choice = (
        trial.params[asked]
        if asked
        else trial.suggest_categorical(offer.parameter, list(offer.choices(modality)))
    )
    name = "concatenation" if modality == "early" else choice
    values = {key: domain.suggest(trial, f"{name}.{key}") for key, domain in SPACE[name].items()}
    return _plan(name, choice, values, offer)


def plan_of(params: Mapping[str, Any], modality: str, offer: Offer) -> TrialPlan:
    """The configuration that a finished trial's parameters stand for."""
    choice = chosen_architecture(params)
    assert choice, "a finished trial has an architecture"
    name = "concatenation" if modality == "early" else choice
    missing = [key for key in SPACE[name] if f"{name}.{key}" not in params]
    if missing:
        raise ModelError(
            f"A trial of the run has no '{name}.{missing[0]}': it was searched by another version "
            "of this program. Start a new run."
        )
    values = {key: params[f"{name}.{key}"] for key in SPACE[name]}
    return _plan(name, choice, values, offer)


def chosen_architecture(params: Mapping[str, Any]) -> str | None:
    """The architecture, or early fusion's pair, that a trial's parameters name."""
    key = _choice_in(params)
    return str(params[key]) if key else None


def _choice_in(params: Mapping[str, Any]) -> str | None:
    return next((key for key in params if key.partition("@")[0] == _CHOICE), None)


def _plan(name: str, choice: str, values: Mapping[str, Any], offer: Offer) -> TrialPlan:
    entry = get_architecture(name)
    accepted = _arguments(entry)
    # An argument of the network wins over a training setting of the same name
    # (the S1 networks crop themselves, in evaluation too).
    settings = {k: v for k, v in values.items() if k in accepted or k not in _TRAINING_KEYS}
    training = {k: v for k, v in values.items() if k not in settings}
    if "epochs" in training:
        training["epochs"] = max(4, round(training["epochs"] * offer.epochs_scale))
    if name == "concatenation":
        audio, _, video = choice.partition("+")
        settings = {
            "audio": {"architecture": audio, "settings": {}},
            "video": {"architecture": video, "settings": {}},
        }
    return TrialPlan.of(name, settings, training)


def _arguments(entry: Architecture) -> set[str]:
    return set(inspect.signature(entry.build).parameters) - {"dropout"}


def known_good(modality: str, offer: Offer) -> Iterator[dict[str, Any]]:
    """Parameters of the known-good defaults, tried before anything else; cheap parts first."""
    for choice in offer.choices(modality):
        name = "concatenation" if modality == "early" else choice
        entry = get_architecture(name)
        defaults = {**TrainSettings().__dict__, **entry.training, **entry.default}
        params: dict[str, Any] = {offer.parameter: choice}
        for key, domain in SPACE[name].items():
            params[f"{name}.{key}"] = (
                _nearest(domain, defaults[key]) if key in defaults else _first(domain)
            )
        yield params


def _nearest(domain: Choice | Range, value: Any) -> Any:
    """The default, moved into the domain where it lies outside."""
    if isinstance(domain, Choice):
        if value in domain.values or not isinstance(value, int | float):
            return value if value in domain.values else domain.values[0]
        return min(domain.values, key=lambda v: abs(v - value))
    return min(max(value, domain.low), domain.high)


def _first(domain: Choice | Range) -> Any:
    return domain.values[0] if isinstance(domain, Choice) else domain.low
