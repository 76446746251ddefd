"""One search a fold that has never met it, beside the ordinary one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.protocols.split import make_folds
from datasets.sharding.index import ShardIndex
from search.config import ConfigError, SearchConfig
from search.persistence.run_folder import new_run, resumed_run
from search.run import main
from search.space.scope import SearchScope
from search.stages.nested_search import in_words, read_outer
from search.stages.nested_splits import inner_splits, narrowed, outer_count

SCOPE = SearchScope(
    single={"audio": ("logmel_resnet", "functionals"), "video": ("action_units", "frame_cnn")},
    fusions=("concatenation",),
    parts={"audio": ("functionals",), "video": ("action_units",)},
)
SECONDS = {
    "logmel_resnet": 90.0,
    "functionals": 12.0,
    "action_units": 4.0,
    "frame_cnn": 50.0,
    "functionals+action_units": 16.0,
}


def test_a_run_that_was_begun_with_nested_searches_goes_on_with_them(tmp_path: Path) -> None:
    config = SearchConfig(data="x", outer=True, outer_folds=2, name="n", runs_dir=str(tmp_path))
    new_run(config, "tiny")
    again = resumed_run(SearchConfig(resume="n", runs_dir=str(tmp_path)), {"resume", "runs_dir"})
    assert (again.config.outer, again.config.outer_folds) == (True, 2)


def test_a_search_to_be_repeated_is_narrowed_before_it_begins(
    tiny_shards: Path, cache_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", tiny_shards, "--protocol", "speaker-kfold:4", "--outer", "--dry-run"]
    where = ["--runs-dir", tmp_path / "runs", "--cache-dir", cache_folder]
    only = ["--only", "functionals,action_units,frame_cnn"]
    assert main([str(a) for a in [*arguments, *where, *only]]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "12 trials, at most 1.8 min" in shown, "a fifth of what one search may take"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer_folds": 2}, "outer_folds 2 needs --outer"),
        ({"outer": True, "outer_folds": 0}, "outer_folds must be 1 or more, got 0"),
        ({"outer": True, "test_speakers": "a"}, "leave out test_speakers"),
        ({"outer": True, "extend": "a"}, "outer cannot go with extend"),
        ({"outer": True, "runs_dir": "s3://a/b"}, "must be on a disk, got 's3://a/b'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**settings)


def test_there_are_no_more_outer_folds_than_folds(tiny_index: ShardIndex) -> None:
    four, two = (make_folds(tiny_index, f"speaker-kfold:{count}") for count in (4, 2))
    assert outer_count(SearchConfig(outer=True), four) == 4
    assert outer_count(SearchConfig(outer=True, outer_folds=3), four) == 3
    with pytest.raises(ConfigError, match="at most 4, the folds of speaker-kfold:4, got 5"):
        outer_count(SearchConfig(outer=True, outer_folds=5), four)
    with pytest.raises(ConfigError, match="outer needs 3 folds or more"):
        outer_count(SearchConfig(outer=True), two)


def test_a_search_has_no_speaker_of_its_outer_fold_in_any_of_its_folds(
    tiny_index: ShardIndex,
) -> None:
    folds = make_folds(tiny_index, "speaker-kfold:4")
    splits = inner_splits(tiny_index, folds, 4)
    apart: list[str] = []
    for fold, inner in enumerate(splits):
        assert inner.unseen_rows.tolist() == folds.test_rows(fold).tolist()
        assert inner.count == 3, "no more folds than speakers that are left"
        apart += inner.test_speakers
    assert sorted(apart) == sorted({entry.speaker for entry in tiny_index.clips})


def test_the_cheapest_of_each_modality_and_its_share_of_the_time() -> None:
    config = SearchConfig(data="x", outer=True, time_budget="60m", workers=1)
    config, scope = narrowed(config, SCOPE, SECONDS, 6)
    assert dict(scope.single) == {"audio": ("functionals",), "video": ("action_units",)}
    assert (scope.fusions, scope.modalities) == ((), ["audio", "video"])
    assert "only names others" in scope.why_not["logmel_resnet"]
    assert (config.only, config.trials) == ("functionals,action_units", 12)
    assert config.time_budget == "600s"


def test_as_many_trials_as_fit_unless_they_were_asked_for() -> None:
    def asked(**settings: Any) -> SearchConfig:
        config = SearchConfig(data="x", outer=True, workers=1, **settings)
        return narrowed(config, SCOPE, SECONDS, 6)[0]

    assert asked(time_budget="6m").trials == 7  # 60 s a search, 8 s a trial
    with pytest.raises(ConfigError, match=r"6 searches of 9 trials .* 7\.2 min, .* is 6 min"):
        asked(time_budget="6m", trials=9)
    with pytest.raises(ConfigError, match="6 searches of 4 trials"):
        asked(time_budget="2m")
    named = asked(time_budget="60m", only="logmel_resnet,functionals,concatenation")
    assert named.only == "logmel_resnet,functionals,action_units,frame_cnn,concatenation"


def write(path: Path, rows: list[tuple[str, str, int, int, str, tuple[float, float]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "speaker", "fold", "seed", "label", "calm", "cross"])
        writer.writerows([*row[:5], *row[5]] for row in rows)


def test_both_are_scored_on_the_clips_of_the_outer_folds(tmp_path: Path) -> None:
    right, wrong = (0.9, 0.1), (0.0, 1.0)
    ours = [(f"c{n}", f"s{n // 2}", n // 4, 5, "calm", right) for n in range(12)]
    fresh = [(clip, s, fold, 1005, label, wrong) for clip, s, fold, _, label, _ in ours]
    write(tmp_path / "predictions.csv", [*ours, *fresh])
    for fold in range(2):
        rows = [
            (clip, s, -1, 5, label, wrong if clip in ("c0", "c1", "c4") else right)
            for clip, s, of, _, label, _ in ours
            if of == fold
        ]
        write(tmp_path / "outer" / f"fold-{fold}" / "predictions_test.csv", rows)
    summary = {"classes": ["calm", "cross"], "headline": {"fused": {"search_score": 0.97}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = read_outer(tmp_path, "accuracy", 5, 2)
    assert found.nested.log_posteriors.shape == (8, 2)
    assert found.nested.fold_scores == (0.5, 0.75)
    assert found.ordinary.honest_score == 1.0
    assert found.shortcuts.value == pytest.approx(0.375)
    assert found.shortcuts.low < 0.375 < found.shortcuts.high
    assert np.isfinite(found.nested.log_posteriors).all(), "a posterior that was written as 0"
    text = in_words(found, "accuracy")
    assert "accuracy 62.5 (" in text
    assert "ordinary less nested, 95 % over speakers): +37.5 (" in text
    document = found.to_json()
    assert (document["folds"], document["clips"], document["search_score"]) == (2, 8, 0.97)
