"""Finished runs that go on: with more trials, architectures, seeds, enrolment, or with nothing to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ensembles.bank.run_format import RUN_FORMAT
from search.run import main
from tests.faults.injection import injection
from tests.runs.conftest import Launcher, Searched
from tests.runs.process import assert_same_entries, bank, happened, journal, one_error
from tests.small_run import JointCorpus


@pytest.fixture()
def run(searched: Searched, tmp_path: Path) -> Path:
    """A copy of the finished search."""
    return Path(shutil.copytree(searched.run, tmp_path / "runs" / "whole"))


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def test_it_is_extended_by_trials_and_architectures_again_and_again(
    launch_joint: Launcher, run: Path, tmp_path: Path
) -> None:
    before, entries = journal(run), bank(run)
    file = tmp_path / "held"
    env = injection({"kind": "hold", "step": 3, "file": str(file)})
    command = launch_joint.go_on(extend="whole", trials=3, only="gated", confirm_seeds=0, env=env)
    command.until(happened(file))
    command.kill()
    assert len(journal(run)) == 7, "the first of the new trials"

    launch_joint.go_on(resume="whole").finish()
    after = journal(run)
    assert len(after) == 6 + 3
    assert {trial: after[trial] for trial in before} == before
    again = bank(run)
    assert_same_entries({key: again[key] for key in entries}, entries)
    new = [after[trial]["params"] for trial in after.keys() - before.keys()]
    assert any("gated" in params.values() for params in new), new

    launch_joint.go_on(extend="whole", trials=1, workers=2).finish()
    grown = journal(run)
    assert len(grown) == 6 + 3 + 1
    assert {trial: grown[trial] for trial in after} == after
    assert sum(summary_of(run)["trials"].values()) == 10

    launch_joint.go_on(resume="whole", trials=11).finish()
    assert len(journal(run)) == 11

    untouched = tmp_path / "ray"
    untouched.mkdir()
    launch_joint.go_on(resume="whole", trials=11, env={"RAY_TMPDIR": str(untouched)}).finish()
    assert len(journal(run)) == 11, "there is nothing left to do"
    assert list(untouched.iterdir()) == [], "and so Ray is not started"


def test_it_is_given_more_seeds_and_enrolment_and_gets_lost_networks_back(
    launch_joint: Launcher, run: Path
) -> None:
    before, trials = summary_of(run), journal(run)
    needed = {n for choice in before["headline"]["fused"]["per_fold"] for n in choice["experts"]}
    lost = run / "weights" / sorted(needed)[0]
    files = {file.name: file.read_bytes() for file in lost.iterdir()}
    shutil.rmtree(lost)
    command = launch_joint.go_on(resume="whole", confirm_seeds=2, enrolment="1,2")
    command.finish()
    assert "training 1 experts again, whose networks were not kept" in command.err
    assert {file.name: file.read_bytes() for file in lost.iterdir()} == files
    after = summary_of(run)
    assert journal(run) == trials
    assert after["headline"] == before["headline"]
    assert after["confirmed"]["1003"] == before["confirmed"]["1003"]
    assert after["confirmed"].keys() == {"1003", "1004"}
    fresh = {key for key in bank(run) if "+seed" in key[0]}
    by_seed = [{t.partition("+")[0] for t, _ in fresh if t.endswith(s)} for s in ("1003", "1004")]
    assert by_seed[0] == by_seed[1] != set()
    assert after["enrolment"].keys() == {"0", "1", "2"}


def test_what_cannot_go_on_is_refused(
    run: Path, joint: JointCorpus, capsys: pytest.CaptureFixture[str], cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EMOTION_CACHE", str(cache_folder))
    where = ["--runs-dir", str(run.parent)]
    assert main(["--resume", "whole", "--seed", "5", *where]) == 2
    assert "seed cannot change" in one_error(capsys.readouterr().err)
    search = ["--data", str(joint.shards), "--protocol", "speaker-kfold:3", "--only", "functionals"]
    assert main([*search, "--name", "whole", *where]) == 2
    assert "already exists. Continue it with --resume whole" in one_error(capsys.readouterr().err)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(f"format_version: {RUN_FORMAT}", "format_version: 99"))
    assert main(["--resume", "whole", *where]) == 2
    assert "format version 99" in one_error(capsys.readouterr().err)
