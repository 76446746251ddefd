from __future__ import annotations

import inspect
from dataclasses import fields

import optuna
import pytest

from models import ClipShape, architectures, build_expert, get_architecture
from models.registry import ModelError
from search.space import SPACE, Choice, known_good, offer_for, suggest_plan
from search.train import TrainSettings

EVERYTHING = ClipShape(num_classes=4, sample_rate_hz=16_000, seconds=2.0, frames=20, num_features=5)


def test_the_space_covers_every_registered_architecture_and_names_only_real_settings() -> None:
    training = {f.name for f in fields(TrainSettings)}
    assert set(SPACE) == {entry.name for entry in architectures()}
    for name, space in SPACE.items():
        accepted = set(inspect.signature(get_architecture(name).build).parameters) | training
        assert set(space) <= accepted, name


@pytest.mark.parametrize("modality", ["audio", "video", "early"])
def test_known_good_defaults_lie_in_the_space_and_build(modality: str) -> None:
    offer = offer_for(EVERYTHING)
    study = optuna.create_study()
    enqueued = list(known_good(modality, offer))
    assert [p["architecture"] for p in enqueued] == list(offer.choices(modality))
    for params in enqueued[:4]:
        study.enqueue_trial(params)
        trial = study.ask()
        plan = suggest_plan(trial, modality, offer)
        assert trial.params == params
        build_expert(plan.architecture, plan.settings, EVERYTHING, dropout=plan.training.dropout)


def test_random_configurations_build() -> None:
    offer = offer_for(EVERYTHING, ("functionals", "frame_cnn", "action_units", "concatenation"))
    for modality in offer.modalities:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(5):
            plan = suggest_plan(study.ask(), modality, offer)
            assert plan.training.epochs >= 4
            build_expert(plan.architecture, plan.settings, EVERYTHING)


def test_what_the_clips_lack_is_not_offered_and_the_reason_is_kept() -> None:
    offer = offer_for(ClipShape(num_classes=4, sample_rate_hz=16_000))
    assert offer.modalities == ["audio"]
    assert offer.why_not["cnn3d"] == "not every clip has video"
    assert offer.why_not["action_units"] == "not every clip has features"


def test_only_restricts_the_offer() -> None:
    offer = offer_for(EVERYTHING, ("functionals", "cnn3d"))
    assert offer.single == {"audio": ("functionals",), "video": ("cnn3d",)}
    assert offer.pairs == ()
    both = offer_for(EVERYTHING, ("functionals", "cnn3d", "concatenation"))
    assert both.pairs == ("functionals+cnn3d",)


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"Unknown architecture 'resnet999'\. Known: functionals"):
        offer_for(EVERYTHING, ("resnet999",))


def test_an_architecture_that_the_clips_cannot_feed_says_what_is_missing() -> None:
    with pytest.raises(ModelError, match="cnn3d: not every clip has video"):
        offer_for(ClipShape(num_classes=4, sample_rate_hz=16_000), ("cnn3d",))


def test_a_preset_scales_every_schedule() -> None:
    study = optuna.create_study()
    offer = offer_for(EVERYTHING, ("functionals",), epochs_scale=0.5)
    study.enqueue_trial(next(iter(known_good("audio", offer))))
    assert suggest_plan(study.ask(), "audio", offer).training.epochs == 30
    epochs = SPACE["functionals"]["epochs"]
    assert isinstance(epochs, Choice)
    assert 60 in epochs.values
