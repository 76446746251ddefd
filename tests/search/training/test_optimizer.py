"""Losses, schedules, thawing and averaged weights; expected values by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import BackboneEncoder, Expert
from models.base import Backbone, FrontEnd
from models.fusion.concatenation import Concatenation
from search.data.training_data import TrainingData
from search.training.cross_validation import LockstepTrial
from search.training.fold_builder import build_fold
from search.training.losses import class_balanced_weights, cross_entropy
from search.training.optimizer import Optimizer, cosine_share, one_cycle_share
from search.training.weight_averaging import AveragedWeights
from search.trial_config import TrainSettings, TrialConfig

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
WANTED = torch.eye(3)[[0, 1]]


def test_without_more_it_is_cross_entropy() -> None:
    expected = nn.functional.cross_entropy(LOGITS, torch.tensor([0, 1]))
    torch.testing.assert_close(cross_entropy(LOGITS, WANTED), expected)


def test_the_focal_loss_by_hand() -> None:
    # p = (0.8438, 0.5761): the surer clip counts (1 - p)² = 0.0244, the other 0.1797.
    p = torch.softmax(LOGITS, 1)[[0, 1], [0, 1]]
    expected = -((1 - p) ** 2 * p.log()).mean()
    torch.testing.assert_close(cross_entropy(LOGITS, WANTED, focal_gamma=2.0), expected)
    assert float(expected) == pytest.approx(0.0516, abs=1e-3)


def test_a_sure_and_right_answer_has_a_finite_focal_gradient() -> None:
    logits = torch.tensor([[100.0, 0.0]], requires_grad=True)
    cross_entropy(logits, torch.tensor([[1.0, 0.0]]), focal_gamma=0.5).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_class_weights_multiply_a_clips_own_class() -> None:
    each = -LOGITS.log_softmax(1)[[0, 1], [0, 1]]
    weights = torch.tensor([0.5, 2.0, 1.0])
    expected = (0.5 * each[0] + 2.0 * each[1]) / 2
    torch.testing.assert_close(cross_entropy(LOGITS, WANTED, class_weights=weights), expected)


def test_class_balanced_weights_by_hand() -> None:
    # β = 0.5: (1 - 0.5) / (1 - 0.5^n) is 1 for one clip and 2/3 for two.
    weights = class_balanced_weights(np.array([1, 2]), 0.5)
    assert weights[0] / weights[1] == pytest.approx(1.5)
    assert (weights * np.array([1, 2])).sum() / 3 == pytest.approx(1.0)


def test_a_class_without_clips_has_a_finite_weight() -> None:
    assert np.isfinite(class_balanced_weights(np.array([0, 5]), 0.9)).all()


def test_the_cosine_warms_up_and_ends_at_zero() -> None:
    shares = [cosine_share(step, 100, 10) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(1.0)
    assert shares.index(max(shares)) in (9, 10)
    assert shares[-1] < 0.01


def test_one_cycle_peaks_at_three_tenths() -> None:
    shares = [one_cycle_share(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 25)
    assert shares.index(max(shares)) == 30
    assert shares[30] == pytest.approx(1.0, abs=1e-3)
    assert shares[-1] < 0.01
    assert (np.diff(shares[:31]) > 0).all()
    assert (np.diff(shares[30:]) < 0).all()


class _Stack(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.second(self.first(x).relu())[:, None], lengths

    def stages(self) -> list[nn.Module]:
        return [self.first, self.second]


class _Encoder(BackboneEncoder):
    kind, embedding_dim, finetuned = "features", 4, True

    def __init__(self) -> None:
        super().__init__()
        self.frontend, self.backbone = FrontEnd(), _Stack()

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x[:, 0]


@pytest.fixture()
def finetuned() -> Expert:
    torch.manual_seed(0)
    return Expert({"features": _Encoder()}, 3)


def rates(optimizer: Optimizer, expert: Expert) -> dict[str, float]:
    """Parameter → its learning rate."""
    of = {
        id(p): float(group["lr"])
        for group in optimizer.optimizer.param_groups
        for p in group["params"]
    }
    return {name: of[id(p)] for name, p in expert.named_parameters()}


def test_lower_stages_learn_slower(finetuned: Expert) -> None:
    settings = TrainSettings(learning_rate=1.0, layer_decay=0.5, warmup_share=0.0)
    optimizer = Optimizer(finetuned, settings, 100)
    optimizer.set_rate(0)
    found = rates(optimizer, finetuned)
    assert found["classifier.weight"] == pytest.approx(1.0)
    assert found["encoders.features.backbone.second.weight"] == pytest.approx(0.5)
    assert found["encoders.features.backbone.first.bias"] == pytest.approx(0.25)


def test_two_backbones_have_rates_of_their_own() -> None:
    torch.manual_seed(0)
    parts = {"audio": _Encoder(), "features": _Encoder()}
    expert = Expert(parts, 3, fusion=Concatenation(list(parts.values())))
    settings = TrainSettings(learning_rate=1.0, layer_decay=0.5, warmup_share=0.0)
    optimizer = Optimizer(expert, settings, 100)
    optimizer.set_rate(0)
    found = rates(optimizer, expert)
    for kind in parts:
        assert found[f"encoders.{kind}.backbone.second.weight"] == pytest.approx(0.5)
        assert found[f"encoders.{kind}.backbone.first.weight"] == pytest.approx(0.25)


def test_stages_thaw_from_the_last_to_the_first(finetuned: Expert) -> None:
    optimizer = Optimizer(finetuned, TrainSettings(unfreeze_share=0.5), 100)
    backbone = finetuned.encoder("features").backbone
    seen = []
    for step in (0, 24, 25, 49, 50, 99):
        finetuned.train()
        optimizer.set_rate(step)
        seen.append((backbone.second.weight.requires_grad, backbone.first.weight.requires_grad))
        assert (backbone.second.training, backbone.first.training) == seen[-1]
    assert seen == [
        (False, False), (False, False), (True, False), (True, False), (True, True), (True, True),
    ]  # fmt: skip
    assert finetuned.classifier.weight.requires_grad


def test_what_is_still_frozen_does_not_move(finetuned: Expert) -> None:
    optimizer = Optimizer(finetuned, TrainSettings(unfreeze_share=0.5, learning_rate=0.1), 100)
    before = copy.deepcopy(finetuned.state_dict())
    for step in (0, 1):
        optimizer.set_rate(step)
        optimizer.zero_grad()
        finetuned({"features": torch.randn(5, 4)}).square().sum().backward()
        optimizer.update()
    moved = {name for name, x in finetuned.state_dict().items() if not torch.equal(x, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_a_plateau_halves_the_rate_when_the_training_loss_stays(finetuned: Expert) -> None:
    settings = TrainSettings(schedule="plateau", learning_rate=1.0, warmup_share=0.0)
    optimizer = Optimizer(finetuned, settings, 100)
    seen = []
    for epoch, loss in enumerate([1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.4]):
        optimizer.set_rate(10 * epoch + 10)
        seen.append(rates(optimizer, finetuned)["classifier.weight"])
        optimizer.end_epoch(loss)
    assert seen == [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


def test_a_plateau_goes_on_where_it_was(finetuned: Expert) -> None:
    settings = TrainSettings(schedule="plateau", learning_rate=1.0, warmup_share=0.0)
    optimizer, again = (Optimizer(finetuned, settings, 100) for _ in range(2))
    for loss in (1.0, 1.0, 1.0):
        optimizer.end_epoch(loss)
    again.load_state_dict(optimizer.state_dict())
    again.end_epoch(1.0)
    again.set_rate(50)
    assert rates(again, finetuned)["classifier.weight"] == 0.5


def test_biases_are_not_decayed(finetuned: Expert) -> None:
    optimizer = Optimizer(finetuned, TrainSettings(weight_decay=0.3), 10)
    for group in optimizer.optimizer.param_groups:
        (decayed,) = {p.ndim > 1 for p in group["params"]}
        assert group["weight_decay"] == (0.3 if decayed else 0.0)


def test_swa_is_the_mean_of_the_last_quarters_epochs(finetuned: Expert) -> None:
    averaged = AveragedWeights("swa", epochs=8)
    seen = []
    for epoch in range(1, 9):
        with torch.no_grad():
            finetuned.classifier.weight.fill_(float(epoch))
        averaged.after_epoch(finetuned, epoch)
        seen.append(averaged.expert and float(averaged.expert.classifier.weight[0, 0]))
    assert seen == [None] * 6 + [7.0, 7.5]


def test_ema_follows_the_weights_slowly(finetuned: Expert) -> None:
    averaged = AveragedWeights("ema", epochs=8)
    with torch.no_grad():
        finetuned.classifier.weight.fill_(0.0)
        averaged.after_step(finetuned)
        finetuned.classifier.weight.fill_(1.0)
        for _ in range(3):
            averaged.after_step(finetuned)
    assert averaged.expert is not None
    # Decays (1 + n) / (10 + n) for n = 2, 3, 4.
    expected = 1.0 - (3 / 12) * (4 / 13) * (5 / 14)
    assert float(averaged.expert.classifier.weight[0, 0]) == pytest.approx(expected)
    assert float(finetuned.classifier.weight[0, 0].detach()) == 1.0


RECIPES: list[dict[str, Any]] = [
    {"optimizer": "adam_amsgrad", "schedule": "one_cycle", "averaging": "ema"},
    {"optimizer": "sgd_nesterov", "schedule": "plateau", "averaging": "swa"},
    {"focal_gamma": 2.0, "class_balance": 0.9, "gradient_clip": 1.0},
    {"noise": 0.5, "reverberation": 0.5, "pitch_perturbation": 2.0, "speed_perturbation": 0.1},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(map(str, recipe)))
def test_a_checkpoint_continues_every_recipe_to_the_same_numbers(
    tiny_data: TrainingData, recipe: dict[str, Any]
) -> None:
    plan = TrialConfig.of("logmel_resnet", {"width": 4}, {"epochs": 4, "batch_size": 6, **recipe})
    plain = TrialConfig.of("logmel_resnet", {"width": 4}, {"epochs": 4, "batch_size": 6})
    rows = tiny_data.rows(0, training=False)
    whole = build_fold(plan, tiny_data, 0, seed=0)
    losses = [whole.step_epoch() for _ in range(4)]
    half = build_fold(plan, tiny_data, 0, seed=0)
    half.step_epoch()
    half.step_epoch()
    half.step_epoch()
    again = build_fold(plan, tiny_data, 0, seed=0)
    again.load_state_dict(half.state_dict())
    assert again.step_epoch() == pytest.approx(losses[-1], abs=1e-6)
    np.testing.assert_allclose(again.predict(rows), whole.predict(rows), atol=1e-5)
    other = build_fold(plain, tiny_data, 0, seed=0)
    assert [other.step_epoch() for _ in range(4)] != pytest.approx(losses, abs=1e-6)


def test_averaged_weights_predict_and_the_last_ones_train_on(tiny_data: TrainingData) -> None:
    plan = TrialConfig.of("functionals", {}, {"epochs": 4, "averaging": "swa"})
    trainer = build_fold(plan, tiny_data, 0, seed=0)
    for _ in range(4):
        trainer.step_epoch()
    assert trainer.predictor is not trainer.expert
    (kind,) = trainer.expert.kinds
    assert trainer.predictor.encoder(kind).frontend is trainer.expert.encoder(kind).frontend
    last = copy.deepcopy(trainer.expert)
    with torch.no_grad():
        trainer.predictor.classifier.weight.zero_()
        trainer.predictor.classifier.bias.copy_(torch.arange(6.0))
    found = trainer.predict(np.arange(4))
    np.testing.assert_array_equal(found, np.arange(6.0)[None].repeat(4, 0))
    assert same(trainer.expert, last), "the averaged weights are not those that train"


EARLY = {
    "audio": {"architecture": "functionals", "settings": {}},
    "video": {"architecture": "action_units", "settings": {}},
}


def test_parts_train_alone_first_and_then_jointly(tiny_data: TrainingData) -> None:
    plan = TrialConfig.of(
        "concatenation", EARLY, {"epochs": 4, "alone_share": 0.5, "batch_size": 6}
    )
    trainer = build_fold(plan, tiny_data, 0, seed=0)
    fusion = copy.deepcopy(trainer.expert.fusion)
    encoders = copy.deepcopy(trainer.expert.encoders)
    assert fusion is not None
    trainer.step_epoch()
    trainer.step_epoch()
    assert same(trainer.expert.fusion, fusion), "the fusion has not trained yet"
    assert not same(trainer.expert.encoders, encoders)
    trainer.step_epoch()
    assert not same(trainer.expert.fusion, fusion)


def same(one: nn.Module | None, other: nn.Module) -> bool:
    assert one is not None
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_one_modality_has_nothing_to_train_alone(tiny_data: TrainingData) -> None:
    plan = TrialConfig.of("functionals", {}, {"epochs": 2})
    alone = replace(plan, training=replace(plan.training, alone_share=0.5))
    results = [next(iter(LockstepTrial(p, tiny_data, seed=0).run())) for p in (plan, alone)]
    np.testing.assert_array_equal(results[0].logits, results[1].logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimizer": "lion"},
            "Unknown optimizer 'lion'. Known: adamw, adam_amsgrad, sgd_nesterov",
        ),
        ({"schedule": "step"}, "Unknown schedule 'step'. Known: cosine, one_cycle, plateau"),
        ({"averaging": "all"}, "Unknown averaging 'all'. Known: none, ema, swa"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0.0"),
        ({"focal_gamma": -1.0}, "focal_gamma must be 0 or more, got -1.0"),
        ({"noise": 1.5}, r"noise must be in \[0, 1\], got 1.5"),
        ({"gradient_clip": 0.0}, "gradient_clip must be positive, got 0.0"),
        ({"alone_share": 1.0}, r"alone_share must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_recipes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)
