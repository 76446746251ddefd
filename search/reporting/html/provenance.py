"""Provenance of a run, and the command that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

import yaml

from search.config import SearchConfig
from search.reporting.html.markup import code, definitions, paragraph
from search.reporting.html.run_results import Evidence


def provenance(evidence: Evidence) -> str:
    """Protocol, seeds, versions, commit, machine, and the command."""
    found = evidence.summary
    versions = ", ".join(
        f"{name} {number}" for name, number in (found.get("versions") or {}).items()
    )
    seeds = ", ".join(found.get("confirmed") or {}) or "none"
    held_out = ", ".join(found.get("held_out") or []) or "none"
    entries = [
        (
            "protocol",
            f"{found['protocol']}: {found.get('leak') or 'no speaker is trained on and scored'}",
        ),
        ("metric", evidence.metric.name),
        ("data", f"checksum {found.get('data_checksum', 'unknown')}"),
        ("folds", f"fingerprint {found.get('folds_fingerprint', 'unknown')}"),
        ("test speakers", held_out),
        ("search seed", str(found.get("seed", "unknown"))),
        ("fresh seeds", seeds),
        ("recipe for export", str(found.get("chosen_recipe", "unknown"))),
        ("commit", found.get("commit") or "unknown: not run from a git checkout"),
        ("versions", versions or "unknown"),
        (
            "machine",
            f"{found.get('machine', 'unknown')}; trained on {found.get('device', 'unknown')}",
        ),
        ("command", str(found.get("command", "unknown"))),
    ]
    again = _reproduce(evidence)
    told = ""
    if again:
        told = paragraph(
            "A search of the same settings, from the commit above (where its time ends before its trials "
            "do, another machine comes to others):"
        ) + code(again)
    page = code(f"python -m search.report {shlex.quote(str(evidence.run))}")
    return f"{definitions(entries)}{told}{paragraph('This page again, from what the folder holds:')}{page}"


_NOT_REPEATED = (
    "name",
    "resume",
    "extend",
    "dry_run",
    "runs_dir",
    "cache_dir",
    "address",
    "format_version",
)


def _reproduce(evidence: Evidence) -> str:
    """The command of the run's settings; a resumed run's own command would only resume it."""
    try:
        asked = yaml.safe_load((evidence.run / "config.yaml").read_text(encoding="utf-8"))
        usual = {field.name: getattr(SearchConfig(), field.name) for field in fields(SearchConfig)}
        given = {k: v for k, v in asked.items() if k not in _NOT_REPEATED and v is not None}
        given = {k: v for k, v in given.items() if k in ("seed", "preset") or v != usual.get(k)}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return ""
    told = [
        f"--{key.replace('_', '-')} {shlex.quote(_as_typed(value))}" for key, value in given.items()
    ]
    return " ".join(["python -m search.run", *told])


def _as_typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
