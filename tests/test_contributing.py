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

from tests.corpora import write_tone

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "datasets", "ensembles", "search", "tests")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the files and the lines that CONTRIBUTING.md shows."""
    home = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    shown = examples()
    for file, code in shown[::2]:
        (home / file).write_text(code)
    for file, line in shown[1::2]:
        known = (home / file).read_text()
        (home / file).write_text(
            re.sub(
                r"^from (models|ensembles|datasets)",
                rf"{line}\g<0>",
                known,
                count=1,
                flags=re.MULTILINE,
            )
        )
    ((name, metric),) = re.findall(
        r"at the end of `(\S+\.py)`:\n\n```python\n(.*?)```", contributing(), re.DOTALL
    )
    with (home / name).open("a") as records:
        records.write(f"\n\n{metric}")
    assert [file for file, _ in shown] == [
        "models/audio/my_net.py", "models/audio/__init__.py",
        "ensembles/fusion/likelihood.py", "ensembles/fusion/methods.py",
        "datasets/corpora/my_corpus.py", "datasets/corpora/__init__.py",
    ]  # fmt: skip
    return home


def contributing() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text()


def examples() -> list[tuple[str, str]]:
    """Each file that CONTRIBUTING.md shows or adds a line to, and its code."""
    return re.findall(r"(?<!end of )`(\S+\.py)`:\n\n```python\n(.*?)```", contributing(), re.DOTALL)


PROGRAM = """
import io, json, optuna, pytest
from contextlib import redirect_stdout
from models import ClipShape, build_expert
from models.list import main
from search.space.scope import scope_for
from search.space.suggest import known_good, suggest_config

with redirect_stdout(io.StringIO()) as listed:
    assert main(["--json", "--only", "my_net"]) == 0

shape = ClipShape(num_classes=3, sample_rate_hz=16_000)
scope, study = scope_for(shape, ("my_net",)), optuna.create_study()
(params,) = known_good("audio", scope)
study.enqueue_trial(params)
plans = [suggest_config(study.ask(), "audio", scope) for _ in range(3)]
for plan in plans:
    build_expert(plan.architecture, plan.settings, shape)

class Record:
    collected, passed = [], []

    def pytest_itemcollected(self, item):
        self.collected.append(item.nodeid)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

contracts = [
    "tests/models/test_contracts.py", "tests/ensembles/artifact/test_onnx_export.py",
    "tests/ensembles/fusion/test_fusion.py",
]
with redirect_stdout(io.StringIO()) as text:
    chosen = "my_net or likelihood"
    code = pytest.main([*contracts, "-k", chosen, "-p", "no:cacheprovider"], [Record()])
print(json.dumps({
    "listed": json.loads(listed.getvalue()),
    "plans": [(plan.architecture, plan.training.learning_rate) for plan in plans],
    "code": int(code), "text": text.getvalue(),
    "collected": Record.collected, "passed": Record.passed,
}))
"""


@pytest.fixture(scope="module")
def found(copied: Path) -> Any:
    """What the copy's programs say of the new parts; one interpreter for all of them."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=copied, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_new_part_is_ten_lines_and_one_more() -> None:
    for (_, code), (_, line) in zip(examples()[::2], examples()[1::2], strict=True):
        body = code[code.index("@register") :].splitlines()
        lines = [line for line in body if line.strip() and not line.strip().startswith('"""')]
        assert len(lines) <= 10
        assert line.count("\n") == 1


def test_it_is_listed(found: Any) -> None:
    assert [row["name"] for row in found["listed"]] == ["my_net"]


def contracts(tests: list[str], part: str) -> set[str]:
    """The tests that have a case of this architecture or fusion alone, in its default configuration."""
    own = re.compile(rf"\[(one-|shorter-|longer-|\d-)?{part}\]$")
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


def test_the_fusion_fulfils_every_contract_that_another_one_does(found: Any) -> None:
    expected = contracts(found["collected"], "weighted product")
    assert len(expected) > 5
    assert contracts(found["passed"], "likelihood") == expected


def test_it_is_searched(found: Any) -> None:
    names, rates = zip(*found["plans"], strict=True)
    assert names == ("my_net",) * 3
    assert rates[0] == pytest.approx(1e-3)
    assert len(set(rates)) == 3


def run_prepare(copied: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "datasets.prepare", *arguments]
    return subprocess.run(command, cwd=copied, capture_output=True, text=True, check=False)


def test_the_corpus_is_listed_and_prepared(copied: Path, tmp_path: Path) -> None:
    for speaker in ("ann", "bob"):
        write_tone(tmp_path / f"{speaker}_happy_1.wav", "happy", seed=1)
        write_tone(tmp_path / f"{speaker}_sad_1.wav", "sad", seed=2)
    listed = run_prepare(copied, "--help").stdout
    assert re.search(r"my_corpus +SPEAKER_EMOTION_TAKE.wav, in one folder", listed)
    place = ["--root", str(tmp_path), "--out", str(tmp_path / "out")]
    done = run_prepare(copied, "my_corpus", *place)
    assert done.returncode == 0, done.stderr
    assert "4 clips of 2 speakers" in done.stdout
    assert "classes: happy 2, sad 2" in done.stdout


def test_the_corpus_has_no_options_of_another(copied: Path) -> None:
    done = run_prepare(copied, "my_corpus", "--root", "x", "--out", "y", "--song")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Unknown option '--song' of the corpus my_corpus.")


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
    "greedy": metric.score(labels, chosen.rule().apply(posteriors)),
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
