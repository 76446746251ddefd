"""Every architecture with a backbone, frozen and fine-tuned: trained, costed, offered, refused."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console

from models import BackboneEncoder
from models.pretrained import FrozenBackbone
from models.registry import ModelError, architectures
from search.config import ConfigError, SearchConfig
from search.data.training_data import TrainingData
from search.persistence.run_record import RunRecord
from search.space.eligibility import check_weights, requested_scope
from search.space.scope import SearchScope, missing_weights, scope_for
from search.space.step_cost import drop_expensive, key_of, measure_cost
from search.stages.setup import Setup, print_scope
from search.stages.task import task_of
from search.training.cross_validation import LockstepTrial
from search.training.fold_builder import build_fold
from search.training.fold_trainer import NonFiniteLossError
from search.trial_config import TrialConfig
from tests.search.backbones import plan as plan_from
from tests.search.backbones import write
from tests.small import SMALL
from tests.specs import context_of, spec_of

BACKBONES = [entry.name for entry in architectures() if entry.checkpoints]
every_backbone = pytest.mark.parametrize("name", BACKBONES)


def with_weights(data: TrainingData, folder: Path) -> TrainingData:
    return TrainingData(data.cache, data.folds, weights=lambda: folder)


@pytest.fixture()
def prepared(name: str, tiny_data: TrainingData, tmp_path: Path) -> TrainingData:
    write(tmp_path / "weights", name, tiny_data, [])
    return with_weights(tiny_data, tmp_path / "weights")


def plan(name: str, mode: str, data: TrainingData, **training: Any) -> TrialConfig:
    assert data.weights is not None
    return plan_from(name, mode, data.weights, **training)


@every_backbone
def test_a_frozen_backbone_trains_its_head_on_what_the_cache_holds(
    name: str, prepared: TrainingData
) -> None:
    trial = LockstepTrial(plan(name, "frozen", prepared), prepared, seed=0)
    first, second = trial.trainers
    (kind,) = first.expert.kinds
    frontend = first.expert.encoder(kind).frontend
    assert isinstance(frontend, FrozenBackbone)
    assert second.expert.encoder(kind).frontend is frontend, "one backbone serves all folds"
    rows = np.arange(6)
    cached = prepared.front_ends.inputs(first.expert, rows)
    fresh = first.expert.preprocess(prepared.cache.batch(rows, [kind]))
    assert cached[kind].shape == fresh[kind].shape
    torch.testing.assert_close(cached[kind], fresh[kind], atol=3e-3, rtol=3e-3)
    before = {k: x.clone() for k, x in first.expert.frozen_state().items()}
    (result,) = trial.run()
    assert np.isfinite(result.logits).all()
    assert all(torch.equal(x, before[k]) for k, x in first.expert.frozen_state().items())


@every_backbone
def test_a_fine_tuned_backbone_moves(name: str, prepared: TrainingData) -> None:
    trainer = build_fold(plan(name, "finetune", prepared, layer_decay=0.9), prepared, 0, seed=0)
    (kind,) = trainer.expert.kinds
    encoder = trainer.expert.encoder(kind)
    assert isinstance(encoder, BackboneEncoder)
    every = [p for stage in encoder.backbone.stages() for p in stage.parameters()]
    assert {id(p) for p in every} == {id(p) for p in encoder.backbone.parameters()}
    assert len(every) == len({id(p) for p in every}), "a parameter belongs to one stage"
    before = {k: x.clone() for k, x in encoder.backbone.state_dict().items()}
    trainer.step_epoch()
    moved = encoder.backbone.state_dict().items()
    assert any(not torch.equal(x, before[k]) for k, x in moved)


@every_backbone
def test_every_mode_has_a_cost_also_when_others_were_dropped(
    name: str, prepared: TrainingData
) -> None:
    scope = scope_for(prepared.shape, (name,), weights=prepared.weights)
    assert scope.transfers[name].modes[:2] == ("frozen", "finetune")
    cost = measure_cost(scope, prepared, "cpu", "float32")
    assert set(cost.seconds) == {key_of(name, mode) for mode in scope.transfers[name].modes}
    assert all(seconds > 0 for seconds in cost.seconds.values())
    dearest = max(cost.seconds.values())
    left = drop_expensive(scope, cost.seconds, 0.0)
    assert len(left.transfers[name].modes) == 1
    config = SearchConfig(data="x", device="cpu")
    known = {"corpus": "tiny", "protocol": "p", "predicted_seconds": cost.seconds}
    record = cast(RunRecord, SimpleNamespace(**known))
    console = Console(record=True, width=200, file=io.StringIO())
    setup = Setup(
        config=config,
        data=prepared,
        task=task_of(prepared),
        record=record,
        scope=left,
        address=None,
    )
    print_scope(setup, console)
    assert f"{name} {left.transfers[name].modes[0]}: about" in console.export_text()
    assert drop_expensive(scope, cost.seconds, dearest).transfers == scope.transfers


def test_a_share_of_a_gpu_is_found_by_mode() -> None:
    context = context_of(device="cuda", gpu_share={"cnn14 frozen": 0.125})
    for mode, share in (("frozen", 0.125), ("scratch", 1.0)):
        assert (
            spec_of("audio-0000", TrialConfig("cnn14", {"transfer": mode}), context).gpus == share
        )


NAME = "spatial_transformer"


def test_settings_that_the_weights_bring_are_not_searched(
    tiny_data: TrainingData, tmp_path: Path
) -> None:
    import optuna

    from search.space.suggest import suggest_config

    write(tmp_path, NAME, tiny_data, [])
    scope = scope_for(tiny_data.shape, (NAME,), weights=tmp_path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    modes = set()
    for _ in range(12):
        trial = study.ask()
        suggested = suggest_config(trial, "video", scope)
        modes.add(suggested.settings["transfer"])
        asked = {f"{NAME}.{key}" for key in SMALL[NAME]} & set(trial.params)
        assert bool(asked) == (suggested.settings["transfer"] == "scratch")
    assert modes == {"frozen", "finetune", "scratch"}


def offered(data: TrainingData, folder: Path) -> SearchScope:
    return requested_scope(SearchConfig(only=NAME), with_weights(data, folder))


@pytest.mark.parametrize("same", ["speakers", "checksum"])
def test_a_backbone_that_knows_the_speakers_is_refused(
    tiny_data: TrainingData, tmp_path: Path, same: str
) -> None:
    index = tiny_data.index
    known = {"corpus": index.corpus, "checksum": "another", "speakers": [index.clips[0].speaker]}
    if same == "checksum":
        known = {"corpus": "renamed", "checksum": index.checksum, "speakers": []}
    # Also if another corpus came afterwards.
    last = {"corpus": "another", "checksum": "x", "speakers": ["somebody"]}
    write(tmp_path, NAME, tiny_data, [known, last])
    with pytest.raises(
        ConfigError, match=r"spatial_transformer\.safetensors.*were trained on spea"
    ):
        offered(tiny_data, tmp_path)


def test_a_backbone_of_other_people_is_taken(tiny_data: TrainingData, tmp_path: Path) -> None:
    known = {"corpus": "another", "checksum": "x", "speakers": [tiny_data.index.clips[0].speaker]}
    write(tmp_path, NAME, tiny_data, [known])
    (found,) = offered(tiny_data, tmp_path).transfers[NAME].checkpoints
    assert found.trained_on == [known]


def test_a_run_is_continued_with_its_own_weights_alone(
    tiny_data: TrainingData, tmp_path: Path
) -> None:
    write(tmp_path / "a", NAME, tiny_data, [])
    scope = offered(tiny_data, tmp_path / "a")
    check_weights(scope, tmp_path / "a")
    with pytest.raises(ConfigError, match="Say where they are with --weights"):
        check_weights(scope, None)
    write(tmp_path / "a", NAME, tiny_data, [{"corpus": "other", "checksum": "", "speakers": []}])
    with pytest.raises(ConfigError, match="is not the file that this run began with"):
        check_weights(scope, tmp_path / "a")


def test_missing_weights_are_named_with_their_place(
    tiny_data: TrainingData, tmp_path: Path
) -> None:
    scope = scope_for(tiny_data.shape, weights=tmp_path)
    told = missing_weights(scope, tmp_path)
    assert told is not None
    assert f"not in '{tmp_path}'" in told
    assert "Cnn14_16k_mAP=0.438.pth (cnn14)" in told
    assert "spatial_transformer.safetensors (spatial_transformer)" in told
    only = scope_for(tiny_data.shape, ("functionals",), weights=tmp_path)
    assert missing_weights(only, tmp_path) is None


def test_a_trial_without_a_backbone_does_not_look_for_weights(tiny_data: TrainingData) -> None:
    def nowhere() -> Path:
        raise ModelError("looked for weights")

    data = TrainingData(tiny_data.cache, tiny_data.folds, weights=nowhere)
    assert build_fold(TrialConfig.of("functionals", {}, {}), data, 0, seed=0).steps > 0
    with pytest.raises(ModelError, match="looked for weights"):
        _ = data.weights


def test_predictions_that_are_not_finite_fail_the_trial(tiny_data: TrainingData) -> None:
    trial = LockstepTrial(TrialConfig.of("functionals", {}, {"epochs": 1}), tiny_data, seed=0)
    with torch.no_grad():  # as by a last step that was too long
        trial.trainers[1].expert.classifier.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="The predictions of fold 1 are not finite"):
        trial.out_of_fold()
