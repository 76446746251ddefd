"""Invented experts: posteriors from a seed, with as much truth in them as asked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensembles.artifact.manifest import checksum
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.writer import export
from ensembles.metrics import log_softmax

MakeExperts = Callable[..., Experts]


@pytest.fixture(scope="session")
def make_table() -> Callable[..., ClipTable]:
    """Clips of speakers, each speaker in one fold, classes in turn."""

    def make(*, speakers: int = 12, clips: int = 6, classes: int = 3, folds: int = 4) -> ClipTable:
        speaker = np.repeat(np.arange(speakers), clips)
        count = len(speaker)
        return ClipTable(
            clips=tuple(f"clip{i:04d}" for i in range(count)),
            speakers=tuple(f"speaker{s:02d}" for s in speaker),
            folds=(speaker % folds).astype(np.int64),
            labels=(np.arange(count) % classes).astype(np.int64),
            classes=tuple("abcdefgh"[:classes]),
        )

    return make


@pytest.fixture(scope="session")
def make_experts(make_table: Callable[..., ClipTable]) -> MakeExperts:
    """Experts whose logits are noise plus `skill` on the true class."""

    def make(
        seed: int = 0,
        *,
        skills: Sequence[float] = (1.0, 1.0, 1.0),
        modalities: Sequence[str] | None = None,
        scale: float = 1.0,
        **sizes: int,
    ) -> Experts:
        table = make_table(**sizes)
        generator = np.random.default_rng(seed)
        shape = (len(skills), len(table.clips), len(table.classes))
        logits = generator.normal(size=shape)
        logits[:, np.arange(len(table.clips)), table.labels] += np.asarray(skills)[:, None]
        return Experts(
            table,
            tuple(f"e{m:02d}" for m in range(len(skills))),
            tuple(modalities or ["audio"] * len(skills)),
            log_softmax(scale * logits),
        )

    return make


@pytest.fixture(scope="session")
def video_run(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run that kept one expert, of video, and chose it; to be read."""
    path = Path(shutil.copytree(small_run.path, tmp_path_factory.mktemp("video") / "run"))
    summary = json.loads((path / "summary.json").read_text())
    summary["chosen_recipe"] = "best video"
    for choice in summary["headline"]["fused"]["per_fold"]:
        choice["recipe"] = "best video"
    (path / "summary.json").write_text(json.dumps(summary))
    for name in ("audio-0000", "early-0000"):
        shutil.rmtree(path / "weights" / name)
    return path


@pytest.fixture(scope="session")
def exported_video(video_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its ensemble, of one expert; to be read, not changed."""
    out = tmp_path_factory.mktemp("exported") / "video"
    export(read_run(video_run), out)
    return out


@pytest.fixture()
def changeable(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "changeable"))


@pytest.fixture()
def edit_manifest() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Changes an exported folder's manifest, and makes its checksums those of the files."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "ensemble.json"
        document = json.loads(path.read_text())
        for name in document["files"]:
            content = (folder / name).read_bytes()
            document["files"][name] = hashlib.sha256(content).hexdigest()
        signed = "checksum" in document
        change(document)
        if signed and "checksum" in document:
            document["checksum"] = checksum(document)
        path.write_text(json.dumps(document))

    return edit
