"""The posterior bank: out-of-fold logits of every trial at every rung, keyed by clip.

It is the one contract between search and ensembles. `clips.csv` names the rows once;
`TRIAL@PERCENT.npz` holds one trial's (N, K) logits. Where arousal and valence are predicted over time,
`recordings.npz` names the rows, which are steps, and an entry holds the (S, D) traces. An entry is
written whole or not at all, carries a checksum, and is never unpickled.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.storage.atomic import write_atomically
from ensembles import EnsembleError
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.trace_table import TraceTable
from ensembles.bank.training_variant import SEARCH, Variant
from ensembles.metrics import Array

TABLE_FILES = (ClipTable.file, TraceTable.file)
"""A bank has one of them: its rows are clips, or steps of traces."""


MODALITIES = ("audio", "video", "early")
"""Modalities of experts, in the order of leaderboards; early is early fusion, one network over both."""

Table = ClipTable | TraceTable


def of_clips(table: Table) -> ClipTable:
    """The table, where its rows can only be clips."""
    assert isinstance(table, ClipTable), "this is of classes"
    return table


@dataclass(frozen=True, kw_only=True)
class BankEntry:
    """One trial's out-of-fold logits at one rung; of a bank of traces, its traces.

    Attributes:
        trial: Its name, such as `audio-0003`.
        variant: Which of the trial's trainings.
        modality: audio, video or early.
        architecture: A registered name.
        percent: Of the trial's own schedule.
        epoch: Epochs done.
        seed: Of its training.
        logits: (N, K), NaN for clips without a prediction.
    """

    trial: str
    modality: str
    architecture: str
    percent: int
    epoch: int
    seed: int
    logits: NDArray[np.float32]
    variant: Variant = SEARCH

    @property
    def name(self) -> str:
        """The training's name, which its files have."""
        return self.trial + self.variant.suffix


@dataclass(frozen=True)
class Experts:
    """Out-of-fold posteriors of M experts over the same N clips; what fusion works on.

    Attributes:
        table: The clips.
        names: (M,) experts.
        modalities: (M,) audio, video or early.
        log_posteriors: (M, N, K); of traces, (M, S, D) themselves.
    """

    table: Table
    names: tuple[str, ...]
    modalities: tuple[str, ...]
    log_posteriors: Array

    def __post_init__(self) -> None:
        """A NaN anywhere would silently win or lose every comparison."""
        if not self.names:
            raise EnsembleError("There is no finished expert to fuse.")
        finite = np.isfinite(self.log_posteriors).all(axis=(1, 2))
        if not finite.all():
            culprit = self.names[int(np.flatnonzero(~finite)[0])]
            raise EnsembleError(f"Expert '{culprit}' has posteriors that are not finite.")

    def replace(self, fresh: dict[str, Array]) -> Experts:
        """The same experts, some with log-posteriors from another training seed."""
        swapped = self.log_posteriors.copy()
        for name, values in fresh.items():
            swapped[self.names.index(name)] = values
        return Experts(self.table, self.names, self.modalities, swapped)


@dataclass
class PosteriorBank:
    """A folder of bank entries.

    Attributes:
        folder: Where it lies.
        table: Its clips.
        damaged: Entries that the last `read` dropped, with the reason.
    """

    folder: Path
    table: Table
    damaged: list[str] = field(default_factory=list)

    @property
    def table_file(self) -> str:
        """Name of the file that names its rows."""
        return self.table.file

    @staticmethod
    def create(folder: Path, table: Table) -> PosteriorBank:
        """Starts a bank, or opens the one that is there if it has the same rows."""
        if any((folder / name).exists() for name in TABLE_FILES):
            bank = PosteriorBank.open(folder)
            if bank.table.fingerprint != table.fingerprint:
                raise EnsembleError(
                    f"'{folder}' holds posteriors of other data, classes or folds. Give the run another --name."
                )
            return bank
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / table.file, table.to_bytes())
        return PosteriorBank(folder, table)

    @staticmethod
    def open(folder: Path) -> PosteriorBank:
        """Opens a bank.

        Raises:
            EnsembleError: If there is none, or its table is damaged.
        """
        kinds: tuple[type[Table], ...] = (ClipTable, TraceTable)
        kind = next((kind for kind in kinds if (folder / kind.file).is_file()), None)
        if kind is None:
            raise EnsembleError(f"No posterior bank in '{folder}'.")
        path = folder / kind.file
        try:
            return PosteriorBank(folder, kind.read(path))
        except (ValueError, IndexError, KeyError, csv.Error, zipfile.BadZipFile) as error:
            raise EnsembleError(f"'{path}' is damaged: {error!r}.") from error

    def write(self, entry: BankEntry) -> Path:
        """Adds an entry; it replaces one of the same trial and rung."""
        assert entry.logits.shape == self.table.shape
        meta = {
            "trial": entry.trial,
            "variant": asdict(entry.variant),
            "modality": entry.modality,
            "architecture": entry.architecture,
            "percent": entry.percent,
            "epoch": entry.epoch,
            "seed": entry.seed,
            "table": self.table.fingerprint,
            "sha256": hashlib.sha256(entry.logits.tobytes()).hexdigest(),
        }
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, logits=entry.logits, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8)
        )
        path = self._path(entry.name, entry.percent)
        write_atomically(path, buffer.getvalue())
        return path

    def read(self) -> list[BankEntry]:
        """Every intact entry, by name; damaged ones are dropped and named in `damaged`."""
        self.damaged = []
        entries = []
        for path in sorted(self.folder.glob("*@*.npz")):
            try:
                entries.append(self._read_entry(path))
            except Exception as error:
                # Damaged archives fail as zlib.error, NotImplementedError, TypeError and more.
                self.damaged.append(f"{path.name}: {str(error) or type(error).__name__}")
        return entries

    def find(self, name: str, percent: int) -> BankEntry | None:
        """One training's entry; None if it is not there, or damaged."""
        try:
            return self._read_entry(self._path(name, percent))
        except Exception:  # see `read`
            return None

    def rungs(self, table: Table) -> Iterator[tuple[str, Array]]:
        """Every trial at every rung, stopped ones too: what the search could have chosen.

        Args:
            table: The clips that are wanted; an entry that lacks one of them is left out. So are
                trainings with fresh seeds or enrolment, which nobody chooses by.

        Yields:
            Its modality, and (N, K) log-posteriors.
        """
        place = {clip: row for row, clip in enumerate(self.table.clips)}
        rows = np.asarray([place[clip] for clip in table.clips])
        for entry in self.read():
            logits = entry.logits[rows]
            if entry.variant == SEARCH and np.isfinite(logits).all():
                yield entry.modality, table.as_scores(logits)

    def _path(self, name: str, percent: int) -> Path:
        return self.folder / f"{name}@{percent:03d}.npz"

    def _read_entry(self, path: Path) -> BankEntry:
        with np.load(path, allow_pickle=False) as file:
            logits = file["logits"]
            meta = json.loads(file["meta"].tobytes())
        if meta.pop("sha256") != hashlib.sha256(logits.tobytes()).hexdigest():
            raise ValueError("does not match its checksum")
        if "variant" not in meta:
            raise ValueError("is of an older format")
        if meta.pop("table") != self.table.fingerprint:
            raise ValueError("belongs to other data, classes or folds")
        variant = Variant(**meta.pop("variant"))
        return BankEntry(**meta, variant=variant, logits=logits)

    def experts(self, entries: Iterable[BankEntry]) -> Experts:
        """Stacks entries as experts; clips that one of them lacks are left out for all.

        Raises:
            EnsembleError: No entries, or one with infinite logits.
        """
        chosen = list(entries)
        if not chosen:
            raise EnsembleError("There is no finished expert to fuse.")
        logits = np.stack([entry.logits for entry in chosen]).astype(np.float64)
        present = ~np.isnan(logits).any(axis=(0, 2))
        table = self.table
        if isinstance(table, TraceTable):
            present &= np.isfinite(table.labels).all(axis=1)
        if not present.any():
            raise EnsembleError("No clip has posteriors of every expert.")
        if not present.all():
            table = table.take(np.flatnonzero(present))
        return Experts(
            table,
            tuple(entry.name for entry in chosen),
            tuple(entry.modality for entry in chosen),
            table.as_scores(logits[:, present]),
        )
