"""NumPy's files: npz of many clips, npy (or npz of one array) of one clip. Nothing is unpickled."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.features.table import FeatureTable, KeyOf, Rows, from_arrays, join

# All that reading a damaged file was seen to raise; zipfile says RuntimeError of an encrypted one.
_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip


def read_npz(path: Path, key_of: KeyOf, missing: str) -> FeatureTable:
    """Reads an npz of arrays named by clip, (F,) or (S, F) each; or `clips` (N,) and `features` (N, F).

    The second may have `frames` (N,), which orders a clip's rows, and `names` (F,).

    Raises:
        DataError: It is damaged, holds objects, or names the clip whose array is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"'{path}' is no npz (--features).")
            if {"clips", "features"} <= set(file.files):
                found = {
                    n: np.asarray(file[n])
                    for n in ("clips", "features", "frames", "names")
                    if n in file
                }
                rows = _table(path, found)
                return join(path, rows, key_of, missing, lambda: rows)
            arrays = (
                (clip, f"'{clip}'", as_features(path, file[clip], clip)) for clip in file.files
            )
            return from_arrays(path, arrays, key_of, missing)
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(f"'{path}' is not readable as npz: {error} (--features).") from error


def read_array(path: Path) -> NDArray[np.float32]:
    """Reads the one array of an npy or npz, (F,) or (S, F); raises DataError."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".npy":
                return as_features(path, np.lib.format.read_array(file, allow_pickle=False))
            with np.load(file, allow_pickle=False) as archive:
                if len(archive.files) != 1:
                    raise DataError(
                        f"'{path}' holds {len(archive.files)} arrays, not one (--features)."
                    )
                return as_features(path, archive[archive.files[0]])
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(
            f"'{path}' is not readable as {path.suffix[1:]}: {error} (--features)."
        ) from error


def as_features(path: Path, array: Any, called: str = "") -> NDArray[np.float32]:
    """(F,) or (S, F) float32 of an array of numbers; raises DataError for another."""
    where = f"'{path}': '{called}'" if called else f"'{path}'"
    if not isinstance(array, np.ndarray):  # np.load gives what is no array in an npz as bytes
        raise DataError(f"{where} is no array (--features).")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where} is of {array.dtype}, not numbers (--features).")
    if array.ndim not in (1, 2) or not array.size:
        raise DataError(
            f"{where} has the shape {array.shape}; a clip's features are (F,) or (S, F) (--features)."
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def _table(path: Path, found: dict[str, NDArray[Any]]) -> Rows:
    """Rows of `clips`, `features` and perhaps `frames` and `names`."""
    features, clips = as_features(path, found["features"], "features"), found["clips"]
    if features.ndim != 2:
        raise DataError(
            f"'{path}': 'features' has the shape {features.shape}, not (N, F) (--features)."
        )
    count, width = features.shape
    for name, shape in (("clips", (count,)), ("frames", (count,)), ("names", (width,))):
        if name in found and found[name].shape != shape:
            raise DataError(
                f"'{path}': '{name}' has the shape {found[name].shape}, 'features' {features.shape} (--features)."
            )
    names = tuple(_texts(path, found, "names")) or tuple(f"feature_{n}" for n in range(width))
    unique: dict[str, int] = {}
    codes = [unique.setdefault(clip.strip(), len(unique)) for clip in _texts(path, found, "clips")]
    frames = found["frames"].astype(np.float64) if "frames" in found else None
    assert len(clips) == count
    numbers = np.arange(1, count + 1)
    return Rows(names, list(unique), np.asarray(codes, np.int64), features, frames, numbers)


def _texts(path: Path, found: dict[str, NDArray[Any]], name: str) -> Iterator[str]:
    """An array of names, perhaps of bytes."""
    array = found.get(name)
    if array is None:
        return iter(())
    if array.dtype.kind not in "US":
        raise DataError(f"'{path}': '{name}' is of {array.dtype}, not text (--features).")
    return (t.decode("utf-8") if isinstance(t, bytes) else t for t in array.tolist())
