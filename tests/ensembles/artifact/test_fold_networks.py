"""An expert's fold networks, rebuilt from plain numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ensembles import EnsembleError
from ensembles.artifact.fold_networks import FoldedExpert, average_folds, load_folded, read_plan
from models import ClipShape, Expert, build_expert

SHAPE = ClipShape(num_classes=3, num_features=4)
PLAN = {
    "architecture": "action_units",
    "settings": {"hidden_units": 3},
    "training": {},
    "shape": SHAPE.__dict__,
}
FEATURES = {"features": torch.randn(5, 4, generator=torch.Generator().manual_seed(0))}


def network(seed: int, hidden_units: int = 3) -> Expert:
    torch.manual_seed(seed)
    return build_expert("action_units", {"hidden_units": hidden_units}, SHAPE).eval()


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """An expert of eleven folds, as a trial leaves it: more than one digit can count."""
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    for fold in range(11):
        save_file(network(fold).state_dict(), tmp_path / f"fold-{fold}.safetensors")
    return tmp_path


def test_every_fold_comes_back_in_its_place_to_the_bit(folder: Path) -> None:
    expert = load_folded(folder)
    assert expert.kinds == ["features"]
    assert not expert.training
    with torch.no_grad():
        by_fold = expert(FEATURES)
        expected = torch.stack([network(fold)(FEATURES).log_softmax(1) for fold in range(11)])
    assert by_fold.shape == (11, 5, 3)
    assert torch.equal(by_fold, expected)


def test_folds_are_averaged_geometrically() -> None:
    # √(0.8 × 0.5) to √(0.2 × 0.5) is 2 to 1.
    by_fold = torch.tensor([[[0.8, 0.2]], [[0.5, 0.5]]]).log()
    torch.testing.assert_close(average_folds(by_fold).exp(), torch.tensor([[2 / 3, 1 / 3]]))


def test_one_fold_alone_is_its_own_average() -> None:
    expert = FoldedExpert([network(0)])
    with torch.no_grad():
        by_fold = expert(FEATURES)
        torch.testing.assert_close(average_folds(by_fold), by_fold[0])


def test_what_is_no_networks_file_is_left_alone(folder: Path) -> None:
    for name in ("fold-0.safetensors.123.partial", "fold-x.safetensors", "notes.txt"):
        (folder / name).write_text("not a network")
    assert len(load_folded(folder).networks) == 11


def remove(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    save_file(network(0, hidden_units=2).state_dict(), path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("plan.json", remove, "No such file: '{}'."),
        ("plan.json", halve, "'{}' is damaged: JSONDecodeError"),
        ("plan.json", empty, "'{}' is damaged: JSONDecodeError"),
        ("fold-3.safetensors", halve, "'{}' is damaged: "),
        ("fold-3.safetensors", empty, "'{}' is damaged: "),
        ("fold-3.safetensors", other, "'{}' does not fit its plan: "),
    ],
)
def test_a_damaged_file_is_named(
    folder: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    change(folder / name)
    with pytest.raises(EnsembleError, match=re.escape(message.format(folder / name))) as error:
        load_folded(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fold", [0, 3])
def test_a_missing_fold_in_the_middle_is_noticed(folder: Path, fold: int) -> None:
    (folder / f"fold-{fold}.safetensors").unlink()
    with pytest.raises(EnsembleError, match="lacks the weights of a fold"):
        load_folded(folder)


def test_no_fold_at_all_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    with pytest.raises(EnsembleError, match="lacks the weights of a fold"):
        load_folded(tmp_path)


def test_a_file_of_weights_is_noticed_wherever_it_ends(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    path = tmp_path / "fold-0.safetensors"
    save_file(network(0).state_dict(), path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    steps = [*range(0, header, 37), *range(header, len(content), len(content) // 10)]
    for length in [*steps, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(EnsembleError, match=r"'.*fold-0\.safetensors' is damaged"):
            load_folded(tmp_path)


@pytest.mark.parametrize("key", ["architecture", "settings", "training", "shape"])
def test_every_part_of_a_plan_is_needed(folder: Path, key: str) -> None:
    plan = {name: value for name, value in PLAN.items() if name != key}
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(EnsembleError, match=f"plan.json' is damaged: KeyError.'{key}'"):
        read_plan(folder / "plan.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"architecture": "vgg"},
        {"architecture": ["action_units"]},
        {"settings": {"colour": 1}},
        {"settings": {"hidden_units": "many"}},
        {"settings": 7},
        {"shape": {}},
        {"shape": {**SHAPE.__dict__, "frame_size": None}},
        {"shape": {**SHAPE.__dict__, "num_features": 0}},
        {"shape": {**SHAPE.__dict__, "num_features": -4}},
    ],
    ids=str,
)
def test_a_plan_that_builds_no_network_is_one_clear_error(
    folder: Path, changed: dict[str, Any]
) -> None:
    (folder / "plan.json").write_text(json.dumps({**PLAN, **changed}))
    with pytest.raises(EnsembleError, match="does not fit its plan") as error:
        load_folded(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "null", '"plan"', "7"])
def test_a_plan_that_is_no_object_is_damaged(folder: Path, content: str) -> None:
    (folder / "plan.json").write_text(content)
    with pytest.raises(EnsembleError, match=r"plan\.json' is damaged: TypeError"):
        load_folded(folder)
