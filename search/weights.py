"""The networks that a run keeps: which, how much disk they take, and getting lost ones back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ensembles.honesty import Assessment
from search.folder import RunFolder

PARTIAL = ".partial"
"""How the name of a folder ends that a trial is writing to."""


def needed(assessment: Assessment) -> set[str]:
    """The experts whose networks an export can ask for.

    Those of the chosen ensemble, of each fold's, and the best of each modality, which take
    over where a clip lacks an input.
    """
    rows = [assessment.fused, *(r for r in assessment.recipes if r.name.startswith("best "))]
    names = {name for row in rows for name in row.experts}
    return names | {name for row in rows for _, taken in row.per_fold for name in taken}


def lost(run: RunFolder, assessment: Assessment) -> list[str]:
    """Needed experts without networks: an earlier end of the run did not keep them."""
    return sorted(name for name in needed(assessment) if not _folder(run, name).is_dir())


def put_back(run: RunFolder, name: str, title: str) -> None:
    """Gives an expert the networks that were trained again under another name."""
    if _folder(run, title).is_dir():
        _folder(run, title).rename(_folder(run, name))


def prune(run: RunFolder, assessment: Assessment) -> None:
    """Removes what killed trials left half written, and what the run was asked not to keep."""
    kept = needed(assessment) if run.config.keep_weights == "chosen" else None
    for path in (run.path / "weights").iterdir():
        if path.name.endswith(PARTIAL) or (kept is not None and path.name not in kept):
            shutil.rmtree(path)


def summary(run: RunFolder) -> dict[str, Any]:
    """How many experts' networks a run keeps, and what they take on disk."""
    experts = [
        path
        for path in (run.path / "weights").iterdir()
        if path.is_dir() and not path.name.endswith(PARTIAL)
    ]
    files = [file for path in experts for file in path.rglob("*") if file.is_file()]
    return {
        "kept": run.config.keep_weights,
        "experts": len(experts),
        "bytes": sum(file.stat().st_size for file in files),
    }


def _folder(run: RunFolder, name: str) -> Path:
    return run.path / "weights" / name
