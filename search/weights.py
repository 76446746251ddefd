"""The networks that a run keeps: which, how much disk they take, and getting lost ones back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensembles.honesty import Assessment
from search.folder import RunFolder

PLAN = "plan.json"
"""The last file that a trial writes of its networks: where it is, all of them are."""


def needed(assessment: Assessment) -> set[str]:
    """The experts whose networks an export can ask for.

    Those of the chosen ensemble, of each fold's, and the best of each modality, which take
    over where a clip lacks an input.
    """
    rows = [assessment.fused, *(r for r in assessment.recipes if r.name.startswith("best "))]
    names = {name for row in rows for name in row.experts}
    return names | {name for row in rows for _, taken in row.per_fold for name in taken}


def fetch(run: RunFolder, assessment: Assessment) -> None:
    """Gets the needed networks of a run that is kept elsewhere."""
    run.kept.pull(f"weights/{name}" for name in sorted(needed(assessment)))
    run.kept.pull(name for name in run.kept.sizes("weights") if name.count("/") == 1)


def lost(run: RunFolder, assessment: Assessment) -> list[str]:
    """Needed experts without networks: an earlier end of the run did not keep them."""
    return sorted(name for name in needed(assessment) if not _complete(run, name))


def put_back(run: RunFolder, name: str, title: str) -> None:
    """Gives an expert the networks that were trained again under another name."""
    run.kept.pull([f"weights/{title}"])
    if _complete(run, title):
        run.kept.remove(f"weights/{name}")
        _folder(run, title).rename(_folder(run, name))
        run.kept.send(f"weights/{name}")
        run.kept.remove(f"weights/{title}")


def prune(run: RunFolder, assessment: Assessment) -> None:
    """Removes what killed trials left half written, and what the run was asked not to keep."""
    kept = needed(assessment) if run.config.keep_weights == "chosen" else None
    files = run.kept.sizes("weights")
    for name in sorted({file.split("/")[1] for file in files if file.count("/") > 1}):
        if f"weights/{name}/{PLAN}" not in files or (kept is not None and name not in kept):
            run.kept.remove(f"weights/{name}")


def summary(run: RunFolder) -> dict[str, Any]:
    """How many experts' networks a run keeps, and what they take on disk."""
    files = run.kept.sizes("weights")
    return {
        "kept": run.config.keep_weights,
        "experts": sum(file.endswith(f"/{PLAN}") for file in files),
        "bytes": sum(files.values()),
    }


def _folder(run: RunFolder, name: str) -> Path:
    return run.path / "weights" / name


def _complete(run: RunFolder, name: str) -> bool:
    return (_folder(run, name) / PLAN).is_file()
