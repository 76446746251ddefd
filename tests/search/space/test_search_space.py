from __future__ import annotations

import json
from dataclasses import fields

import optuna
import pytest

from models import ClipShape, architectures, build_expert, get_architecture
from models.registry import ModelError
from search.space.domains import Choice, Space
from search.space.scope import SearchScope, scope_for
from search.space.search_space import SPACE
from search.space.suggest import config_of, known_good, space_of, suggest_config
from search.trial_config import TrainSettings, TrialConfig

EVERYTHING = ClipShape(
    num_classes=4,
    sample_rate_hz=16_000,
    seconds=2.0,
    frames=20,
    num_features=5,
    feature_steps=40,
)
FUSIONS = tuple(entry.name for entry in architectures("early"))
CHEAP = ("functionals", "logmel_resnet", "frame_cnn", "action_units", *FUSIONS)


def names_of(space: Space) -> set[str]:
    """Settings without their variants."""
    return {key.partition("@")[0] for key in space}


@pytest.mark.parametrize("all_recipes", [False, True])
def test_the_space_covers_every_registered_architecture_and_names_only_real_settings(
    all_recipes: bool,
) -> None:
    training = {f.name for f in fields(TrainSettings)}
    scope = scope_for(EVERYTHING, all_recipes=all_recipes)
    assert set(SPACE) == {entry.name for entry in architectures()}
    for name in SPACE:
        entry = get_architecture(name)
        accepted = {*entry.arguments, *entry.further_settings, "audio_part", "video_part"}
        assert names_of(space_of(name, scope)) <= accepted | training, name


@pytest.mark.parametrize("modality", ["audio", "video", "early"])
@pytest.mark.parametrize("all_recipes", [False, True])
def test_known_good_defaults_lie_in_the_space_and_build(modality: str, all_recipes: bool) -> None:
    scope = scope_for(EVERYTHING, CHEAP, all_recipes=all_recipes)
    study = optuna.create_study()
    enqueued = list(known_good(modality, scope))
    assert {p["architecture"] for p in enqueued} == set(scope.choices(modality))
    for params in enqueued:
        study.enqueue_trial(params)
        trial = study.ask()
        plan = suggest_config(trial, modality, scope)
        assert trial.params == params
        assert config_of(trial.params, modality, scope) == plan
        build_expert(plan.architecture, plan.settings, EVERYTHING, dropout=plan.training.dropout)


def test_a_known_good_default_is_what_the_architecture_registered() -> None:
    scope = scope_for(EVERYTHING, ("logmel_resnet",), all_recipes=True)
    study = optuna.create_study()
    study.enqueue_trial(next(iter(known_good("audio", scope))))
    plan = suggest_config(study.ask(), "audio", scope)
    entry = get_architecture("logmel_resnet")
    assert {k: plan.settings[k] for k in entry.default} == dict(entry.default)
    assert plan.training.optimizer == "adamw"
    assert plan.training.learning_rate == entry.training["learning_rate"]


@pytest.mark.parametrize("all_recipes", [False, True])
def test_random_configurations_build_and_are_found_again_from_their_parameters(
    all_recipes: bool,
) -> None:
    scope = scope_for(EVERYTHING, CHEAP, all_recipes=all_recipes)
    for modality in scope.modalities:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(8):
            trial = study.ask()
            plan = suggest_config(trial, modality, scope)
            assert plan.training.epochs >= 4
            assert config_of(trial.params, modality, scope) == plan
            assert TrialConfig.from_json(plan.to_json()) == plan
            build_expert(plan.architecture, plan.settings, EVERYTHING)


def test_each_optimiser_has_a_range_of_its_own() -> None:
    scope = scope_for(EVERYTHING, ("functionals",), all_recipes=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(30):
        trial = study.ask()
        rate = suggest_config(trial, "audio", scope).training.learning_rate
        sgd = trial.params["functionals.optimizer"] == "sgd_nesterov"
        assert ("functionals.learning_rate@sgd" in trial.params) == sgd
        assert ("functionals.learning_rate" in trial.params) != sgd
        assert rate == trial.params["functionals.learning_rate" + "@sgd" * sgd]
        seen.add(sgd)
    assert seen == {True, False}


def test_early_fusion_searches_its_parts_and_how_they_are_joined() -> None:
    scope = scope_for(EVERYTHING, CHEAP)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    plans = [suggest_config(study.ask(), "early", scope) for _ in range(40)]
    assert {plan.architecture for plan in plans} == set(scope.fusions)
    assert {tuple(plan.parts.values()) for plan in plans} == set(scope.pairs)


def test_a_schedule_of_a_given_length_is_not_searched() -> None:
    scope = scope_for(EVERYTHING, ("functionals",), 0.5, epochs=2)
    study = optuna.create_study()
    study.enqueue_trial(next(iter(known_good("audio", scope))))
    trial = study.ask()
    assert suggest_config(trial, "audio", scope).training.epochs == 2
    assert "functionals.epochs" not in trial.params


def test_what_the_clips_lack_is_not_offered_and_the_reason_is_kept() -> None:
    scope = scope_for(ClipShape(num_classes=4, sample_rate_hz=16_000))
    assert scope.modalities == ["audio"]
    assert scope.why_not["cnn3d"] == "not every clip has video"
    assert scope.why_not["action_units"] == "not every clip has features"


def test_only_restricts_the_offer() -> None:
    scope = scope_for(EVERYTHING, ("functionals", "cnn3d"))
    assert scope.single == {"audio": ("functionals",), "video": ("cnn3d",)}
    assert scope.fusions == ()
    assert scope.modalities == ["audio", "video"]
    both = scope_for(EVERYTHING, ("functionals", "cnn3d", "concatenation"))
    assert both.fusions == ("concatenation",)
    assert both.pairs == [("functionals", "cnn3d")]


def test_a_fusion_alone_may_join_whatever_fits() -> None:
    scope = scope_for(EVERYTHING, ("gated",))
    assert scope.modalities == ["early"]
    assert ("functionals", "action_units") in scope.pairs


def test_an_offer_survives_its_json() -> None:
    scope = scope_for(EVERYTHING, all_recipes=True, epochs=3)
    assert SearchScope.from_json(json.loads(json.dumps(scope.to_json()))) == scope


def test_an_offer_of_an_older_program_is_refused() -> None:
    with pytest.raises(ModelError, match="searched by an older version"):
        SearchScope.from_json({"single": {}, "pairs": [], "epochs_scale": 1.0, "why_not": {}})


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"Unknown architecture 'resnet999'\. Known: alexnet"):
        scope_for(EVERYTHING, ("resnet999",))


def test_an_architecture_that_the_clips_cannot_feed_says_what_is_missing() -> None:
    with pytest.raises(ModelError, match="cnn3d: not every clip has video"):
        scope_for(ClipShape(num_classes=4, sample_rate_hz=16_000), ("cnn3d",))


def test_a_preset_scales_every_schedule() -> None:
    study = optuna.create_study()
    scope = scope_for(EVERYTHING, ("functionals",), epochs_scale=0.5)
    study.enqueue_trial(next(iter(known_good("audio", scope))))
    assert suggest_config(study.ask(), "audio", scope).training.epochs == 30
    epochs = SPACE["functionals"]["epochs"]
    assert isinstance(epochs, Choice)
    assert 60 in epochs.values


def test_a_front_end_that_costs_more_than_its_network_keeps_its_cache() -> None:
    scope = scope_for(EVERYTHING, ("functionals", "logmel_resnet"), all_recipes=True)
    changes = {"noise", "reverberation", "speed_perturbation", "pitch_perturbation"}
    assert get_architecture("functionals").costly_front_end
    assert not changes & space_of("functionals", scope).keys()
    assert changes <= space_of("logmel_resnet", scope).keys()
    assert "noise_removal" in space_of("functionals", scope)  # one pass a value, cached


def test_waveforms_without_their_noise_stay_as_recorded_so_that_they_stay_cached() -> None:
    scope = scope_for(EVERYTHING, ("logmel_resnet", "residual_lstm"), all_recipes=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    plans = [suggest_config(study.ask(), "audio", scope) for _ in range(60)]
    cleaned = [plan for plan in plans if plan.settings.get("noise_removal")]
    assert cleaned
    assert not any(plan.training.changes_waveforms for plan in cleaned)
    assert any(plan.training.changes_waveforms for plan in plans)
