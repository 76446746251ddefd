"""`python -m models.list`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import BackboneEncoder, ClipShape, architectures, build_expert, get_architecture
from models.list import main
from models.registry import Architecture


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main([*arguments, "--json"]) == 0
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def test_a_row_says_what_the_network_is(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = listed(capsys, "--only", "spectrogram_cnn")
    assert row["inputs"] == ["audio"]
    assert row["parameters"] == 1_481_544  # the paper's 1 481 284 with 8 classes instead of 4
    assert row["paper"] == "Singh & Fang 2020"
    assert 5e8 < float(str(row["macs"])) < 2e9
    assert row["weights"] == {}


@pytest.mark.parametrize("entry", architectures(), ids=lambda entry: entry.name)
def test_every_backbone_names_its_files(entry: Architecture) -> None:
    built = entry.build
    has_backbone = isinstance(built, type) and issubclass(built, BackboneEncoder)
    assert has_backbone == bool(entry.checkpoints)
    for checkpoint in entry.checkpoints:
        assert checkpoint.files
        assert checkpoint.source
        assert set(checkpoint.settings) <= set(entry.arguments)


def test_weights_that_are_there_are_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    name = "spatial_transformer"
    assert listed(capsys, "--only", name, "--weights", str(tmp_path))[0][
        "weights"
    ] == dict.fromkeys(get_architecture(name).checkpoints[0].files, False)
    encoder = build_expert(name, {}, ClipShape(num_classes=2, frames=4)).encoder("video")
    assert isinstance(encoder, BackboneEncoder)
    save_file(encoder.backbone.state_dict(), tmp_path / f"{name}.safetensors")
    (row,) = listed(capsys, "--only", name, "--weights", str(tmp_path))
    assert row["weights"][f"{name}.safetensors"] is True  # type: ignore[index]
    main(["--only", name, "--weights", str(tmp_path)])
    assert f"{name}.safetensors" in capsys.readouterr().out


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "functionals,gated"]) == 0
    out = capsys.readouterr().out
    assert "functionals" in out
    assert "Early fusions are counted with logmel_resnet and frame_cnn" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "vgg"], "Unknown architecture 'vgg'. Known: alexnet"),
        (["--weights", "no-such-folder"], "No such folder: 'no-such-folder' (--weights)"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_checkpoint_of_another_network_is_a_users_mistake(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "wav2vec2").mkdir()
    assert main(["--only", "wav2vec2", "--weights", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    torch.save({}, tmp_path / "alexnet-owt-7be5be79.pth")
    assert main(["--only", "alexnet", "--weights", str(tmp_path)]) == 0
