"""What CONTRIBUTING.md shows is followed to the letter."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import torch

from models import ClipShape, build_expert
from models.registry import _ARCHITECTURES

ROOT = Path(__file__).parents[1]


def test_the_architecture_in_contributing_registers_and_predicts(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    file = tmp_path / "my_net.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("my_net", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_net"] = module
    try:
        spec.loader.exec_module(module)
        expert = build_expert(
            "my_net", {"units": 8}, ClipShape(num_classes=3, sample_rate_hz=16_000)
        )
        batch = {"audio": torch.randn(2, 8000), "audio_lengths": torch.tensor([8000, 4000])}
        assert expert(batch).shape == (2, 3)
    finally:
        _ARCHITECTURES.pop("my_net", None)
        del sys.modules["my_net"]
