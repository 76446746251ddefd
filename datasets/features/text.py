"""CSV files of features: `clip,<feature>,…`, `clip,frame,<feature>,…`, and as openSMILE writes them.

openSMILE's are `name;frameTime;<feature>;…`, and `file,start,end,<feature>,…` of its Python package;
they are of frames, unless every clip has one row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.features.table import Rows
from datasets.media.containers import AUDIO_SUFFIXES, CONTAINER_SUFFIXES

TIMES = ("frameTime", "frameIndex")
"""Names that openSMILE gives to the columns that order frames."""

MISSING = frozenset(
    {"", "?", "NA", "N/A", "NaN", "nan", "NAN", "-nan", "null", "NULL", "None", "none", "<NA>"}
)
_DELIMITERS = (",", ";", "\t")
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Layout:
    """Where the columns of a file of text are.

    Attributes:
        width: Columns.
        names: (F,) of the features.
        features: (F,) their columns.
        clip: The clips' names' column; None in a file of one clip.
        frame: The column that orders a clip's rows; None for one row a clip, -1 for the file's order.
        skip: Lines before the first row.
        delimiter: Between columns.
        quote: Around values.
        comment: What a line that is none begins with.
        one_is_whole: See `Rows`.
        is_file: Whether clips are named by files with a suffix.
    """

    width: int
    names: tuple[str, ...]
    features: tuple[int, ...]
    clip: int | None
    frame: int | None
    skip: int
    delimiter: str = ","
    quote: str = '"'
    comment: str = ""
    one_is_whole: bool = False
    is_file: bool = False


def read_table(path: Path) -> tuple[Layout, Rows]:
    """Reads a CSV of many clips; raises DataError for one that is none."""
    layout = _table_layout(path)
    return layout, read_rows(path, layout)


def read_rows(path: Path, layout: Layout, *, numbered: bool = False) -> Rows:
    """The rows of a file of text; of one clip, called as the file is, where the layout has no column of names.

    Args:
        path: The file.
        layout: Its columns.
        numbered: Read line by line, so that rows have numbers and each bad one is told.

    Raises:
        DataError: The file is no text in UTF-8.
    """
    fast = None if numbered else _read_fast(path, layout)
    rows = fast or _read_slowly(path, layout)
    if layout.frame == -1:
        rows.frames = np.arange(len(rows.codes), dtype=np.float64)
        rows.__post_init__()
    return rows


def header_of(path: Path) -> tuple[list[str], str, int]:
    """A CSV's first line that is not blank, its delimiter, and in which line it ends."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
            delimiter = max(_DELIMITERS, key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            header = next((row for row in reader if row and row != [""]), [])
            return [name.strip() for name in header], delimiter, reader.line_num
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_csv(path, error) from error


def _no_csv(path: Path, error: Exception) -> DataError:
    return DataError(f"'{path}' is not a CSV in UTF-8: {error} (--features).")


def _table_layout(path: Path) -> Layout:
    header, delimiter, skip = header_of(path)
    layout = _columns(header, delimiter, skip)
    if layout is None or not layout.features:
        raise DataError(
            f"'{path}' must have a header 'clip,<feature>,…' and rows, or 'clip,frame,<feature>,…' "
            "and a row a frame (--features)."
        )
    return layout


def _columns(header: list[str], delimiter: str, skip: int) -> Layout | None:
    def layout(first: int, frame: int | None, opensmile: bool = False) -> Layout:
        return Layout(
            width=len(header),
            names=tuple(header[first:]),
            features=tuple(range(first, len(header))),
            clip=0,
            frame=frame,
            skip=skip,
            delimiter=delimiter,
            one_is_whole=opensmile,
            is_file=opensmile,
        )

    if header[:2] == ["clip", "frame"]:
        return layout(2, 1)
    if header[:1] == ["clip"]:
        return layout(1, None)
    if header[:3] == ["file", "start", "end"]:
        return layout(3, -1, opensmile=True)
    times = sum(name in TIMES for name in header[1:3])
    if header[:1] == ["name"] and (times or delimiter == ";"):
        return layout(1 + times, 1 if times else None, opensmile=True)
    return None


def clip_layout(header: list[str], delimiter: str, skip: int) -> Layout:
    """Return the layout of a CSV of one clip, whose name is the file's: a row a frame, or one row for all of it."""
    named = [number for number, name in enumerate(header) if name in ("clip", "name", "file")][:1]
    frame = next((n for n, name in enumerate(header) if name in ("frame", *TIMES)), None)
    left = {*named, *(n for n, name in enumerate(header) if name in TIMES), frame}
    if header[:3] == ["file", "start", "end"]:
        left |= {1, 2}
    features = tuple(number for number in range(len(header)) if number not in left)
    names = tuple(header[number] for number in features)
    whole = frame is None or header[frame] in TIMES
    order = -1 if frame is None else frame
    return Layout(len(header), names, features, None, order, skip, delimiter, one_is_whole=whole)


def clip_name(text: str, layout: Layout) -> str:
    """A clip's name as the file has it; of a media file, the name without folders and suffix."""
    text = text.strip()
    if layout.is_file and text[:1] == text[-1:] == "'":  # openSMILE's quotes, which are no CSV's
        text = text[1:-1]
    if layout.is_file and Path(text).suffix.lower() in AUDIO_SUFFIXES | CONTAINER_SUFFIXES:
        return Path(text.replace("\\", "/")).stem
    return text


def _read_fast(path: Path, layout: Layout) -> Rows | None:
    """The rows, a block of text at a time; None if a row is not as the layout says."""
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow
    except ImportError:  # predicting does not need it
        return None

    numeric = [str(column) for column in _numeric(layout)]
    texts = [] if layout.clip is None else [str(layout.clip)]
    types = dict.fromkeys(numeric, pa.float64()) | dict.fromkeys(texts, pa.string())
    blocks: list[NDArray[np.float32]] = []
    times: list[NDArray[np.float64]] = []
    codes: list[NDArray[np.int64]] = []
    clips: dict[str, int] = {}
    try:
        with arrow.open_csv(
            str(path),
            arrow.ReadOptions(
                block_size=_BLOCK_BYTES,
                skip_rows=layout.skip,
                column_names=[str(column) for column in range(layout.width)],
            ),
            arrow.ParseOptions(delimiter=layout.delimiter, quote_char=layout.quote),
            arrow.ConvertOptions(
                column_types=types, include_columns=[*texts, *numeric], null_values=sorted(MISSING)
            ),
        ) as reader:
            for batch in reader:
                columns = [c.to_numpy(zero_copy_only=False) for c in batch.columns[len(texts) :]]
                names = batch.column(0) if texts else None
                codes.append(_codes(path, names, len(batch), clips, layout))
                if _has_frames(layout):
                    times.append(columns.pop())
                blocks.append(_stacked(columns, len(batch)))
    except (pa.ArrowInvalid, OSError):
        return None
    if not blocks:
        return None
    frames = np.concatenate(times) if times else None
    values, whole = np.concatenate(blocks), layout.one_is_whole
    return Rows(
        layout.names, list(clips), np.concatenate(codes), values, frames, one_is_whole=whole
    )


def _stacked(columns: Sequence[NDArray[np.float64]], count: int) -> NDArray[np.float32]:
    """(R, F) of F columns; what float32 cannot hold becomes infinite."""
    block = np.empty((count, len(columns)), np.float32)
    with np.errstate(over="ignore"):
        for number, column in enumerate(columns):
            block[:, number] = column
    return block


def _codes(
    path: Path, column: Any, count: int, clips: dict[str, int], layout: Layout
) -> NDArray[np.int64]:
    """(R,) of the clips that a column of names names; adds new ones to `clips`."""
    if column is None:
        clips.setdefault(path.stem, 0)
        return np.zeros(count, np.int64)
    encoded = column.dictionary_encode()
    names = [clip_name(name or "", layout) for name in encoded.dictionary.to_pylist()]
    places = np.asarray([clips.setdefault(name, len(clips)) for name in names], np.int64)
    return np.asarray(places[encoded.indices.to_numpy(zero_copy_only=False)])


def _is_comment(line: str, layout: Layout) -> bool:
    return bool(layout.comment) and line.startswith(layout.comment)


def _has_frames(layout: Layout) -> bool:
    return layout.frame is not None and layout.frame >= 0


def _numeric(layout: Layout) -> list[int]:
    """The columns that are numbers: the features', and then that of the frames."""
    if layout.frame is None or layout.frame < 0:
        return list(layout.features)
    return [*layout.features, layout.frame]


def _read_slowly(path: Path, layout: Layout) -> Rows:
    """The rows line by line, with their numbers and what is wrong with each."""
    bad: dict[int, str] = {}
    clips: dict[str, int] = {}
    codes, numbers = [], []
    values: list[NDArray[np.float32]] = []
    frames: list[float] = []
    numeric = _numeric(layout)
    for number, row in _lines(path, layout):
        if len(row) != layout.width:
            bad[number] = f"{len(row)} values, not {layout.width}"
            continue
        found, problem = _numbers_of([row[column] for column in numeric])
        if problem:
            bad[number] = problem
            continue
        clip = path.stem if layout.clip is None else clip_name(row[layout.clip], layout)
        codes.append(clips.setdefault(clip, len(clips)))
        numbers.append(number)
        frames += [found.pop()] if _has_frames(layout) else []
        with np.errstate(over="ignore"):
            values.append(np.asarray(found, np.float64).astype(np.float32))
    return Rows(
        layout.names,
        list(clips),
        np.asarray(codes, np.int64),
        np.stack(values) if values else np.zeros((0, len(layout.names)), np.float32),
        np.asarray(frames) if _has_frames(layout) else None,
        np.asarray(numbers, np.int64),
        bad,
        layout.one_is_whole,
    )


def _numbers_of(texts: Sequence[str]) -> tuple[list[float], str]:
    """The numbers, NaN for a missing one; or what is wrong."""
    found = []
    for text in map(str.strip, texts):
        try:
            found.append(float("nan") if text in MISSING else float(text))
        except ValueError:
            return [], f"'{text[:40]}' is no number"
    return found, ""


def _lines(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not blank, with its number in the file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for _ in range(layout.skip):
                file.readline()
            reader = csv.reader(
                ("\n" if _is_comment(line, layout) else line for line in file),
                delimiter=layout.delimiter,
                quotechar=layout.quote,
                skipinitialspace=True,
            )
            for row in reader:
                if row and row != [""]:
                    yield layout.skip + reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_csv(path, error) from error
