"""A finished run that goes on: refused on other data or beside another process; fresh seeds; lost entries."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.sharding.index import read_index, write_index
from ensembles.bank.posterior_bank import BankEntry, PosteriorBank
from search.trial_spec import TrialSpec
from tests.search.here import broken, continued, copy_of, search_here

ROOT = Path(__file__).parents[3]
SEEDS = (1003, 1004)


@pytest.fixture(scope="module")
def searched(
    tiny_shards: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished search of four trials, without fresh seeds."""
    runs = tmp_path_factory.mktemp("runs")
    arguments = [
        "--data", tiny_shards, "--protocol", "speaker-kfold:2", "--only", "functionals,action_units",
        "--trials", 4, "--epochs", 4, "--seed", 3, "--page=false", "--name", "small",
        "--runs-dir", runs, "--cache-dir", cache_folder,
    ]  # fmt: skip
    assert search_here(*arguments) == 0
    return runs / "small"


@pytest.fixture(scope="module")
def confirmed(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its copy, whose headline was trained again with two fresh seeds, without a disturbance."""
    run = copy_of(searched, tmp_path_factory.mktemp("confirmed"))
    assert search_here(*continued(run, confirm_seeds=2)) == 0
    return run


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def entries(run: Path) -> dict[str, BankEntry]:
    return {e.name: e for e in PosteriorBank.open(run / "bank").read() if e.percent == 100}


def headline(run: Path) -> list[str]:
    """The experts that are trained again."""
    return sorted({name.partition("+")[0] for name in entries(run) if "+seed" in name})


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(arguments: list[object], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line in which the command refuses."""
    assert search_here(*arguments) == 2
    (line,) = (x for x in capfd.readouterr().err.splitlines() if x.startswith("error: "))
    return line


def with_another_label(run: Path, shards: Path, folder: Path) -> None:
    """Somebody corrected a label where the run's shards lie: the split stays, the corpus does not."""
    shutil.copytree(shards, folder)
    index = read_index(folder)
    first, *rest = index.clips
    twin = next(e for e in rest if e.speaker == first.speaker)
    labels = {first.clip: twin.label, twin.clip: first.label}
    clips = [dataclasses.replace(e, label=labels.get(e.clip, e.label)) for e in index.clips]
    write_index(dataclasses.replace(index, clips=tuple(clips)), folder)
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(str(shards), str(folder)))


def with_another_split(run: Path) -> None:
    """The protocol's folds were others when the run was started."""
    facts = json.loads((run / "run.json").read_text())
    facts["folds_fingerprint"] = facts["folds_fingerprint"][::-1]
    (run / "run.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("how", "what"), [("--resume", "labels"), ("--extend", "labels"), ("--resume", "folds")]
)
def test_a_run_whose_data_changed_is_neither_resumed_nor_extended(
    searched: Path, tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    how: str, what: str,
) -> None:  # fmt: skip
    run = copy_of(searched, tmp_path / "runs")
    if what == "labels":
        with_another_label(run, tiny_shards, tmp_path / "shards")
    else:
        with_another_split(run)
    before = content(run)
    line = refused(continued(run, how, trials=2), capfd)
    assert line == (
        "error: The data of the run 'small' changed since it was started. Start a new run."
    )
    assert content(run) == before


_HOLD = """
import sys
from search.config import SearchConfig
from search.persistence.run_folder import resumed_run
run = resumed_run(SearchConfig(resume=sys.argv[2], runs_dir=sys.argv[1]), {"resume"})
with run.locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_another_process_works_on_is_refused_until_that_is_gone(
    searched: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(searched, tmp_path)
    before = content(run)
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(run.parent), run.name],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        line = refused(continued(run, trials=5), capfd)
        assert line == "error: The run 'small' is in use by another process."
        assert content(run) == before
    finally:
        other.kill()  # it cannot unlock what it holds
        other.communicate()
    assert search_here(*continued(run, trials=5)) == 0
    assert sum(summary(run)["trials"].values()) == 5


class Seen:
    """Remembers what was trained."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, spec: TrialSpec) -> TrialSpec:
        self.names.append(spec.name)
        return spec


def test_every_fresh_seed_trains_other_networks_of_the_same_configurations(confirmed: Path) -> None:
    found = entries(confirmed)
    names = headline(confirmed)
    assert names
    for name in names:
        own = [found[name], *(found[f"{name}+seed{seed}"] for seed in SEEDS)]
        assert [entry.seed for entry in own] == [3, *SEEDS]
        assert len({entry.architecture for entry in own}) == 1
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not np.allclose(own[one].logits, own[other].logits, atol=1e-3)
    assert not list((confirmed / "weights").glob("*+seed*")), "no export has them"


def test_the_scores_of_fresh_seeds_are_those_of_their_own_predictions(confirmed: Path) -> None:
    told = summary(confirmed)
    assert sorted(told["confirmed"]) == [str(seed) for seed in SEEDS]
    with (confirmed / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 24
    for seed in SEEDS:
        row = told["confirmed"][str(seed)]["fused"]
        hits: dict[str, list[bool]] = {}
        for line in rows:
            if line["seed"] == str(seed):
                best = max(told["classes"], key=lambda label: float(line[label]))
                hits.setdefault(line["fold"], []).append(best == line["label"])
        assert row["fold_scores"] == pytest.approx([np.mean(hits[fold]) for fold in "01"])
        assert row["per_fold"] == told["headline"]["fused"]["per_fold"], "choices stay"


def test_a_seed_of_which_a_training_failed_is_left_out_until_it_is_trained(
    searched: Path, confirmed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(searched, tmp_path)
    unlucky = f"{headline(confirmed)[0]}+seed{SEEDS[0]}"

    def fail_one(spec: TrialSpec) -> TrialSpec:
        return broken(spec) if spec.name == unlucky else spec

    assert search_here(*continued(run, confirm_seeds=2), change=fail_one) == 0
    assert list(summary(run)["confirmed"]) == [str(SEEDS[1])]
    assert f"{unlucky} failed: ModelError: Unknown architecture" in capfd.readouterr().err
    seen = Seen()
    assert search_here(*continued(run, confirm_seeds=2), change=seen) == 0
    assert seen.names == [unlucky], "the others are there"
    assert summary(run)["confirmed"] == summary(confirmed)["confirmed"]


def test_fresh_seeds_that_are_interrupted_go_on_where_they_were(
    searched: Path, confirmed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(searched, tmp_path)
    names = headline(confirmed)

    def interrupt(spec: TrialSpec) -> TrialSpec:
        """Ctrl-C while the last training of the first seed runs."""
        if spec.name == f"{names[-1]}+seed{SEEDS[0]}":
            signal.raise_signal(signal.SIGINT)
        return spec

    before = signal.getsignal(signal.SIGINT)
    assert search_here(*continued(run, confirm_seeds=2), change=interrupt) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert summary(run)["confirmed"] == {}, "not even the first seed is whole"
    assert "Continue with: python -m search.run --resume small" in capfd.readouterr().err
    done = {name for name in entries(run) if "+seed" in name}
    assert done == {f"{name}+seed{SEEDS[0]}" for name in names[:-1]}
    seen = Seen()
    assert search_here(*continued(run, confirm_seeds=2), change=seen) == 0
    assert not done & set(seen.names)
    assert len(done) + len(seen.names) == 2 * len(names)
    assert summary(run)["confirmed"] == summary(confirmed)["confirmed"]


def test_entries_that_are_lost_or_damaged_are_trained_again_with_the_same_numbers(
    confirmed: Path, tmp_path: Path
) -> None:
    run = copy_of(confirmed, tmp_path)
    before, scores = entries(run), summary(run)
    lost, damaged, fresh = "audio-0000", "video-0000", f"{headline(run)[0]}+seed{SEEDS[1]}"
    (run / "bank" / f"{lost}@100.npz").unlink()
    (run / "bank" / f"{fresh}@100.npz").unlink()
    path = run / "bank" / f"{damaged}@100.npz"
    path.write_bytes(path.read_bytes()[:-40])
    seen = Seen()
    assert search_here(*continued(run), "--confirm-seeds", 2, change=seen) == 0
    assert seen.names == [lost, damaged, fresh]
    after = entries(run)
    assert after.keys() == before.keys()
    for name, entry in before.items():
        np.testing.assert_array_equal(after[name].logits, entry.logits)
    for key in ("headline", "confirmed"):
        assert summary(run)[key] == scores[key]


def test_a_run_is_extended_by_a_modality_that_it_never_had(searched: Path, tmp_path: Path) -> None:
    run = copy_of(searched, tmp_path)
    assert search_here(*continued(run, "--extend", trials=2, only="concatenation")) == 0
    assert set(summary(run)["headline"]) >= {"audio", "video", "early", "fused"}
    assert sum(summary(run)["trials"].values()) == 4 + 2
    before = entries(searched)
    after = entries(run)
    for trial, entry in before.items():
        np.testing.assert_array_equal(after[trial].logits, entry.logits)
