"""Mirror of a run that is kept behind a URL: its working copy is sent there while it goes on.

Trials send what they leave by themselves. Here is what the driver writes (journal, facts,
reports), every few seconds and at the end; a host that is lost takes no more than that
with it. A lease tells other machines that somebody works on the run.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from datasets.storage.synced_folder import KeptFolder
from search.config import ConfigError

JOURNAL = "journal.log"
BY_TRIALS = ("bank", "weights", "checkpoints", "logs")
"""Folders that trials write to, and send."""

_LEASE = "lease.json"
_OWN = {*BY_TRIALS, "ray", ".lock", _LEASE, f"{JOURNAL}.lock"}
_SECONDS_BETWEEN = 5.0
_LEASE_S = 60.0
"""Who has not renewed the lease for so long is gone."""


def bring_together(kept: KeptFolder) -> None:
    """Gets a run that is continued here, unless the working copy of this machine knows more.

    Raises:
        ConfigError: Two machines continued it from the same point.
        OSError: The storage cannot be read.
    """
    journal = kept.path / JOURNAL
    here = journal.read_bytes() if journal.exists() else b""
    sizes = kept.sizes()
    there = b""
    if JOURNAL in sizes:
        beside = KeptFolder(kept.path / ".there", kept.url)
        beside.fetch(JOURNAL)
        there = (beside.path / JOURNAL).read_bytes()
        KeptFolder(beside.path).remove("")
    if here.startswith(there) and here:
        return
    if not there.startswith(here):
        raise ConfigError(
            f"The run in '{kept.url}' was also continued from this machine's copy, '{kept.path}', "
            "which is not in it. Move that away to go on with what is kept there."
        )
    for name in sizes:
        if name.split("/")[0] not in BY_TRIALS and name != _LEASE:
            kept.fetch(name)


class Mirror:
    """Sends what the driver of a run writes, in the background.

    Args:
        kept: The run's folder.
    """

    def __init__(self, kept: KeptFolder) -> None:
        self.kept = kept
        self._sent: dict[str, tuple[int, int]] = {}
        self._ended: list[str] = []
        self._owner = f"{socket.gethostname()}, process {os.getpid()}"
        self._token = uuid4().hex
        self._over = threading.Event()
        self._sending = threading.Lock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Holds the lease, and sends while the block runs and once more at its end.

        Raises:
            ConfigError: Another machine holds it, or the storage does not take the run.
        """
        if self.kept.url is None:
            yield
            return
        try:
            self._take_lease()
            self.send()
        except OSError as error:
            raise ConfigError(f"Cannot write the run to '{self.kept.url}': {error}.") from error
        thread = threading.Thread(target=self._go_on, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self.finish()

    def finish(self) -> None:
        """Sends what is not yet there, and gives the run back.

        Raises:
            ConfigError: The storage does not take it.
        """
        if self.kept.url is None:
            return
        try:
            self.send()
            self.kept.remove(_LEASE)
        except OSError as error:
            raise ConfigError(
                f"The run could not be sent to '{self.kept.url}': {error}. All of it is in "
                f"'{self.kept.path}'; --resume sends it."
            ) from error

    def forget_checkpoint(self, trial: str) -> None:
        """Removes a trial's progress, once the journal that says how it ended is safe."""
        if self.kept.url is None:
            self.kept.remove(f"checkpoints/{trial}.pt")
        else:
            self._ended.append(trial)

    def send(self) -> None:
        """Sends every file that changed since the last time.

        Raises:
            OSError: The storage does not take it.
        """
        with self._sending:
            ended = list(self._ended)
            for path in sorted(self.kept.path.rglob("*")):
                name = path.relative_to(self.kept.path).as_posix()
                if name.split("/")[0] in _OWN or path.name.endswith(".partial"):
                    continue
                with suppress(FileNotFoundError):  # it was replaced meanwhile
                    state = path.stat()
                    stamp = (state.st_mtime_ns, state.st_size)
                    if path.is_file() and self._sent.get(name) != stamp:
                        self.kept.send(name)
                        self._sent[name] = stamp
            for trial in ended:
                self.kept.remove(f"checkpoints/{trial}.pt")
                self._ended.remove(trial)

    def _go_on(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN):
            with suppress(OSError):  # told at the end, if it still does
                self._write_lease()
                self.send()

    def _take_lease(self) -> None:
        lease = _read(self.kept, _LEASE)
        age = time.time() - float(lease.get("at", 0))
        gone = lease.get("boot") == _boot() and not psutil.pid_exists(int(lease.get("process", 0)))
        if lease.get("token") not in (None, self._token) and age < _LEASE_S and not gone:
            raise ConfigError(
                f"The run in '{self.kept.url}' is in use by {lease.get('owner')}, which was there "
                f"{age:.0f} s ago. If it is gone, try again in a minute."
            )
        self._write_lease()

    def _write_lease(self) -> None:
        lease = {
            "owner": self._owner,
            "boot": _boot(),
            "process": os.getpid(),
            "token": self._token,
            "at": time.time(),
        }
        (self.kept.path / _LEASE).write_text(json.dumps(lease))
        self.kept.send(_LEASE)


def _boot() -> str:
    """This machine since it was switched on; of this name there may be others."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else uuid4().hex


def _read(kept: KeptFolder, name: str) -> dict[str, Any]:
    """A JSON object that is kept; empty if there is none, or half of one."""
    beside = KeptFolder(kept.path / ".there", kept.url)
    try:
        found = beside.fetch(name) and json.loads((beside.path / name).read_text())
    except ValueError:
        found = {}
    KeptFolder(beside.path).remove("")
    return found if isinstance(found, dict) else {}


def mend_journal(path: Path) -> None:
    """Takes off the half line, and the lock, that a process leaves which was killed in a write."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - 2**20)
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
