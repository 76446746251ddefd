"""Weights from outside: read safely, checked, and put where they belong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import ClipShape, Expert, build_expert
from models.base import Backbone, BackboneEncoder
from models.frontends.frames import Features
from models.pretrained import (
    FrozenBackbone,
    find_checkpoints,
    load_backbone,
    read_tensors,
    share_frozen,
)
from models.registry import _ARCHITECTURES, Checkpoint, ModelError, get_architecture, register
from tests.bombs import PLANTS

SHAPE = ClipShape(num_classes=3, num_features=5)
NAME = "tiny_backbone"


class _Backbone(Backbone):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.norm(self.layer(x)))[:, None], lengths

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix("trunk."): x for key, x in state.items() if "answer" not in key}


@pytest.fixture(autouse=True)
def architecture() -> Iterator[None]:
    """An architecture with a backbone, for this file alone."""

    @register(
        NAME,
        modality="video",
        inputs=("features",),
        cost=lambda settings, shape: 1.0,
        checkpoints=(
            Checkpoint(files=("wide.pth",), source="nowhere", settings={"width": 8}),
            Checkpoint(files=("narrow.pth", "narrow.pt"), source="nowhere", settings={"width": 4}),
        ),
    )
    class Tiny(BackboneEncoder):
        kind = "features"

        def __init__(self, *, shape: ClipShape, width: int = 8) -> None:
            super().__init__()
            self.frontend, self.backbone = Features(), _Backbone(width)
            self.out = nn.Linear(width, 6)
            self.embedding_dim = 6

        def head(self, x: Tensor, lengths: Tensor) -> Tensor:
            return torch.relu(self.out(x[:, 0]))

    yield
    _ARCHITECTURES.pop(NAME)


def original(width: int, seed: int = 3) -> dict[str, Tensor]:
    """A checkpoint as its authors would have it: other names, and an output layer."""
    torch.manual_seed(seed)
    backbone = _Backbone(width)
    backbone.norm.running_mean.normal_()
    state = {f"trunk.{key}": x for key, x in backbone.state_dict().items()}
    return {**state, "answer.weight": torch.randn(10, width)}


def settings(transfer: str, folder: Path, file: str = "wide.pth") -> dict[str, Any]:
    (found,) = [f for f in find_checkpoints(get_architecture(NAME), folder) if f.file == file]
    return {"transfer": transfer, "checkpoint": found.to_json()}


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    torch.save({"model": original(8), "epoch": 7}, tmp_path / "wide.pth")
    return tmp_path


def build(transfer: str, folder: Path, **more: Any) -> Expert:
    torch.manual_seed(0)
    return build_expert(NAME, settings(transfer, folder, **more), SHAPE, weights=folder)


def test_finetuning_starts_from_the_checkpoint(folder: Path) -> None:
    expert = build("finetune", folder)
    encoder = expert.encoder("features")
    assert isinstance(encoder, BackboneEncoder)
    assert encoder.finetuned
    state = original(8)
    for key, x in encoder.backbone.state_dict().items():
        torch.testing.assert_close(x, state[f"trunk.{key}"])
    assert all(p.requires_grad for p in expert.parameters())


def test_a_frozen_backbone_is_part_of_the_front_end_and_never_moves(folder: Path) -> None:
    expert = build("frozen", folder).train()
    frontend = expert.encoder("features").frontend
    assert isinstance(frontend, FrozenBackbone)
    assert not frontend.training
    before = {k: x.clone() for k, x in expert.frozen_state().items()}
    assert len(before) == 7
    expert({"features": torch.randn(4, 5)}).sum().backward()
    trained = {name for name, p in expert.named_parameters() if p.grad is not None}
    assert trained == {
        "encoders.features.out.weight", "encoders.features.out.bias",
        "classifier.weight", "classifier.bias",
    }  # fmt: skip
    assert all(torch.equal(x, before[k]) for k, x in expert.frozen_state().items())


def test_frozen_and_finetuned_see_the_same_at_the_start(folder: Path) -> None:
    frozen, finetuned = build("frozen", folder).eval(), build("finetune", folder).eval()
    batch = {"features": torch.randn(4, 5)}
    with torch.no_grad():  # the cache holds half precision
        torch.testing.assert_close(frozen(batch), finetuned(batch), atol=2e-3, rtol=0)


def test_what_a_frozen_backbone_makes_of_a_clip_is_the_same_from_the_cache(folder: Path) -> None:
    expert = build("frozen", folder)
    fixed = expert.preprocess({"features": torch.randn(4, 5)})
    assert torch.equal(fixed["features"].half().float(), fixed["features"])


def test_a_trained_network_comes_back_without_the_checkpoint(folder: Path) -> None:
    trained = build("frozen", folder)
    again = build_expert(NAME, settings("frozen", folder), SHAPE)  # no weights' folder
    again.load_learned_state(trained.learned_state())
    again.load_state_dict(trained.frozen_state(), strict=False)
    batch = {"features": torch.randn(4, 5)}
    with torch.no_grad():
        assert torch.equal(again.eval()(batch), trained.eval()(batch))


def test_learned_and_frozen_state_are_the_whole(folder: Path) -> None:
    expert = build("frozen", folder)
    assert {*expert.learned_state(), *expert.frozen_state()} == set(expert.state_dict())
    assert build("finetune", folder).frozen_state() == {}


def test_learned_state_of_another_network_is_refused(folder: Path) -> None:
    state = build("frozen", folder).learned_state()
    state["surplus"] = state.pop("classifier.bias")
    with pytest.raises(RuntimeError, match=r"classifier\.bias does not fit"):
        build("frozen", folder).load_learned_state(state)


def test_folds_share_one_frozen_backbone(folder: Path) -> None:
    one, other = build("frozen", folder), build("frozen", folder)
    share_frozen(one, other)
    assert one.encoder("features").frontend is other.encoder("features").frontend


def test_the_cache_tells_checkpoints_apart(folder: Path) -> None:
    first = build("frozen", folder).encoder("features").frontend.name
    torch.save(original(8, seed=4), folder / "wide.pth")
    assert build("frozen", folder).encoder("features").frontend.name != first


def test_a_checkpoint_says_what_it_needs(folder: Path) -> None:
    torch.save({"state_dict": original(4)}, folder / "narrow.pt")
    found = find_checkpoints(get_architecture(NAME), folder)
    assert [(f.file, f.settings) for f in found] == [
        ("wide.pth", {"width": 8}), ("narrow.pt", {"width": 4}),
    ]  # fmt: skip
    expert = build("finetune", folder, file="narrow.pt")
    assert expert.state_dict()["encoders.features.backbone.layer.weight"].shape == (4, 5)


def test_a_backbone_of_our_own_is_found_by_the_architectures_name(tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_file(_Backbone(8).state_dict(), tmp_path / f"{NAME}.safetensors")
    expert = build("finetune", tmp_path, file=f"{NAME}.safetensors")
    torch.manual_seed(5)
    expected = _Backbone(8).layer.weight
    assert torch.equal(expert.state_dict()["encoders.features.backbone.layer.weight"], expected)


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert find_checkpoints(get_architecture(NAME), tmp_path) == []


def test_a_checkpoint_of_another_architecture_names_what_does_not_fit(tmp_path: Path) -> None:
    state = original(8)
    state["trunk.layer.weight"] = torch.zeros(8, 7)
    state["trunk.further"] = state.pop("trunk.norm.bias")
    torch.save(state, tmp_path / "x.pth")
    message = (
        r"'.*x\.pth' is a checkpoint of another architecture: norm\.bias is missing; "
        r"further is unknown; layer\.weight is \(8, 7\), not \(8, 5\)\."
    )
    with pytest.raises(ModelError, match=message):
        load_backbone(_Backbone(8), tmp_path / "x.pth")


def test_many_misfits_are_counted(tmp_path: Path) -> None:
    torch.save({f"other.{n}": torch.zeros(1) for n in range(20)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="and 24 more"):
        load_backbone(_Backbone(8), tmp_path / "x.pth")


@pytest.mark.parametrize("plant", PLANTS)
def test_a_checkpoint_that_is_a_pickle_is_named(plant: Any, tmp_path: Path) -> None:
    plant(tmp_path / "trap.pth", tmp_path / "trace")
    with pytest.raises(ModelError, match=r"'.*trap\.pth' cannot be read as weights"):
        read_tensors(tmp_path / "trap.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file({"a": torch.zeros(100)}, path) if "safe" in name else torch.save({}, path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError, match=f"'.*{name}' cannot be read as weights"):
        read_tensors(path)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="holds no table of tensors"):
        read_tensors(tmp_path / "x.pth")


def test_a_folder_in_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="in several parts: save it as one file"):
        read_tensors(tmp_path)


def test_a_changed_file_is_noticed(folder: Path) -> None:
    chosen = settings("finetune", folder)
    torch.save(original(8, seed=9), folder / "wide.pth")
    with pytest.raises(ModelError, match=r"wide\.pth' is not the file that this run began with"):
        build_expert(NAME, chosen, SHAPE, weights=folder)


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    chosen = settings("frozen", folder)
    (folder / "wide.pth").unlink()
    with pytest.raises(ModelError, match=r"No 'wide\.pth' in '.*' \(--weights\)"):
        build_expert(NAME, chosen, SHAPE, weights=folder)


def test_an_unknown_transfer_lists_the_known_ones() -> None:
    with pytest.raises(
        ModelError, match=r"Unknown transfer 'warm'\. Known: scratch, frozen, finet"
    ):
        build_expert(NAME, {"transfer": "warm"}, SHAPE)


def test_transfer_needs_a_checkpoint() -> None:
    with pytest.raises(ModelError, match=r"transfer 'frozen' needs a checkpoint \(--weights\)"):
        build_expert(NAME, {"transfer": "frozen"}, SHAPE)


def test_an_architecture_without_a_backbone_has_no_transfer() -> None:
    with pytest.raises(ModelError, match="Unknown setting 'transfer' of 'action_units'"):
        build_expert("action_units", {"transfer": "frozen"}, SHAPE)
