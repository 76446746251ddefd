"""Networks that a run keeps: which, how much disk they take, and getting lost ones back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ensembles.evaluation.assessment import Assessment
from search.persistence.run_folder import RunFolder

PLAN = "plan.json"
"""The last file that a trial writes of its networks: where it is, all of them are."""


def needed(assessment: Assessment) -> set[str]:
    """The experts whose networks an export can ask for.

    Those of the chosen ensemble, of each fold's, and the best of each modality, which take
    over where a clip lacks an input.
    """
    rows = [assessment.fused, *assessment.singles.values()]
    names = {name for row in rows for name in row.experts}
    return names | {name for row in rows for _, taken in row.per_fold for name in taken}


def fetch(run: RunFolder, assessment: Assessment) -> None:
    """Gets the needed networks of a run that is kept elsewhere."""
    run.kept.pull(f"weights/{name}" for name in sorted(needed(assessment)))
    frozen = {_frozen(run, name) for name in needed(assessment)}
    run.kept.pull(f"weights/{name}" for name in sorted(filter(None, frozen)))


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
    left = []
    for name in sorted({file.split("/")[1] for file in files if file.count("/") > 1}):
        if f"weights/{name}/{PLAN}" not in files or (kept is not None and name not in kept):
            run.kept.remove(f"weights/{name}")
        else:
            left.append(name)
    shared = {_frozen(run, name) for name in left}
    for file in files:
        if file.count("/") == 1 and file.split("/")[1] not in shared:
            run.kept.remove(file)


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
    if not (_folder(run, name) / PLAN).is_file():
        return False
    frozen = _frozen(run, name)
    return frozen is None or (run.path / "weights" / frozen).is_file()


def _frozen(run: RunFolder, name: str) -> str | None:
    """The file of an expert's frozen backbone, which it shares with others."""
    run.kept.pull([f"weights/{name}/{PLAN}"])
    try:
        plan = json.loads((_folder(run, name) / PLAN).read_bytes())
    except (OSError, ValueError):
        return None
    return str(plan["frozen"]) if plan.get("frozen") else None
