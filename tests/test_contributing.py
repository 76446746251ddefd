"""What CONTRIBUTING.md shows is followed to the letter, in a copy of the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "datasets", "ensembles", "search", "tests")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the file and the line that CONTRIBUTING.md shows."""
    home = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    file, line = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = re.findall(r"`(models/\S+\.py)`", text)
    assert names == ["models/audio/my_net.py", "models/audio/__init__.py"]
    (home / names[0]).write_text(file)
    with (home / names[1]).open("a") as register:
        register.write(line)
    return home


def run(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_architecture_is_ten_lines() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    body = code[code.index("@register") :].splitlines()
    lines = [line for line in body if line.strip() and not line.strip().startswith('"""')]
    assert len(lines) <= 10


def test_it_is_listed(copied: Path) -> None:
    rows = json.loads(run(copied, "models.list", "--json", "--only", "my_net"))
    assert [row["name"] for row in rows] == ["my_net"]


def test_it_fulfils_the_contracts(copied: Path) -> None:
    out = run(
        copied, "pytest", "tests/models/test_contracts.py", "-k", "my_net", "-p", "no:cacheprovider"
    )
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None or "[100%]" in out, out
    assert "failed" not in out


def test_it_is_searched(copied: Path) -> None:
    code = """
import optuna
from models import ClipShape, build_expert
from search.offer import offer_for
from search.space import known_good, suggest_plan
shape = ClipShape(num_classes=3, sample_rate_hz=16_000)
offer, study = offer_for(shape, ("my_net",)), optuna.create_study()
(params,) = known_good("audio", offer)
study.enqueue_trial(params)
for _ in range(3):
    plan = suggest_plan(study.ask(), "audio", offer)
    build_expert(plan.architecture, plan.settings, shape)
    print(plan.architecture, plan.training.learning_rate)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copied, capture_output=True, text=True, check=True
    )
    rates = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _ in rates] == ["my_net"] * 3
    assert float(rates[0][1]) == pytest.approx(1e-3)
    assert len({rate for _, rate in rates}) == 3
