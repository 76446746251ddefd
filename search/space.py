"""The whole conditional search space, on one page, define-by-run.

A parameter is called `architecture.argument`, the constructor's own argument name, so that
one setting can be grepped from here to the network. Early fusion's parts take their
known-good settings; which parts, how they are joined and how they train together is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import optuna

from models import get_architecture
from models.registry import Architecture, ModelError
from search.offer import SIDES, Offer
from search.plan import OPTIMIZERS, SCHEDULES, TrainSettings, TrialPlan

MODALITIES = ("audio", "video", "early")
_CHOICE = "architecture"
_SETTING = "setting"
"""The one parameter where whole configurations are given, and nothing is searched."""

Condition = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Choice:
    """One of several values; asked for only `when` other settings have certain values."""

    values: tuple[Any, ...]
    when: Condition = field(default_factory=dict)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Asks Optuna."""
        return trial.suggest_categorical(name, list(self.values))


@dataclass(frozen=True)
class Range:
    """A number between two bounds, on a logarithmic scale if asked; `when` as in `Choice`."""

    low: float
    high: float
    log: bool = False
    when: Condition = field(default_factory=dict)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Asks Optuna."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


Space = dict[str, Choice | Range]

# Everything about training that is not in every architecture's core: searched where the preset
# has the trials for it. A key `setting@variant` is that setting, with a range of its own.
_ADAM: Condition = {"optimizer": ("adamw", "adam_amsgrad")}
_SGD: Condition = {"optimizer": ("sgd_nesterov",)}

RECIPE: Space = {
    "optimizer": Choice(OPTIMIZERS),
    "learning_rate@sgd": Range(3e-3, 0.3, log=True, when=_SGD),
    "weight_decay@sgd": Range(1e-5, 1e-2, log=True, when=_SGD),
    "schedule": Choice(tuple(name for name in SCHEDULES if name != "constant")),
    "averaging": Choice(("none", "ema", "swa")),
    "gradient_clip": Choice((5.0, 1.0)),
    "focal_gamma": Choice((0.0, 1.0, 2.0)),
    "class_balance": Choice((0.0, 0.99, 0.999)),
    "batch_size": Choice((16, 32, 64)),
}

_HEARD: Condition = {"transfer": ("scratch", "finetune")}
"""A frozen backbone hears and sees every clip once, as it was recorded, and one way for all trials."""

AUDIO_RECIPE: Space = {
    "noise_removal": Choice((0.0, 0.5, 0.8), when=_HEARD),
}

_ONCE: Condition = {"noise_removal": (0.0,)}
"""Where noise is removed waveforms stay as recorded, so that it is removed once a clip and cached."""

WAVEFORM_RECIPE: Space = {
    "noise": Choice((0.0, 0.3), when=_HEARD),
    "reverberation": Choice((0.0, 0.3), when=_HEARD),
    "speed_perturbation": Choice((0.0, 0.1), when=_HEARD),
    "pitch_perturbation": Choice((0.0, 1.0, 2.0), when=_HEARD),
}

"""What runs the front end anew in every step: not for one that takes longer than all the rest,
nor together with noise removal, which would run in every step as well."""

VIDEO_RECIPE: Space = {
    "spatial_crop": Choice((0.0, 0.1, 0.2), when=_HEARD),
    "colour_jitter": Choice((0.0, 0.2, 0.4), when=_HEARD),
}

EARLY: Space = {
    "modality_dropout": Choice((0.0, 0.1, 0.3)),
    "alone_share": Choice((0.0, 0.25)),  # joint for as long before it is first judged
    "epochs": Choice((15, 30, 40)),
    "learning_rate": Range(3e-4, 5e-3, log=True),
    "weight_decay": Range(0.01, 1.0, log=True),
    "dropout": Range(0.1, 0.6),
    "label_smoothing": Choice((0.0, 0.1)),
    "mixup": Choice((0.0, 0.2, 0.4)),
    "spec_augment": Choice((0.0, 0.1)),
}

FINETUNE: Space = {
    "learning_rate@finetune": Range(1e-5, 1e-3, log=True, when={"transfer": ("finetune",)}),
    "layer_decay": Choice((1.0, 0.9, 0.75), when={"transfer": ("finetune",)}),
    "unfreeze_share": Choice((0.0, 0.3), when={"transfer": ("finetune",)}),
}

BARE: dict[str, dict[str, dict[str, Any]]] = {
    "joint_lstm": {
        "waveform_cnn_lstm": {"recurrent_units": 0},
        "resnet_lstm": {"recurrent_units": 0},
    }
}
"""Parts that a fusion joins in front of their own recurrence."""

_DEFAULTS: dict[str, Any] = {
    "transfer": "scratch",
    "noise_removal": 0.0,
    **TrainSettings().__dict__,
}
"""What a condition goes by where a setting is not searched."""

_CNN_TRAINING: Space = {
    "epochs": Choice((20, 30, 50)),
    "learning_rate": Range(1e-4, 3e-3, log=True),
    "weight_decay": Range(1e-3, 0.3, log=True),
    "dropout": Range(0.1, 0.5),
    "label_smoothing": Choice((0.0, 0.05, 0.1)),
    "mixup": Choice((0.0, 0.2, 0.4)),
    "spec_augment": Choice((0.0, 0.1, 0.2)),
}

OF_CLASSES: dict[str, Any] = {
    "label_smoothing": 0.0,
    "focal_gamma": 0.0,
    "class_balance": 0.0,
    "mixup": 0.0,
}
"""What has a meaning for classes alone; for numbers it is not searched, and so."""

OF_WHOLE_CLIPS: dict[str, Any] = {
    "trim_db": 0.0,
    "crop_seconds": 0.0,
    "speed_perturbation": 0.0,
}
"""What would shift a clip's steps against its trace."""

_USUAL_DELAY = 2.0
"""Seconds that raters are late, as a first guess."""

_SCRATCH: Condition = {"transfer": ("scratch",)}
"""What pretrained weights settle."""

_SPEECH: Space = {
    "units": Choice((128, 256, 512)),
    "pooling": Choice(("mean", "attention")),
    "epochs": Choice((10, 20, 40)),
    "learning_rate": Range(3e-4, 5e-3, log=True),
    "weight_decay": Range(1e-3, 0.1, log=True),
    "dropout": Range(0.0, 0.5),
    "label_smoothing": Choice((0.0, 0.1)),
    "mixup": Choice((0.0, 0.2, 0.4)),
}

_KINETICS: Space = {
    "frames": Choice((8, 16), when=_HEARD),
    "size": Choice((64, 80, 112), when=_HEARD),
    "stages": Choice((3, 4), when=_HEARD),
    "pooling": Choice(("mean", "mean_max")),
    "epochs": Choice((10, 20, 30)),
    "learning_rate": Range(1e-4, 3e-3, log=True),
    "weight_decay": Range(0.01, 0.3, log=True),
    "dropout": Range(0.1, 0.6),
    "label_smoothing": Choice((0.0, 0.1)),
    "mixup": Choice((0.0, 0.2)),
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
    "cnn14": {
        "hidden_units": Choice((0, 256, 512)),
        "rate_hz": Choice((16000, 32000), when=_SCRATCH),
        "epochs": Choice((15, 20, 30)),
        "learning_rate": Range(1e-4, 3e-3, log=True),
        "weight_decay": Range(1e-3, 0.1, log=True),
        "dropout": Range(0.2, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
        "spec_augment": Choice((0.0, 0.1, 0.2), when=_HEARD),
        "crop_seconds": Choice((0.0, 2.0, 3.0), when=_HEARD),
    },
    "alexnet": {
        "hidden_units": Choice((0, 256)),
        "num_mels": Choice((64, 128), when=_HEARD),
        "colours": Choice((False, True), when=_HEARD),
        "trim_db": Choice((0.0, 45.0), when=_HEARD),
        "epochs": Choice((15, 20, 30)),
        "learning_rate": Range(5e-5, 2e-3, log=True),
        "weight_decay": Range(1e-3, 0.1, log=True),
        "dropout": Range(0.2, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
        "spec_augment": Choice((0.0, 0.1), when=_HEARD),
    },
    "waveform_cnn_lstm": {
        "variant": Choice(("code", "paper")),
        "further_filters": Choice((40, 400)),
        "recurrent_units": Choice((64, 128, 256)),
        "waveform_dropout": Choice((0.0, 0.5)),
        "crop_seconds": Choice((1.0, 2.0, 3.0)),
        "epochs": Choice((20, 40, 60)),
        "learning_rate": Range(1e-4, 3e-3, log=True),
        "weight_decay": Range(1e-3, 0.1, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "residual_lstm": {
        "num_mels": Choice((48, 64, 80)),
        "stack": Choice((3, 4, 8)),
        "units": Choice((32, 48, 64)),
        "layers": Choice((2, 3)),
        "heads": Choice((2, 4)),
        "layer_dropout": Choice((0.1, 0.2, 0.4)),
        "trim_db": Choice((30.0, 45.0)),
        "epochs": Choice((25, 40, 60)),
        "learning_rate": Range(5e-4, 5e-3, log=True),
        "weight_decay": Range(0.01, 0.3, log=True),
        "dropout": Range(0.2, 0.5),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
        "spec_augment": Choice((0.0, 0.1)),
        "speed_perturbation": Choice((0.0, 0.1)),
    },
    "wav2vec2": _SPEECH,
    "hubert": _SPEECH,
    "wavlm": _SPEECH,
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
    "action_unit_lstm": {
        "units": Choice((50, 150, 200, 300)),
        "recurrent_dropout": Choice((0.0, 0.3, 0.5)),
        "epochs": Choice((30, 60, 100)),
        "learning_rate": Range(3e-4, 3e-3, log=True),
        "weight_decay": Range(0.01, 0.5, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "spatial_transformer": {
        "guide": Choice(("spectral", "none"), when=_HEARD),
        "frames": Choice((8, 16, 32), when=_HEARD),
        "scaling": Choice(("clip", "unit"), when=_HEARD),
        "frame_values": Choice((50, 810), when=_HEARD),
        "units": Choice((50, 150, 300)),
        "recurrent_dropout": Choice((0.0, 0.3, 0.5)),
        "epochs": Choice((20, 40, 80)),
        "learning_rate": Range(3e-4, 3e-3, log=True),
        "weight_decay": Range(0.01, 0.3, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "resnet_lstm": {
        "depth": Choice((18, 34, 50), when=_SCRATCH),
        "stages": Choice((3, 4), when=_HEARD),
        "frames": Choice((4, 8, 16), when=_HEARD),
        "size": Choice((64, 96), when=_HEARD),
        "scaling": Choice(("unit", "imagenet", "clip"), when=_HEARD),
        "recurrent_units": Choice((64, 128, 256)),
        "bidirectional": Choice((False, True)),
        "epochs": Choice((10, 20, 30)),
        "learning_rate": Range(1e-4, 3e-3, log=True),
        "weight_decay": Range(0.01, 0.3, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "r3d_18": _KINETICS,
    "mc3_18": _KINETICS,
    "r2plus1d_18": _KINETICS,
    "s3d": _KINETICS,
    "swin3d_t": _KINETICS,
    # early fusion
    "concatenation": EARLY,
    "gated": {**EARLY, "dim": Choice((32, 64, 128))},
    "bilinear": {**EARLY, "dim": Choice((32, 64, 128)), "rank": Choice((2, 4, 8))},
    "cross_attention": {**EARLY, "dim": Choice((32, 64, 128)), "num_heads": Choice((2, 4))},
    "joint_lstm": {**EARLY, "units": Choice((64, 128, 256))},
}

_TRAINING_KEYS = {f.name for f in fields(TrainSettings)}


def space_of(name: str, offer: Offer) -> Space:
    """What is searched of an architecture or early fusion; what a condition asks about comes first."""
    entry = get_architecture(name)
    space: Space = {}
    if transfer := offer.transfers.get(name):
        if len(transfer.modes) > 1:
            space["transfer"] = Choice(transfer.modes)
        if len(transfer.checkpoints) > 1:
            files = tuple(found.file for found in transfer.checkpoints)
            space["checkpoint"] = Choice(files, when={"transfer": ("frozen", "finetune")})
    if entry.modality == "early":
        space |= {f"{side}_part": Choice(offer.parts[side]) for side in SIDES}
    recipe: Space = {}
    if offer.all_recipes:
        recipe = dict(RECIPE)
        recipe |= AUDIO_RECIPE if "audio" in entry.inputs else {}
        heard = "audio" in entry.inputs and not entry.costly_front_end
        left_out = offer.too_slow.get(name, ())
        changes = {key: choice for key, choice in WAVEFORM_RECIPE.items() if key not in left_out}
        recipe |= changes if heard else {}
        recipe |= VIDEO_RECIPE if "video" in entry.inputs else {}
    core = dict(SPACE.get(name) or _around_known_good(entry))
    core = {key: choice for key, choice in core.items() if key not in offer.too_slow.get(name, ())}
    if offer.saliency_maps and "guide" in core:
        core["guide"] = Choice(("spectral", "none", "maps"), when=_HEARD)
    if transfer and "finetune" in transfer.modes:
        recipe |= FINETUNE
    if "learning_rate" in core:
        core["learning_rate"] = _unless_varied(core["learning_rate"], recipe)
    if "weight_decay" in core and "weight_decay@sgd" in recipe:
        core["weight_decay"] = _when(core["weight_decay"], _ADAM)
    # What an architecture searches itself, it searches in its own range.
    space |= {key: domain for key, domain in recipe.items() if key not in core} | core
    if "noise_removal" in space:
        changed = [key for key in WAVEFORM_RECIPE if key in space]
        space |= {key: _when(space[key], _ONCE) for key in changed}
    if offer.epochs is not None:
        space.pop("epochs", None)
    return space if offer.answers == "classes" else _for_numbers(space, offer)


def _for_numbers(space: Space, offer: Offer) -> Space:
    """Without what is of classes; for traces, with the raters' delay, and frames enough to see change."""
    settled = OF_CLASSES | (OF_WHOLE_CLIPS if offer.answers == "traces" else {})
    space = {key: domain for key, domain in space.items() if key not in settled}
    if offer.answers == "traces":
        if "frames" in space:
            space["frames"] = Choice(offer.frame_counts, space["frames"].when)
        space["label_delay"] = Choice(offer.delays)
    return space


def _around_known_good(entry: Architecture) -> Space:
    """For an architecture without an entry above: its training, and nothing of the network."""
    known = TrainSettings(**entry.training)
    rate, decay = known.learning_rate, max(known.weight_decay, 1e-4)
    return {
        "epochs": Choice(tuple(max(1, round(known.epochs * share)) for share in (0.6, 1.0, 1.6))),
        "learning_rate": Range(rate / 5, rate * 5, log=True),
        "weight_decay": Range(decay / 5, decay * 5, log=True),
        "dropout": Range(0.0, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
    }


def _unless_varied(domain: Choice | Range, recipe: Space) -> Choice | Range:
    """The plain learning rate, where no variant of it applies."""
    when: dict[str, tuple[Any, ...]] = {}
    if "learning_rate@sgd" in recipe:
        when |= _ADAM
    if "learning_rate@finetune" in recipe:
        when |= {"transfer": ("scratch", "frozen")}
        sgd = recipe.get("learning_rate@sgd")
        if sgd is not None:  # fine-tuning has one range, whatever the optimiser
            recipe["learning_rate@sgd"] = _when(sgd, {"transfer": ("scratch", "frozen")})
    return _when(domain, when)


def _when(domain: Choice | Range, condition: Condition) -> Choice | Range:
    when = {**domain.when, **condition}
    if isinstance(domain, Choice):
        return Choice(domain.values, when)
    return Range(domain.low, domain.high, domain.log, when)


def _walk(name: str, offer: Offer, ask: Callable[[str, Choice | Range], Any]) -> dict[str, Any]:
    """Asks for every setting whose condition holds, in order: setting → value."""
    values: dict[str, Any] = {}
    for key, domain in space_of(name, offer).items():
        known = {**_DEFAULTS, **offer.start_of(name), **values}
        if key in _settled(name, known, offer):
            continue
        if all(known[other] in wanted for other, wanted in domain.when.items()):
            values[key] = ask(key, domain)
    return values


def _settled(name: str, known: Mapping[str, Any], offer: Offer) -> set[str]:
    """Settings that the chosen weights bring with them."""
    transfer = offer.transfers.get(name)
    if transfer is None or known["transfer"] == "scratch":
        return set()
    chosen = known.get("checkpoint")
    found = [f for f in transfer.checkpoints if f.file == chosen] or transfer.checkpoints[:1]
    return set(found[0].settings)


def suggest_plan(trial: optuna.Trial, modality: str, offer: Offer) -> TrialPlan:
    """Asks Optuna for one configuration of a modality."""
    if given := offer.given.get(modality):
        return TrialPlan.from_json(given[trial.suggest_categorical(_SETTING, list(given))])
    # A trial that was interrupted between two parameters has its choice already.
    asked = _choice_in(trial.params)
    name = (
        trial.params[asked]
        if asked
        else trial.suggest_categorical(_named(_CHOICE, offer), list(offer.choices(modality)))
    )

    def ask(key: str, domain: Choice | Range) -> Any:
        return domain.suggest(trial, _parameter(name, key, offer, trial.params))

    return _plan(name, _walk(name, offer, ask), offer)


def plan_of(params: Mapping[str, Any], modality: str, offer: Offer) -> TrialPlan:
    """The configuration that a finished trial's parameters stand for."""
    if _SETTING in params:
        return TrialPlan.from_json(offer.given[modality][params[_SETTING]])
    asked = _choice_in(params)
    assert asked, "a finished trial has an architecture"
    name = str(params[asked])

    def ask(key: str, domain: Choice | Range) -> Any:
        parameter = _parameter(name, key, offer, params)
        if parameter not in params:
            raise ModelError(
                f"A trial of the run has no '{parameter}': it was searched by another version "
                "of this program. Start a new run."
            )
        return params[parameter]

    return _plan(name, _walk(name, offer, ask), offer)


_PARTS = tuple(f"{side}_part" for side in SIDES)


def _parameter(name: str, key: str, offer: Offer, params: Mapping[str, Any]) -> str:
    """Optuna's name of a setting; early fusion's parts are asked for whatever the fusion."""
    if key not in _PARTS:
        return f"{name}.{key}"
    return next((p for p in params if p.partition("@")[0] == key), _named(key, offer))


def _named(key: str, offer: Offer) -> str:
    """A study cannot change a parameter's values: a later generation's choice has another name."""
    return key if offer.generation == 1 else f"{key}@{offer.generation}"


def chosen_architecture(params: Mapping[str, Any]) -> str | None:
    """The architecture, or the fusion with its parts, or the given setting, that a trial's parameters name."""
    if _SETTING in params:
        return str(params[_SETTING])
    key = _choice_in(params)
    if key is None:
        return None
    parts = [str(v) for p, v in params.items() if p.partition("@")[0] in _PARTS]
    return f"{params[key]}({'+'.join(parts)})" if parts else str(params[key])


def _choice_in(params: Mapping[str, Any]) -> str | None:
    return next((key for key in params if key.partition("@")[0] == _CHOICE), None)


def _plan(name: str, values: Mapping[str, Any], offer: Offer) -> TrialPlan:
    entry = get_architecture(name)
    accepted = {*entry.arguments, *entry.further_settings}
    given = {key.partition("@")[0]: value for key, value in values.items()}
    parts = {side: given.pop(f"{side}_part") for side in SIDES if f"{side}_part" in given}
    # An argument of the network wins over a training setting of the same name
    # (the S1 networks crop themselves, in evaluation too).
    settings = {k: v for k, v in given.items() if k in accepted or k not in _TRAINING_KEYS}
    training = {k: v for k, v in given.items() if k not in settings}
    if offer.answers != "classes":
        training |= OF_CLASSES
    if offer.answers == "traces":
        for key, value in OF_WHOLE_CLIPS.items():
            (settings if key in accepted else training)[key] = value
        training.pop("trim_db", None)
    if offer.epochs is not None:
        training["epochs"] = offer.epochs
    elif "epochs" in training:
        training["epochs"] = max(4, round(training["epochs"] * offer.epochs_scale))
    settings |= _start(name, settings, offer)
    for side, part in parts.items():
        bare = BARE.get(name, {}).get(part, {})
        settings[side] = {"architecture": part, "settings": {**bare, **offer.start_of(part)}}
    return TrialPlan.of(name, settings, training)


def _start(name: str, settings: Mapping[str, Any], offer: Offer) -> dict[str, Any]:
    """How a backbone starts: the mode that was chosen, and which weights."""
    transfer = offer.transfers.get(name)
    if transfer is None:
        return {}
    mode = settings.get("transfer", transfer.modes[0])
    if mode == "scratch":
        return {"transfer": mode}
    file = settings.get("checkpoint", transfer.checkpoints[0].file)
    found = next(found for found in transfer.checkpoints if found.file == file)
    return {"transfer": mode, "checkpoint": found.to_json()}


_MOST_PAIRS = 6


def known_good(modality: str, offer: Offer) -> Iterator[dict[str, Any]]:
    """Parameters of the known-good defaults, tried before anything else; cheap ones first.

    Of early fusion: plain concatenation of several pairs of parts, and each other fusion once.
    Where settings are given, these.
    """
    if given := offer.given.get(modality):
        yield from ({_SETTING: label} for label in given)
        return
    for name in offer.choices(modality):
        pairs: Sequence[tuple[str, ...]] = [()]
        if modality == "early":
            pairs = offer.pairs[: _MOST_PAIRS if name == offer.fusions[0] else 1]
        for pair in pairs:
            yield _known_good(name, dict(zip(_PARTS, pair, strict=False)), offer)


def _known_good(name: str, given: Mapping[str, str], offer: Offer) -> dict[str, Any]:
    entry = get_architecture(name)
    usual = {"label_delay": _USUAL_DELAY} if offer.answers == "traces" else {}
    defaults = {**_DEFAULTS, **entry.training, **entry.default, **usual, **given}
    params: dict[str, Any] = {_named(_CHOICE, offer): name}

    def ask(key: str, domain: Choice | Range) -> Any:
        setting = key if key in defaults else key.partition("@")[0]
        if setting in defaults and setting not in ("transfer", "checkpoint"):
            value = _nearest(domain, defaults[setting])
        else:
            value = _first(domain)
        params[_parameter(name, key, offer, {})] = value
        return value

    _walk(name, offer, ask)
    return params


def _nearest(domain: Choice | Range, value: Any) -> Any:
    """The default, moved into the domain where it lies outside."""
    if isinstance(domain, Choice):
        if value in domain.values or not isinstance(value, int | float):
            return value if value in domain.values else domain.values[0]
        return min(domain.values, key=lambda v: abs(v - value))
    return min(max(value, domain.low), domain.high)


def _first(domain: Choice | Range) -> Any:
    return domain.values[0] if isinstance(domain, Choice) else domain.low
