"""Parquet: `clip` and a column a feature, or one column of lists (an embedding); `frame` orders frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.features.table import Rows

_CLIP, _FRAME = "clip", "frame"
_BATCH_ROWS = 1 << 16


def read_parquet(path: Path, *, one_clip: bool = False) -> Rows:
    """Reads a Parquet file a batch of rows at a time.

    Args:
        path: The file.
        one_clip: It is of one clip, whose name is the file's; its rows are frames.

    Raises:
        DataError: It is damaged, a column is no number, or lists differ in length.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"'{path}' needs pyarrow: pip install pyarrow (--features).") from error
    try:
        with parquet.ParquetFile(path) as file:
            return _read(path, pa.types, file, one_clip)
    except (pa.ArrowException, OSError) as error:
        text = str(error).splitlines()[0]
        raise DataError(f"'{path}' is not readable as Parquet: {text} (--features).") from error


def _read(path: Path, types: Any, file: Any, one_clip: bool) -> Rows:
    schema = {field.name: field.type for field in file.schema_arrow}
    features = [
        name for name in schema
        if name not in (_CLIP, _FRAME) and not name.startswith("__index_level_")
    ]  # fmt: skip
    if (_CLIP not in schema and not one_clip) or not features:
        raise DataError(
            f"'{path}' must have a column 'clip' and columns of features, or one of lists "
            f"(--features); it has: {', '.join(schema) or 'none'}."
        )
    _check_types(path, types, {name: schema[name] for name in features})
    lists = len(features) == 1 and _is_list(types, schema[features[0]])
    clips: dict[str, int] = {}
    codes: list[NDArray[np.int64]] = []
    blocks: list[NDArray[np.float32]] = []
    frames: list[NDArray[np.float64]] = []
    done = 0
    for batch in file.iter_batches(_BATCH_ROWS):
        codes.append(
            _codes(path, None if one_clip else batch.column(_CLIP), len(batch), clips, done)
        )
        if _FRAME in schema:
            frames.append(_numbers(batch.column(_FRAME)).astype(np.float64))
        read = (
            _lists(path, batch.column(features[0]), done, blocks)
            if lists
            else _columns(batch, features)
        )
        blocks.append(read)
        done += len(batch)
    if not done:
        raise DataError(f"'{path}' has no rows (--features).")
    if lists:
        features = [f"{features[0]}_{number}" for number in range(blocks[0].shape[1])]
    order = np.concatenate(frames) if frames else None
    if one_clip and order is None:
        order = np.arange(done, dtype=np.float64)
    return Rows(
        tuple(features),
        list(clips),
        np.concatenate(codes),
        np.concatenate(blocks),
        order,
        np.arange(1, done + 1),
        one_is_whole=one_clip and not frames,
    )


def _is_list(types: Any, kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind))


def _check_types(path: Path, types: Any, kinds: dict[str, Any]) -> None:
    for name, kind in kinds.items():
        inner = kind.value_type if _is_list(types, kind) and len(kinds) == 1 else kind
        if not _is_number(types, inner):
            raise DataError(f"'{path}': column '{name}' is {kind}, not numbers (--features).")


def _codes(
    path: Path, column: Any, count: int, clips: dict[str, int], done: int
) -> NDArray[np.int64]:
    """(R,) of the clips that a column names; adds new ones to `clips`."""
    if column is None:
        clips.setdefault(path.stem, 0)
        return np.zeros(count, np.int64)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) + done + 1
        raise DataError(f"'{path}', row {row}, has no clip (--features).")
    encoded = column.cast("string").dictionary_encode()
    names = [name.strip() for name in encoded.dictionary.to_pylist()]
    places = np.asarray([clips.setdefault(name, len(clips)) for name in names], np.int64)
    return np.asarray(places[encoded.indices.to_numpy(zero_copy_only=False)])


def _numbers(column: Any) -> NDArray[Any]:
    """(R,) values; NaN for null."""
    return np.asarray(column.cast("float64").to_numpy(zero_copy_only=False))


def _columns(batch: Any, features: list[str]) -> NDArray[np.float32]:
    block = np.empty((len(batch), len(features)), np.float32)
    with np.errstate(over="ignore"):
        for number, name in enumerate(features):
            block[:, number] = _numbers(batch.column(name))
    return block


def _lists(
    path: Path, column: Any, done: int, before: list[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """(R, F) of a column of lists, all of them as long."""
    lengths = np.asarray(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    wanted = before[0].shape[1] if before else int(lengths[0])
    ragged = np.flatnonzero(lengths != wanted)
    if len(ragged) or not wanted:
        row = int(ragged[0]) if len(ragged) else 0
        raise DataError(
            f"'{path}', row {row + done + 1}, has a list of {lengths[row]} values, the rows before "
            f"{wanted or 'none'} (--features)."
        )
    with np.errstate(over="ignore"):
        return _numbers(column.flatten()).astype(np.float32).reshape(-1, wanted)
