from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models import architectures
from search.data.front_end_cache import FrontEndCache
from search.data.training_data import TrainingData
from search.training.cross_validation import LockstepTrial
from search.training.device import choose_precision, is_out_of_memory
from search.training.fold_builder import build_fold
from search.training.fold_trainer import FoldTrainer, NonFiniteLossError
from search.training.optimizer import cosine_share
from search.trial_config import TrainSettings, TrialConfig
from tests.small import small_settings

EARLY: dict[str, Any] = {
    "audio": {"architecture": "functionals", "settings": {}},
    "video": {"architecture": "action_units", "settings": {}},
}
AUGMENTED = {
    "mixup": 0.4, "spec_augment": 0.2, "speed_perturbation": 0.1, "crop_seconds": 1.0,
    "label_smoothing": 0.1, "batch_size": 6,
}  # fmt: skip


def plan(name: str, **training: Any) -> TrialConfig:
    settings = EARLY if name == "concatenation" else small_settings(name)
    return TrialConfig.of(name, settings, {"epochs": 1, **training})


@pytest.mark.parametrize("name", [entry.name for entry in architectures()])
def test_every_architecture_trains_an_epoch_and_predicts_every_clip(
    tiny_data: TrainingData, name: str
) -> None:
    results = list(LockstepTrial(plan(name), tiny_data, seed=0).run())
    assert [r.percent for r in results] == [100]
    assert results[0].logits.shape == (24, 6)
    assert np.isfinite(results[0].logits).all()


@pytest.mark.parametrize("name", ["functionals", "action_units", "logmel_resnet", "concatenation"])
def test_training_never_touches_a_held_out_speaker(
    tiny_data: TrainingData, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    inputs, batch = FrontEndCache.inputs, tiny_data.cache.batch

    def spy(self: FrontEndCache, expert: Any, rows: Any, **options: Any) -> Any:
        seen.update(rows.tolist())
        return inputs(self, expert, rows, **options)

    def spy_batch(rows: Any, kinds: Any) -> Any:
        seen.update(rows.tolist())
        return batch(rows, kinds)

    warm = build_fold(plan(name), tiny_data, 1, seed=0)  # front ends are cached for every clip
    warm.predict(np.arange(24))
    monkeypatch.setattr(FrontEndCache, "inputs", spy)
    monkeypatch.setattr(tiny_data.cache, "batch", spy_batch)
    trainer = build_fold(plan(name, epochs=2, **AUGMENTED), tiny_data, 0, seed=0)
    trainer.step_epoch()
    trainer.step_epoch()
    assert seen == set(tiny_data.folds.train_rows(0).tolist())
    speakers = np.asarray([entry.speaker for entry in tiny_data.cache.index.clips])
    held_out = set(speakers[tiny_data.folds.test_rows(0)])
    assert not held_out & set(speakers[sorted(seen)])


@pytest.mark.parametrize("name", ["functionals", "logmel_resnet", "frame_cnn"])
def test_the_same_seed_gives_the_same_numbers_and_another_does_not(
    tiny_data: TrainingData, name: str
) -> None:
    chosen = plan(name, epochs=2, **AUGMENTED)
    runs = [
        list(LockstepTrial(chosen, tiny_data, seed=seed, precision="float32").run())[-1].logits
        for seed in (0, 0, 1)
    ]
    assert (runs[0] == runs[1]).all()
    assert not (runs[0] == runs[2]).all()


def test_interleaving_the_folds_changes_nothing(tiny_data: TrainingData) -> None:
    chosen = plan("logmel_resnet", epochs=2, **AUGMENTED)
    together = list(LockstepTrial(chosen, tiny_data, seed=0, precision="float32").run())[-1].logits
    for fold in (1, 0):
        trainer = build_fold(chosen, tiny_data, fold, seed=0)
        trainer.step_epoch()
        trainer.step_epoch()
        rows = tiny_data.folds.test_rows(fold)
        assert (trainer.predict(rows) == together[rows]).all()


def test_a_checkpoint_continues_to_the_same_numbers(tiny_data: TrainingData) -> None:
    chosen = plan("logmel_resnet", epochs=3, **AUGMENTED)
    whole = build_fold(chosen, tiny_data, 0, seed=0)
    first = build_fold(chosen, tiny_data, 0, seed=0)
    for _ in range(3):
        whole.step_epoch()
    first.step_epoch()
    second = build_fold(chosen, tiny_data, 0, seed=0)
    second.load_state_dict(first.state_dict())
    second.step_epoch()
    second.step_epoch()
    rows = tiny_data.folds.test_rows(0)
    assert (whole.predict(rows) == second.predict(rows)).all()


def test_the_scaler_is_counted_on_the_training_side_alone(tiny_data: TrainingData) -> None:
    trainer = build_fold(plan("action_units"), tiny_data, 0, seed=0)
    rows = tiny_data.folds.train_rows(0)
    features = tiny_data.cache.batch(rows, ["features"])["features"]
    scale = trainer.expert.encoder("features").scale
    assert torch.allclose(scale.mean, features.mean(dim=0), atol=1e-5)  # type: ignore[union-attr]


def test_rungs_are_shares_of_the_own_schedule(tiny_data: TrainingData) -> None:
    results = list(LockstepTrial(plan("action_units", epochs=10), tiny_data, seed=0).run())
    assert [(r.percent, r.epoch) for r in results] == [(25, 3), (50, 5), (75, 8), (100, 10)]


def test_an_infinite_loss_fails_the_trial_and_names_the_fold(tiny_data: TrainingData) -> None:
    trainer = build_fold(plan("action_units", learning_rate=1e3), tiny_data, 0, seed=0)
    with torch.no_grad():
        trainer.expert.classifier.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"The loss of fold 0 is nan in epoch 1"):
        trainer.step_epoch()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("epochs", 0, "epochs must be positive, got 0"),
        ("learning_rate", -1.0, "learning_rate must be positive"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_an_impossible_training_setting_is_refused(
    setting: str, value: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**{setting: value})  # type: ignore[arg-type]


def test_an_unknown_training_setting_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown training setting 'momentum'\. Known: epochs"):
        TrialConfig.of("functionals", {}, {"momentum": 0.9})


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    shares = [cosine_share(step, 100, 10) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == 1.0
    assert shares[-1] < 0.001


def test_a_plan_survives_json() -> None:
    chosen = plan("concatenation", mixup=0.2)
    assert TrialConfig.from_json(chosen.to_json()) == chosen


def test_precision_is_what_was_asked_for_or_follows_the_architecture() -> None:
    assert choose_precision(plan("functionals"), "cpu", "bfloat16") == "bfloat16"
    assert choose_precision(plan("functionals"), "cpu") == "float32"


class LittleMemory:
    """Lets a network compute so many clips at a time; more is out of memory."""

    def __init__(self, trainer: FoldTrainer, clips: int) -> None:
        self.trainer, self.clips, self.seen = trainer, clips, []  # type: ignore[var-annotated]
        self.answer = trainer.expert.answer
        trainer.expert.answer = self  # type: ignore[method-assign, assignment]

    def __call__(self, fixed: dict[str, torch.Tensor]) -> torch.Tensor:
        clips = len(next(iter(fixed.values())))
        self.seen.append(clips)
        if clips > self.clips:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.answer(fixed)


def one_step(data: TrainingData, clips: int | None, **options: Any) -> FoldTrainer:
    settings = {"batch_size": 12, "dropout": 0.0, "learning_rate": 0.01}
    trainer = build_fold(plan("functionals", **settings), data, 0, seed=0, **options)
    if clips:
        LittleMemory(trainer, clips)
    trainer.step_epoch()
    return trainer


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tiny_data: TrainingData) -> None:
    settings = {"batch_size": 12, "dropout": 0.0, "mixup": 0.0}
    gradients = []
    for clips, parts in ((None, 1), (6, 2), (3, 4)):
        trainer = build_fold(plan("functionals", **settings), tiny_data, 0, seed=0)
        if clips:
            LittleMemory(trainer, clips)
        trainer._gradient(trainer.rows[:12])
        assert trainer.micro_batches.parts == parts
        gradients.append([p.grad for p in trainer.expert.parameters()])
    whole, *others = gradients
    for other in others:
        torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-6)


def test_a_trial_that_shares_a_gpu_asks_for_more_of_it_before_it_halves(
    tiny_data: TrainingData,
) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        one_step(tiny_data, 6, may_split=False)


def test_what_does_not_fit_in_the_smallest_parts_is_an_error(tiny_data: TrainingData) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        one_step(tiny_data, 1)


def test_prediction_takes_as_many_clips_as_fit(tiny_data: TrainingData) -> None:
    trainer = build_fold(plan("functionals"), tiny_data, 0, seed=0)
    rows = np.arange(24)
    expected = trainer.predict(rows)
    memory = LittleMemory(trainer, 7)
    np.testing.assert_allclose(trainer.predict(rows), expected, atol=1e-5)
    assert memory.seen == [24, 12, 6, 6, 6, 6]


def test_a_trial_goes_on_in_as_many_parts(tiny_data: TrainingData) -> None:
    trainer = one_step(tiny_data, 6)
    again = build_fold(trainer.plan, tiny_data, 0, seed=0)
    again.load_state_dict(trainer.state_dict())
    assert again.micro_batches.parts == 2


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)  # fmt: skip
def test_what_is_out_of_memory(error: Exception, yes: bool) -> None:
    assert is_out_of_memory(error) is yes
