"""Test speakers: in no fold, scored once at the end, and every look is counted."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.protocols.split import make_folds
from datasets.storage.synced_folder import KeptFolder
from ensembles import EnsembleError
from ensembles.bank.posterior_bank import PosteriorBank
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.writer import export
from search.data.training_data import TrainingData
from search.persistence import weights
from search.persistence.run_folder import RunFolder
from search.stages.findings import HeldOutScore
from search.stages.test_speakers import LOG_NAME, score_unseen

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def copied(small_run: Any, folder: Path, name: str = "small") -> RunFolder:
    """A copy of the small run in a folder of runs of its own."""
    shutil.copytree(small_run.path, folder / name)
    return replace(small_run.folder, kept=KeptFolder(folder / name))


def look(run: RunFolder, small_run: Any, **changes: Any) -> HeldOutScore:
    found = score_unseen(
        run,
        changes.get("data", small_run.data),
        small_run.experts,
        changes.get("assessment", small_run.assessment),
    )
    assert found is not None
    return found


def looks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]


def test_no_network_was_trained_on_or_chosen_by_a_test_speaker(small_run: Any) -> None:
    index = small_run.data.cache.index
    apart = {e.clip for e in index.clips if e.speaker == "speaker_03"}
    assert len(apart) == 6
    for fold in range(3):
        for training in (True, False):
            rows = small_run.data.rows(fold, training=training)
            assert not apart & {index.clips[row].clip for row in rows}
    bank = PosteriorBank.open(small_run.path / "bank")
    unseen = bank.table.folds == -1
    assert {bank.table.clips[row] for row in np.flatnonzero(unseen)} == apart
    entries = bank.read()
    assert len(entries) == 12
    for entry in entries:
        assert np.isnan(entry.logits[unseen]).all()
        assert np.isfinite(entry.logits[~unseen]).all()
    assert not apart & set(small_run.experts.table.clips)
    assert not apart & set(small_run.assessment.table.clips)


def test_the_score_is_what_the_file_of_predictions_counts_to(small_run: Any) -> None:
    summary = json.loads((small_run.path / "summary.json").read_text())
    with (small_run.path / "predictions_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    hits = [max(summary["classes"], key=lambda c: float(row[c])) == row["label"] for row in rows]
    found = summary["test_speakers"]
    assert found["score"] == pytest.approx(np.mean(hits))
    assert found["speakers"] == ["speaker_03"]
    assert found["clips"] == len(rows) == 6
    assert found["accuracy_by_speaker"] == {"speaker_03": pytest.approx(np.mean(hits))}
    assert found["scored_before"] == 0
    assert {(row["speaker"], row["fold"], row["seed"]) for row in rows} == {
        ("speaker_03", "-1", "5")
    }


def test_the_look_is_in_the_log_beside_the_run(small_run: Any) -> None:
    (entry,) = looks(small_run.path.parent)
    when = entry.pop("when")
    assert when.endswith("+00:00")
    assert len(entry.pop("predictions")) == 64  # another training of the same names is another look
    assert entry == {
        "data_checksum": small_run.data.cache.index.checksum,
        "protocol": "speaker-kfold:3",
        "speakers": ["speaker_03"],
        "run": "small",
        "experts": ["audio-0000", "video-0000", "early-0000"],
        "recipe": "a+v+e: product",
    }


def test_without_test_speakers_there_is_nothing_to_look_at(small_run: Any, tmp_path: Path) -> None:
    run = copied(small_run, tmp_path)
    cache = small_run.data.cache
    data = TrainingData(cache, make_folds(cache.index, "speaker-kfold:3"))
    assert score_unseen(run, data, small_run.experts, small_run.assessment) is None
    assert not (tmp_path / LOG_NAME).exists()


def test_looking_again_with_the_same_ensemble_is_no_new_look(
    small_run: Any, tmp_path: Path
) -> None:
    run = copied(small_run, tmp_path)
    first, second = look(run, small_run), look(run, small_run)
    assert (first.touches, second.touches) == (0, 0)
    assert len(looks(tmp_path)) == 1
    np.testing.assert_array_equal(first.log_posteriors, second.log_posteriors)
    assert first.score == second.score


def test_every_other_look_counts(small_run: Any, tmp_path: Path) -> None:
    first, second = copied(small_run, tmp_path), copied(small_run, tmp_path, "second")
    assert look(first, small_run).touches == 0
    assert look(second, small_run).touches == 1  # another run
    other = replace(small_run.assessment, chosen="best video")
    assert look(first, small_run, assessment=other).touches == 2  # another ensemble of the first
    assert [(entry["run"], entry["recipe"]) for entry in looks(tmp_path)] == [
        ("small", "a+v+e: product"), ("second", "a+v+e: product"), ("small", "best video")
    ]  # fmt: skip
    assert look(first, small_run).touches == 2  # its own earlier look is not one of them


def test_looks_at_other_data_or_speakers_do_not_count(small_run: Any, tmp_path: Path) -> None:
    run = copied(small_run, tmp_path)
    (same,) = looks(small_run.path.parent)
    others = [
        {**same, "run": "a", "data_checksum": "of something else"},
        {**same, "run": "b", "protocol": "speaker-kfold:2"},
        {**same, "run": "c", "speakers": ["speaker_00", "speaker_01"]},
    ]
    overlapping = {**same, "run": "d", "speakers": ["speaker_00", "speaker_03"]}
    lines = [json.dumps(entry) for entry in [*others, overlapping]]
    (tmp_path / LOG_NAME).write_text("\n".join(lines) + "\n")
    assert look(run, small_run).touches == 1


def test_half_a_line_of_a_killed_process_is_passed_over(small_run: Any, tmp_path: Path) -> None:
    run = copied(small_run, tmp_path)
    (same,) = looks(small_run.path.parent)
    line = json.dumps({**same, "run": "killed later"})
    (tmp_path / LOG_NAME).write_text(f"{line}\n{line[:40]}\n[]\n{{}}\n")
    assert look(run, small_run).touches == 1


def test_weights_that_are_gone_are_named(small_run: Any, tmp_path: Path) -> None:
    run = copied(small_run, tmp_path)
    shutil.rmtree(run.path / "weights" / "video-0000")
    with pytest.raises(EnsembleError, match=r"No such file: '.*video-0000/plan\.json'"):
        look(run, small_run)
    assert not (tmp_path / LOG_NAME).exists(), "nobody looked"


def of_no_use(run: RunFolder) -> None:
    """Networks of a fourth expert, which nothing chose, and of a trial that was killed."""
    folder = run.path / "weights"
    shutil.copytree(folder / "audio-0000", folder / "audio-0001")
    shutil.copytree(folder / "audio-0000", folder / "audio-0002")
    (folder / "audio-0002" / "plan.json").unlink()  # it comes last


def names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in (run.path / "weights").iterdir())


def test_all_weights_are_kept_unless_asked_otherwise(small_run: Any, tmp_path: Path) -> None:
    run = copied(small_run, tmp_path)
    of_no_use(run)
    weights.prune(run, small_run.assessment)
    left = weights.summary(run)
    assert names(run) == ["audio-0000", "audio-0001", "early-0000", "video-0000"]
    files = [path for path in (run.path / "weights").rglob("*") if path.is_file()]
    assert left == {"kept": "all", "experts": 4, "bytes": sum(p.stat().st_size for p in files)}


def test_what_an_export_needs_survives_the_pruning(small_run: Any, tmp_path: Path) -> None:
    run = copied(small_run, tmp_path)
    of_no_use(run)
    run = replace(run, config=replace(run.config, keep_weights="chosen"))
    weights.prune(run, small_run.assessment)
    left = weights.summary(run)
    assert names(run) == ["audio-0000", "early-0000", "video-0000"]
    assert (left["kept"], left["experts"]) == ("chosen", 3)
    export(read_run(run.path), tmp_path / "out")


def test_the_best_of_each_modality_is_kept_for_clips_that_lack_an_input(
    small_run: Any, tmp_path: Path
) -> None:
    run = copied(small_run, tmp_path)
    run = replace(run, config=replace(run.config, keep_weights="chosen"))
    alone = [row for row in small_run.assessment.recipes if row.name == "best video"]
    chosen = replace(
        small_run.assessment, fused=replace(alone[0], name="fused"), chosen="best video"
    )
    weights.prune(run, chosen)
    assert names(run) == ["audio-0000", "early-0000", "video-0000"]
    weights.prune(run, replace(chosen, recipes=tuple(alone)))
    assert names(run) == ["video-0000"]
