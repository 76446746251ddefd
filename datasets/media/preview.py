"""A contact sheet: what of a corpus's pictures the frames show, to be seen at a glance."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, zip_longest
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus, DataError
from datasets.media.containers import MediaError
from datasets.media.faces import Box, FaceFinder, centre
from datasets.media.video import Taken, middle_picture, take_frames

Picture = NDArray[np.uint8]

MOST_CLIPS = 24
_COLUMNS = 3
_WHOLE = (180, 320)  # (H, W) of the cell's left side, in pixels
_CROP = (180, 200)
_TEXT, _GAP = 22, 6
_GREEN, _RED, _GREY, _WHITE = (60, 200, 60), (230, 40, 40), (110, 110, 110), (235, 235, 235)
_SUFFIXES = (".png", ".jpg", ".jpeg")


def write_preview(
    corpus: Corpus,
    path: Path,
    *,
    count: int,
    size: tuple[int, int],
    rate_hz: float = 0.0,
    faces: FaceFinder | None = None,
) -> str:
    """Draws up to 24 clips of all speakers: a whole picture with the box, and the crop beside it.

    Args:
        corpus: Whose clips.
        path: A PNG or JPEG.
        count: V, frames of a clip, as they will be taken.
        size: (H, W) of the frames.
        rate_hz: Frames of every second instead.
        faces: What finds the faces; None where the centre is taken.

    Returns:
        One line on what is on it.

    Raises:
        DataError: No clip has a video, or the sheet cannot be written.
    """
    check_sheet(path)
    records = _some(corpus)
    if not records:
        raise DataError(f"No clip of corpus '{corpus.name}' has a video to preview (--preview).")
    cells, found, broken = [], 0, 0
    for record in records:
        try:
            cell, face = _cell(record, count, size, rate_hz, faces)
            found += face is True
        except MediaError as error:
            cell, broken = _broken(record, str(error)), broken + 1
        cells.append(cell)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, _sheet(cells)[..., ::-1])[1].tobytes())
    except OSError as error:
        raise DataError(f"Cannot write '{path}': {error.strerror or error} (--preview).") from error
    of_faces = f", face found in {found}" if faces else ""
    unread = f", {broken} cannot be read" if broken else ""
    return f"preview of {len(records)} clips{of_faces}{unread}: {path}"


def check_sheet(path: Path) -> None:
    """Raises DataError for a name that is no picture's."""
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"The preview is a .png or .jpg, not '{path.name}' (--preview).")


def _some(corpus: Corpus) -> list[ClipRecord]:
    """Clips with video, of as many speakers as there are, evenly over each one's."""
    of_speaker: dict[str, list[ClipRecord]] = defaultdict(list)
    for record in corpus.clips:
        if record.video is not None:
            of_speaker[record.speaker].append(record)
    each = -(-MOST_CLIPS // max(1, len(of_speaker)))
    rounds = []
    for records in of_speaker.values():
        wanted = min(each, len(records))
        rounds.append([records[int((i + 0.5) / wanted * len(records))] for i in range(wanted)])
    if len(rounds) > MOST_CLIPS:
        rounds = [rounds[int(i)] for i in np.linspace(0, len(rounds) - 1, MOST_CLIPS)]
    mixed = [r for r in chain.from_iterable(zip_longest(*rounds)) if r is not None][:MOST_CLIPS]
    return sorted(mixed, key=lambda record: record.clip)


def _cell(
    record: ClipRecord,
    count: int,
    size: tuple[int, int],
    rate_hz: float,
    faces: FaceFinder | None,
) -> tuple[Picture, bool | None]:
    """One clip's part of the sheet, and whether its face was found."""
    assert record.video is not None
    part = record.video_part
    taken = take_frames(record.video, count, size, part=part, rate_hz=rate_hz, faces=faces)
    whole = middle_picture(record.video, part)
    half = part.half if part else None
    drawn = _with_box(whole, half, taken, size)
    crop = _fit(taken.frames[len(taken.frames) // 2][..., :3], _CROP)
    lost = taken.face is False
    says = "NO FACE, centre: " if lost else ""
    says += f"[{half} half] " if half else ""
    border = _RED if lost else _GREEN if taken.face else _GREY
    return _framed([_fit(drawn, _WHOLE), crop], says + record.clip, border), taken.face


def _with_box(whole: Picture, half: str | None, taken: Taken, size: tuple[int, int]) -> Picture:
    """The picture with the box that is taken; the half that is not looked at is dimmed."""
    rows, columns = whole.shape[:2]
    shown, start = columns, 0
    drawn = whole.copy()
    if half:
        shown = columns // 2
        start = shown if half == "right" else 0
        other = slice(0, shown) if half == "right" else slice(shown, columns)
        drawn[:, other] //= 4
    box: Box = taken.box or centre((rows, shown), size)
    left, top = start + round(box.left * shown), round(box.top * rows)
    right, bottom = left + round(box.width * shown), top + round(box.height * rows)
    thick = max(1, round(rows / 90))
    colour = _RED if taken.face is False else _GREEN
    cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour, thick)
    return drawn


def _broken(record: ClipRecord, reason: str) -> Picture:
    empty = np.zeros((_WHOLE[0], _WHOLE[1] + _CROP[1] + _GAP, 3), np.uint8)
    return _framed([empty], f"{record.clip} {reason}", _RED)


def _fit(picture: Picture, size: tuple[int, int]) -> Picture:
    """Scaled into a place of (H, W), in its middle, on black."""
    scale = min(size[0] / picture.shape[0], size[1] / picture.shape[1])
    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    place = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    place[top : top + height, left : left + width] = cv2.resize(
        np.ascontiguousarray(picture), (width, height), interpolation=how
    )
    return place


def _framed(pictures: list[Picture], text: str, colour: tuple[int, int, int]) -> Picture:
    """Pictures beside each other, with a line of text below, in a border."""
    gap = np.zeros((pictures[0].shape[0], _GAP, 3), np.uint8)
    row = np.concatenate([pictures[0], *(p for one in pictures[1:] for p in (gap, one))], axis=1)
    label = np.zeros((_TEXT, row.shape[1], 3), np.uint8)
    ink = _RED if colour == _RED else _WHITE
    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts know no more
    cv2.putText(label, plain, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, ink, 1, lineType=cv2.LINE_AA)
    cell = np.concatenate([row, label], axis=0)
    framed: Picture = cv2.copyMakeBorder(cell, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=colour)
    return framed


def _sheet(cells: list[Picture]) -> Picture:
    """Cells of one size, in rows."""
    padded: list[Picture] = [np.pad(cell, ((4, 4), (4, 4), (0, 0))) for cell in cells]
    while len(padded) % min(_COLUMNS, len(cells)):
        padded.append(np.zeros_like(padded[0]))
    columns = min(_COLUMNS, len(cells))
    rows = [padded[start : start + columns] for start in range(0, len(padded), columns)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
