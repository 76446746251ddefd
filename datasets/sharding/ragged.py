"""Memory-mapped files of arrays of different lengths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.clips import DataError
from datasets.storage.atomic import write_atomically


class RaggedFile:
    """N items of different length, (n_i, *shape) each, in one file, each in one piece.

    Attributes:
        lengths: (N,) n of each item.
        offsets: (N,) where each begins.
        data: (sum of n, *shape), mapped. Where every item has length 1, in the order of items.
    """

    def __init__(self, path: Path) -> None:
        """Opens a complete file; raises FileNotFoundError while it is not."""
        header = json.loads(path.with_suffix(".json").read_text())
        self.lengths = np.load(path.with_suffix(".lengths.npy"), allow_pickle=False)
        if header.get("offsets", False):
            self.offsets = np.load(path.with_suffix(".offsets.npy"), allow_pickle=False)
        else:
            self.offsets = np.cumsum(self.lengths) - self.lengths
        shape = (int(self.lengths.sum()), *header["shape"])
        if int(np.prod(shape)) == 0:
            self.data: NDArray[Any] = np.zeros(shape, header["dtype"])
        else:
            self.data = np.memmap(path, header["dtype"], "r", shape=shape)

    def gather(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Copies items into one zero-padded tensor, (B, max n, *shape), and their lengths."""
        lengths = self.lengths[rows]
        out = np.zeros((len(rows), int(lengths.max()), *self.data.shape[1:]), self.data.dtype)
        for position, (start, length) in enumerate(zip(self.offsets[rows], lengths, strict=True)):
            out[position, :length] = self.data[start : start + length]
        return torch.from_numpy(out), torch.from_numpy(lengths)

    @staticmethod
    def create(
        path: Path, lengths: NDArray[np.int64], shape: tuple[int, ...], dtype: str
    ) -> NDArray[Any]:
        """Reserves the space (a full disk fails here, not as a crash while writing)."""
        total = (int(lengths.sum()), *shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".lengths.npy"), lengths)
        size = int(np.prod(total)) * np.dtype(dtype).itemsize
        if size == 0:
            return np.zeros(total, dtype)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(path, dtype, "r+", shape=total)

    @staticmethod
    def finish(path: Path, data: NDArray[Any]) -> None:
        """Completes what `create` reserved and somebody filled."""
        if isinstance(data, np.memmap):
            data.flush()
        _write_header(path, {"shape": data.shape[1:], "dtype": str(data.dtype)})


class RaggedWriter:
    """Writes a `RaggedFile` in any order of its items, a batch at a time.

    A context: the file is there when `finish` returns, and nothing is if it is not reached.
    What cannot be written is a DataError that names the folder.

    Args:
        path: Of the file.
        count: N.
        dtype: Of the items.
    """

    def __init__(self, path: Path, count: int, dtype: str) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.lengths, self.offsets = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.steps, self.shape = 0, (0,)
        self._partial, self._sorted = (path.with_suffix(s) for s in (".partial", ".sorted.partial"))

    def __enter__(self) -> RaggedWriter:
        with writing_into(self.path.parent):
            # Not mapped: a full disk is then an error, and not the end of the process.
            self._file = self._partial.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of a full disk, which was told
            self._file.close()
        for partial in (self._partial, self._sorted):
            partial.unlink(missing_ok=True)

    @property
    def bytes(self) -> int:
        """Written so far."""
        return self._file.tell()

    def add(
        self, rows: NDArray[np.int64], values: NDArray[Any], lengths: NDArray[np.int64]
    ) -> None:
        """Appends (B, n, *shape) as the items of some rows, each to its length."""
        self.shape = values.shape[2:]
        self.lengths[rows] = lengths
        self.offsets[rows] = self.steps + np.cumsum(lengths) - lengths
        self.steps += int(lengths.sum())
        items = [item[:length] for item, length in zip(values, lengths, strict=True)]
        with writing_into(self.path.parent):
            self._file.write(np.ascontiguousarray(np.concatenate(items), self.dtype).data)

    def finish(self, extra: dict[str, Any]) -> None:
        """Makes it a complete file; the header, with what `extra` says, comes last."""
        header = {"shape": self.shape, "dtype": str(self.dtype), "offsets": True, **extra}
        with writing_into(self.path.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            if (self.lengths == 1).all():
                self._sort()
            np.save(self.path.with_suffix(".lengths.npy"), self.lengths)
            np.save(self.path.with_suffix(".offsets.npy"), self.offsets)
            self._partial.replace(self.path)
            _write_header(self.path, header)

    def _sort(self) -> None:
        """Puts vectors into the order of their rows: the file is then their table."""
        if self.bytes == 0:
            return
        data = np.memmap(self._partial, self.dtype, "r", shape=(self.steps, *self.shape))
        with self._sorted.open("wb") as file:
            for some in np.array_split(self.offsets, -(-len(self.offsets) // 1024)):
                file.write(data[some].data)
            os.fsync(file.fileno())
        self._sorted.replace(self._partial)
        self.offsets = np.arange(len(self.offsets), dtype=np.int64)


def _write_header(path: Path, header: dict[str, Any]) -> None:
    """Only now is the file complete."""
    write_atomically(path.with_suffix(".json"), json.dumps(header).encode())


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into a DataError that names the cache's folder."""
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(folder: Path, error: OSError) -> DataError:
    """Return the error that names the folder, the reason and the remedy."""
    return DataError(
        f"Cannot write the cache in '{folder}': {error.strerror or error}. Set --cache-dir or EMOTION_CACHE."
    )
