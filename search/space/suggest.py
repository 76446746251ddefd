"""Suggest a trial's configuration from the search space, or take it from defaults or given parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import optuna

from models import get_architecture
from models.registry import Architecture, ModelError
from search.space.domains import Choice, Condition, Range, Space
from search.space.scope import SIDES, SearchScope
from search.space.search_space import (
    ADAM,
    AUDIO_RECIPE,
    BARE,
    DEFAULTS,
    FINETUNE,
    OF_CLASSES,
    OF_WHOLE_CLIPS,
    RECIPE,
    SPACE,
    TRAINED_ON_AUDIO,
    USUAL_DELAY,
    VIDEO_RECIPE,
    WAVEFORM_RECIPE,
    WITHOUT_NOISE_REMOVAL,
)
from search.trial_config import TrainSettings, TrialConfig

_CHOICE = "architecture"

_SETTING = "setting"
"""The one parameter where whole configurations are given, and nothing is searched."""

_TRAINING_KEYS = {f.name for f in fields(TrainSettings)}


def space_of(name: str, scope: SearchScope) -> Space:
    """Return the search space of an architecture or early fusion; what a condition asks about comes first."""
    entry = get_architecture(name)
    space: Space = {}
    if transfer := scope.transfers.get(name):
        if len(transfer.modes) > 1:
            space["transfer"] = Choice(transfer.modes)
        if len(transfer.checkpoints) > 1:
            files = tuple(found.file for found in transfer.checkpoints)
            space["checkpoint"] = Choice(files, when={"transfer": ("frozen", "finetune")})
    if entry.modality == "early":
        space |= {f"{side}_part": Choice(scope.parts[side]) for side in SIDES}
    recipe: Space = {}
    if scope.all_recipes:
        recipe = dict(RECIPE)
        recipe |= AUDIO_RECIPE if "audio" in entry.inputs else {}
        heard = "audio" in entry.inputs and not entry.costly_front_end
        left_out = scope.too_slow.get(name, ())
        changes = {key: choice for key, choice in WAVEFORM_RECIPE.items() if key not in left_out}
        recipe |= changes if heard else {}
        recipe |= VIDEO_RECIPE if "video" in entry.inputs else {}
    core = dict(SPACE.get(name) or _around_known_good(entry))
    core = {key: choice for key, choice in core.items() if key not in scope.too_slow.get(name, ())}
    if scope.saliency_maps and "guide" in core:
        core["guide"] = Choice(("spectral", "none", "maps"), when=TRAINED_ON_AUDIO)
    if transfer and "finetune" in transfer.modes:
        recipe |= FINETUNE
    if "learning_rate" in core:
        core["learning_rate"] = _unless_varied(core["learning_rate"], recipe)
    if "weight_decay" in core and "weight_decay@sgd" in recipe:
        core["weight_decay"] = _when(core["weight_decay"], ADAM)
    # What an architecture searches itself, it searches in its own range.
    space |= {key: domain for key, domain in recipe.items() if key not in core} | core
    if "noise_removal" in space:
        changed = [key for key in WAVEFORM_RECIPE if key in space]
        space |= {key: _when(space[key], WITHOUT_NOISE_REMOVAL) for key in changed}
    if scope.epochs is not None:
        space.pop("epochs", None)
    return space if scope.answers == "classes" else _for_numbers(space, scope)


def _for_numbers(space: Space, scope: SearchScope) -> Space:
    """Without what is of classes; for traces, with the raters' delay, and frames enough to see change."""
    settled = OF_CLASSES | (OF_WHOLE_CLIPS if scope.answers == "traces" else {})
    space = {key: domain for key, domain in space.items() if key not in settled}
    if scope.answers == "traces":
        if "frames" in space:
            space["frames"] = Choice(scope.frame_counts, space["frames"].when)
        space["label_delay"] = Choice(scope.delays)
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
        when |= ADAM
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


def _walk(
    name: str, scope: SearchScope, ask: Callable[[str, Choice | Range], Any]
) -> dict[str, Any]:
    """Asks for every setting whose condition holds, in order: setting → value."""
    values: dict[str, Any] = {}
    for key, domain in space_of(name, scope).items():
        known = {**DEFAULTS, **scope.start_of(name), **values}
        if key in _settled(name, known, scope):
            continue
        if all(known[other] in wanted for other, wanted in domain.when.items()):
            values[key] = ask(key, domain)
    return values


def _settled(name: str, known: Mapping[str, Any], scope: SearchScope) -> set[str]:
    """Settings that the chosen weights bring with them."""
    transfer = scope.transfers.get(name)
    if transfer is None or known["transfer"] == "scratch":
        return set()
    chosen = known.get("checkpoint")
    found = [f for f in transfer.checkpoints if f.file == chosen] or transfer.checkpoints[:1]
    return set(found[0].settings)


def suggest_config(trial: optuna.Trial, modality: str, scope: SearchScope) -> TrialConfig:
    """Asks Optuna for one configuration of a modality."""
    if given := scope.given.get(modality):
        return TrialConfig.from_json(given[trial.suggest_categorical(_SETTING, list(given))])
    # A trial that was interrupted between two parameters has its choice already.
    asked = _choice_in(trial.params)
    name = (
        trial.params[asked]
        if asked
        else trial.suggest_categorical(_named(_CHOICE, scope), list(scope.choices(modality)))
    )

    def ask(key: str, domain: Choice | Range) -> Any:
        return domain.suggest(trial, _parameter(name, key, scope, trial.params))

    return _plan(name, _walk(name, scope, ask), scope)


def config_of(params: Mapping[str, Any], modality: str, scope: SearchScope) -> TrialConfig:
    """The configuration that a finished trial's parameters stand for."""
    if _SETTING in params:
        return TrialConfig.from_json(scope.given[modality][params[_SETTING]])
    asked = _choice_in(params)
    assert asked, "a finished trial has an architecture"
    name = str(params[asked])

    def ask(key: str, domain: Choice | Range) -> Any:
        parameter = _parameter(name, key, scope, params)
        if parameter not in params:
            raise ModelError(
                f"A trial of the run has no '{parameter}': it was searched by another version "
                "of this program. Start a new run."
            )
        return params[parameter]

    return _plan(name, _walk(name, scope, ask), scope)


_PARTS = tuple(f"{side}_part" for side in SIDES)


def _parameter(name: str, key: str, scope: SearchScope, params: Mapping[str, Any]) -> str:
    """Optuna's name of a setting; early fusion's parts are asked for whatever the fusion."""
    if key not in _PARTS:
        return f"{name}.{key}"
    return next((p for p in params if p.partition("@")[0] == key), _named(key, scope))


def _named(key: str, scope: SearchScope) -> str:
    """A study cannot change a parameter's values: a later generation's choice has another name."""
    return key if scope.generation == 1 else f"{key}@{scope.generation}"


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


def _plan(name: str, values: Mapping[str, Any], scope: SearchScope) -> TrialConfig:
    entry = get_architecture(name)
    accepted = {*entry.arguments, *entry.further_settings}
    given = {key.partition("@")[0]: value for key, value in values.items()}
    parts = {side: given.pop(f"{side}_part") for side in SIDES if f"{side}_part" in given}
    # An argument of the network wins over a training setting of the same name
    # (the S1 networks crop themselves, in evaluation too).
    settings = {k: v for k, v in given.items() if k in accepted or k not in _TRAINING_KEYS}
    training = {k: v for k, v in given.items() if k not in settings}
    if scope.answers != "classes":
        training |= OF_CLASSES
    if scope.answers == "traces":
        for key, value in OF_WHOLE_CLIPS.items():
            (settings if key in accepted else training)[key] = value
        training.pop("trim_db", None)
    if scope.epochs is not None:
        training["epochs"] = scope.epochs
    elif "epochs" in training:
        training["epochs"] = max(4, round(training["epochs"] * scope.epochs_scale))
    settings |= _start(name, settings, scope)
    for side, part in parts.items():
        bare = BARE.get(name, {}).get(part, {})
        settings[side] = {"architecture": part, "settings": {**bare, **scope.start_of(part)}}
    return TrialConfig.of(name, settings, training)


def _start(name: str, settings: Mapping[str, Any], scope: SearchScope) -> dict[str, Any]:
    """How a backbone starts: the mode that was chosen, and which weights."""
    transfer = scope.transfers.get(name)
    if transfer is None:
        return {}
    mode = settings.get("transfer", transfer.modes[0])
    if mode == "scratch":
        return {"transfer": mode}
    file = settings.get("checkpoint", transfer.checkpoints[0].file)
    found = next(found for found in transfer.checkpoints if found.file == file)
    return {"transfer": mode, "checkpoint": found.to_json()}


_MOST_PAIRS = 6


def known_good(modality: str, scope: SearchScope) -> Iterator[dict[str, Any]]:
    """Parameters of the known-good defaults, tried before anything else; cheap ones first.

    Of early fusion: plain concatenation of several pairs of parts, and each other fusion once.
    Where settings are given, these.
    """
    if given := scope.given.get(modality):
        yield from ({_SETTING: label} for label in given)
        return
    for name in scope.choices(modality):
        pairs: Sequence[tuple[str, ...]] = [()]
        if modality == "early":
            pairs = scope.pairs[: _MOST_PAIRS if name == scope.fusions[0] else 1]
        for pair in pairs:
            yield _known_good(name, dict(zip(_PARTS, pair, strict=False)), scope)


def _known_good(name: str, given: Mapping[str, str], scope: SearchScope) -> dict[str, Any]:
    entry = get_architecture(name)
    usual = {"label_delay": USUAL_DELAY} if scope.answers == "traces" else {}
    defaults = {**DEFAULTS, **entry.training, **entry.default, **usual, **given}
    params: dict[str, Any] = {_named(_CHOICE, scope): name}

    def ask(key: str, domain: Choice | Range) -> Any:
        setting = key if key in defaults else key.partition("@")[0]
        if setting in defaults and setting not in ("transfer", "checkpoint"):
            value = _nearest(domain, defaults[setting])
        else:
            value = _first(domain)
        params[_parameter(name, key, scope, {})] = value
        return value

    _walk(name, scope, ask)
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
