"""A run's folder: its config, its lock, what it recorded, and continuing it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from datasets.storage.atomic import write_atomically
from datasets.storage.synced_folder import KeptFolder, default_cache_folder, is_url
from ensembles.bank.run_format import RUN_FORMAT, refusal
from search.config import (
    RESUME_KEYS,
    ConfigError,
    SearchConfig,
    default_runs_dir,
    from_document,
    to_document,
)
from search.persistence.remote_mirror import JOURNAL, Mirror, bring_together, mend_journal
from search.persistence.run_record import RunRecord

_PACKAGES = ("torch", "torchaudio", "ray", "optuna", "webdataset", "scikit-learn", "numpy")


@dataclass
class RunFolder:
    """One search and its folder.

    Attributes:
        kept: `runs/NAME`; where it is kept behind a URL, this machine's working copy.
        config: As asked, or as stored when it is resumed.
        resumed: Whether it was there before.
        given: The settings that were given when it was resumed.
    """

    kept: KeptFolder
    config: SearchConfig
    resumed: bool
    given: frozenset[str] = frozenset()

    @property
    def path(self) -> Path:
        """The folder on this machine."""
        return self.kept.path

    @property
    def beside(self) -> KeptFolder:
        """The folder that holds this run and others."""
        url = self.kept.url
        return KeptFolder(self.path.parent, url.rpartition("/")[0] if url else None)

    @property
    def resume_command(self) -> str:
        """Return the command that continues the run, from where it is run now."""
        runs_dir = self.config.runs_dir
        where = "" if runs_dir == default_runs_dir() else f" --runs-dir {runs_dir}"
        return f"python -m search.run --resume {self.path.name}{where}"

    @property
    def continue_with(self) -> str:
        """Return the message to print after an interruption."""
        return f"Interrupted. Continue with: {self.resume_command}"

    def interrupted_by(self, why: str) -> str:
        """Return the message for a storage that takes nothing more."""
        return (
            f"{why}. What was finished is kept. When that is mended, continue with: "
            f"{self.resume_command}"
        )

    @cached_property
    def mirror(self) -> Mirror:
        """Sends what is written here to where it is kept."""
        return Mirror(self.kept)

    @property
    def extended(self) -> bool:
        """Whether a finished search goes on."""
        return "extend" in self.given

    @property
    def journal(self) -> Path:
        """Optuna's journal."""
        return self.path / JOURNAL

    @property
    def record_path(self) -> Path:
        """Where the run's record lies."""
        return self.path / "run.json"

    def read_record(self) -> RunRecord | None:
        """Return what the first start recorded; None before."""
        if not self.record_path.exists():
            return None
        return RunRecord.from_json(json.loads(self.record_path.read_bytes()))

    def write_record(self, record: RunRecord) -> None:
        """Write `run.json`."""
        write_atomically(self.record_path, json.dumps(record.to_json(), indent=1).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Two searches must not write into one folder.

        Raises:
            ConfigError: If one already does.
        """
        try:
            with FileLock(str(self.path / ".lock"), timeout=0):
                mend_journal(self.journal)
                with self.mirror.working():
                    yield
        except Timeout:
            raise ConfigError(f"The run '{self.path.name}' is in use by another process.") from None


def new_run(config: SearchConfig, corpus: str) -> RunFolder:
    """Starts a run's folder.

    Raises:
        ConfigError: If the name is taken, or the folder cannot be written.
    """
    name = config.name or f"{corpus}-{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    kept = run_folder(config.runs_dir, name)
    path = kept.path
    config = replace(config, name=name)
    try:
        if kept.url and kept.sizes("config.yaml"):
            raise FileExistsError
        if kept.url and path.exists():  # of a run that is no longer kept
            path.rename(path.with_name(f"{name}.{datetime.now():%Y%m%d-%H%M%S}"))
        path.mkdir(parents=True)
        for folder in ("logs", "weights"):
            (path / folder).mkdir()
        document = {"format_version": RUN_FORMAT, **to_document(config)}
        write_atomically(path / "config.yaml", yaml.safe_dump(document, sort_keys=False).encode())
        kept.send("config.yaml")
    except FileExistsError:
        raise ConfigError(
            f"The run '{name}' already exists. Continue it with --resume {name}, or choose another --name."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"Cannot write the run's folder '{kept.url or path}': {error.strerror or error}."
        ) from error
    return RunFolder(kept, config, resumed=False)


def run_folder(runs_dir: str, name: str) -> KeptFolder:
    """Where a run is, by its name."""
    return KeptFolder.at(f"{runs_dir.rstrip('/')}/{name}", default_cache_folder())


def known_runs(runs_dir: str) -> list[str]:
    """Names of the runs in a folder, or behind a URL."""
    if is_url(runs_dir):
        return KeptFolder.at(runs_dir, default_cache_folder()).names()
    return sorted(p.parent.name for p in Path(runs_dir).glob("*/config.yaml"))


def resumed_run(config: SearchConfig, given: set[str]) -> RunFolder:
    """Opens a run's folder to continue or to extend it.

    Raises:
        ConfigError: No such run, another format version, or a setting that cannot change.
    """
    how = "extend" if config.extend else "resume"
    name = str(getattr(config, how))
    allowed = (*RESUME_KEYS, "only") if config.extend else RESUME_KEYS
    kept = run_folder(config.runs_dir, name)
    stored = kept.path / "config.yaml"
    try:
        if kept.url and kept.sizes("config.yaml"):
            bring_together(kept)
        if not stored.is_file():
            known = ", ".join(known_runs(config.runs_dir)) or "none"
            raise ConfigError(f"No run '{name}' in '{config.runs_dir}'. Known: {known}.")
    except OSError as error:
        raise ConfigError(f"Cannot read the runs in '{config.runs_dir}': {error}.") from error
    changed = sorted(given - {*allowed, how})
    if changed:
        raise ConfigError(
            f"{changed[0]} cannot change when a run is continued. With {how} you may give: "
            f"{', '.join(allowed)}."
        )
    document = yaml.safe_load(stored.read_text(encoding="utf-8"))
    found = document.pop("format_version", None)
    if found != RUN_FORMAT:
        raise ConfigError(refusal(kept.path, found))
    old = from_document(document, stored)
    if config.extend and old.reproduce:
        raise ConfigError(
            f"The run '{name}' reproduces {old.reproduce}: there is nothing to extend."
        )
    overrides = {key: getattr(config, key) for key in given & set(allowed)}
    config = replace(old, **{"runs_dir": config.runs_dir, **overrides})
    return RunFolder(kept, config, resumed=True, given=frozenset(given))


def provenance() -> dict[str, Any]:
    """Command, commit, versions and machine: what it takes to repeat a run."""
    return {
        "command": "python -m search.run " + " ".join(sys.argv[1:]),
        "commit": _git("rev-parse", "--short=12", "HEAD")
        + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else ""),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "machine": f"{platform.machine()}, {platform.system()}, {psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
