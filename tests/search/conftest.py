"""Runs of the real command, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture()
def launch(cache_folder: Path) -> Launch:
    """Starts `python -m search.run …` as the leader of a process group."""

    def start(
        *arguments: object, cache: Path = cache_folder, **options: Any
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "search.run", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "EMOTION_CACHE": str(cache), "COLUMNS": "120"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    return start


@pytest.fixture()
def small_search(tiny_shards: Path, tmp_path: Path) -> list[object]:
    """Arguments of a search over cheap experts of all three modalities, one trial at a time."""
    return [
        "--data", tiny_shards, "--protocol", "speaker-kfold:2", "--runs-dir", tmp_path / "runs",
        "--only", "functionals,action_units,concatenation", "--trials", 9, "--workers", 1,
        "--seed", 3, "--dashboard=false", "--page=false",
    ]  # fmt: skip
