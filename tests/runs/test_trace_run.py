"""A whole search over traces: fresh seed, page, resumption and export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from datasets.corpora.recola import load_recola
from datasets.sharding.writer import (ShardSettings, prepare)
from datasets.corpora.synthetic_traces import make_synthetic_traces
from ensembles.artifact.manifest import read_artifact
from ensembles.exporting.writer import export
from ensembles.exporting.finished_run import read_run
from ensembles.inference.predictor import Predictor
from ensembles.inference.traces import trace_of
from tests.runs.conftest import QUICKLY, Launcher
from tests.runs.process import bank


def test_a_whole_search_over_traces(launch: Launcher, cache_folder: Path, tmp_path: Path) -> None:
    media, shards = tmp_path / "media", tmp_path / "shards"
    make_synthetic_traces(media, speakers=4, minutes=0.2, seed=3)
    settings = ShardSettings(frames=50, frame_size=(48, 48), clips_per_shard=8)
    prepare(load_recola(media, window_seconds=4.0), shards, settings)
    launch.defaults = {"runs_dir": tmp_path / "runs", **QUICKLY}
    out = launch.search(
        data=shards, name="traced", trials=3, epochs=2, only="logmel_resnet,frame_cnn,concatenation",
        confirm_seeds=1, page=True,
    ).finish()  # fmt: skip
    assert "arousal: fused" in out
    run = tmp_path / "runs" / "traced"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["target"] == "auto"
    assert "1003" in summary["confirmed"]
    assert {trial.partition("+")[0] for trial, _ in bank(run)} == {"audio-0000", "video-0000", "early-0000"}
    assert "is left out. It could not be drawn" not in (run / "report.html").read_text()

    launch.go_on(resume="traced").finish()
    again = json.loads((run / "summary.json").read_text())
    for what in ("headline", "confirmed"):
        assert again[what] == summary[what]

    export(read_run(run), tmp_path / "out")
    answer = trace_of(
        Predictor(read_artifact(tmp_path / "out")), media / "RECOLA-Audio-recordings" / "P02.wav"
    )
    assert answer.values.shape == (300, 2)
    assert np.isfinite(answer.values).all()
    assert answer.experts == ("audio-0000",), "the recording has no video"
