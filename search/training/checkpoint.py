"""A trial's progress on disk: whoever dies loses an epoch, not the trial. No Ray here."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from datasets.storage.atomic import write_atomically
from datasets.storage.synced_folder import KeptFolder

SECONDS_BETWEEN = 5.0
"""An epoch that ends sooner after the last checkpoint leaves none: small networks do many a second."""

_DIGEST = hashlib.sha256().digest_size
_FORMAT_VERSION = 2


@dataclass(frozen=True)
class Progress:
    """Content of a checkpoint.

    Attributes:
        trial: `LockstepTrial.state_dict()`.
        reports: Those of the rungs so far.
        seconds: Trained so far.
    """

    trial: dict[str, Any]
    reports: list[Any]
    seconds: float


class Checkpoint:
    """One file, `checkpoints/TRIAL.pt`, replaced whole after every epoch.

    Args:
        run: The run's folder, and where it is kept.
        name: The trial's.
        identity: All that its training is a function of; progress of anything else is not
            continued.
    """

    def __init__(self, run: KeptFolder, name: str, identity: Mapping[str, Any]) -> None:
        self.run, self.name = run, f"checkpoints/{name}.pt"
        self.path = run.path / self.name
        content = json.dumps([_FORMAT_VERSION, identity], sort_keys=True)
        self.identity = hashlib.sha256(content.encode()).hexdigest()
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self._saved >= SECONDS_BETWEEN

    def save(self, progress: Progress) -> None:
        """Replaces the file."""
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, **progress.__dict__}, buffer)
        content = buffer.getvalue()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, hashlib.sha256(content).digest() + content)
        self.run.send(self.name)
        self._saved = time.monotonic()

    def load(self) -> Progress | None:
        """Return what was saved; None where nothing was, or it is damaged or of another training."""
        if not self.run.fetch(self.name):
            return None
        content = self.path.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return None
        try:
            found = torch.load(io.BytesIO(content[_DIGEST:]), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError):
            return None
        if not isinstance(found, dict) or found.pop("identity", None) != self.identity:
            return None
        return Progress(**found)
