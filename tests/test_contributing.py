"""What CONTRIBUTING.md shows is followed to the letter, in a copy of the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "datasets", "ensembles", "search", "tests")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the files and lines that CONTRIBUTING.md shows."""
    home = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    file, line, metric = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = re.findall(r"`(models/\S+\.py)`", text)
    assert names == ["models/audio/my_net.py", "models/audio/__init__.py"]
    (home / names[0]).write_text(file)
    with (home / names[1]).open("a") as register:
        register.write(line)
    (name,) = re.findall(r"at the end of `(ensembles/\S+\.py)`", text)
    with (home / name).open("a") as records:
        records.write(f"\n\n{metric}")
    return home


PROGRAM = """
import io, json, optuna, pytest
from contextlib import redirect_stdout
from models import ClipShape, build_expert
from models.list import main
from search.space.scope import offer_for
from search.space.suggest import known_good, suggest_plan

with redirect_stdout(io.StringIO()) as listed:
    assert main(["--json", "--only", "my_net"]) == 0

shape = ClipShape(num_classes=3, sample_rate_hz=16_000)
offer, study = offer_for(shape, ("my_net",)), optuna.create_study()
(params,) = known_good("audio", offer)
study.enqueue_trial(params)
plans = [suggest_plan(study.ask(), "audio", offer) for _ in range(3)]
for plan in plans:
    build_expert(plan.architecture, plan.settings, shape)

class Record:
    collected, passed = [], []

    def pytest_itemcollected(self, item):
        self.collected.append(item.nodeid)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

contracts = ["tests/models/test_contracts.py", "tests/ensembles/artifact/test_onnx_export.py"]
with redirect_stdout(io.StringIO()) as text:
    code = pytest.main([*contracts, "-k", "my_net", "-p", "no:cacheprovider"], [Record()])
print(json.dumps({
    "listed": json.loads(listed.getvalue()),
    "plans": [(plan.architecture, plan.training.learning_rate) for plan in plans],
    "code": int(code), "text": text.getvalue(),
    "collected": Record.collected, "passed": Record.passed,
}))
"""


@pytest.fixture(scope="module")
def found(copied: Path) -> Any:
    """What the copy's programs say of the new architecture; one interpreter for all of them."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=copied, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_architecture_is_ten_lines() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    body = code[code.index("@register") :].splitlines()
    lines = [line for line in body if line.strip() and not line.strip().startswith('"""')]
    assert len(lines) <= 10


def test_it_is_listed(found: Any) -> None:
    assert [row["name"] for row in found["listed"]] == ["my_net"]


def contracts(tests: list[str], architecture: str) -> set[str]:
    """The tests that have a case of this architecture alone, in its default configuration."""
    own = re.compile(rf"\[(one-|shorter-|longer-)?{architecture}\]$")
    return {name.partition("[")[0] for name in tests if own.search(name)}


def test_it_fulfils_every_contract_that_another_audio_network_does(found: Any) -> None:
    expected = contracts(found["collected"], "logmel_resnet")
    assert found["code"] == 0, found["text"]
    assert contracts(found["passed"], "my_net") == expected
    files = {name.partition("::")[0] for name in expected}
    assert files == {
        "tests/models/test_contracts.py",
        "tests/ensembles/artifact/test_onnx_export.py",
    }


def test_it_is_searched(found: Any) -> None:
    names, rates = zip(*found["plans"], strict=True)
    assert names == ("my_net",) * 3
    assert rates[0] == pytest.approx(1e-3)
    assert len(set(rates)) == 3


BUILT = """
import json, sys
import numpy as np
from ensembles.build import main
from ensembles.fusion.greedy import GreedySelection
from ensembles.metrics import get_metric, log_softmax
from search.config import SearchConfig

assert SearchConfig(metric="top_two").metric == "top_two"
rng, names = np.random.default_rng(0), ("calm", "happy", "sad")
labels = np.tile(np.arange(3), 16)
logits = rng.normal(size=(2, 48, 3)) + 1.5 * np.eye(3)[labels]
posteriors, folds = log_softmax(logits), np.repeat(np.arange(4), 12)
for expert, values in zip("ab", np.exp(posteriors)):
    rows = [
        f"c{n},s{n // 4},{folds[n]},{names[labels[n]]}," + ",".join(f"{v:.6f}" for v in row)
        for n, row in enumerate(values)
    ]
    with open(f"{expert}.csv", "w") as file:
        file.write("\\n".join(["clip,speaker,fold,label," + ",".join(names), *rows]))
metric, (one, _) = get_metric("top_two"), posteriors
chosen = GreedySelection(metric="top_two").fit(posteriors, labels, folds)
print(json.dumps({
    "score": metric.score(labels, one),
    "shown": metric.format_with_unit(metric.score(labels, one)),
    "by_fold": metric.fold_mean(labels, one, folds),
    "greedy": metric.score(labels, chosen.predict(posteriors)),
}), flush=True)
sys.exit(main(["--posteriors", "a.csv", "b.csv", "--metric", "top_two", "--json"]))
"""


def test_a_metric_is_added_by_one_record(copied: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILT], cwd=copied, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, _, rest = done.stdout.partition("\n")
    found, board = json.loads(first), json.loads(rest)
    assert 0.7 < found["score"] < 1.0
    assert found["shown"] == f"{100 * found['score']:.1f} %"
    assert found["by_fold"] == pytest.approx(found["score"])
    assert found["greedy"] >= found["score"]
    assert board[0]["name"] == "fused"
    low, high = board[0]["interval_95"]
    assert 0.5 < low < board[0]["honest_score"] < high <= 1.0
    assert board[0]["corrected"]["score"] > 0.5
