"""Cuts a long recording into overlapping windows, in memory bounded by one window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.media.audio import stream_audio, to_samples
from datasets.media.containers import AUDIO_SUFFIXES, MAX_CLIP_SECONDS, MediaError
from datasets.media.faces import LOOKS, Box, FaceFinder, centre
from datasets.media.video import (
    cut_face,
    duration,
    frames_at,
    spread,
    stream_frames_for_faces,
    stream_pictures,
)

_LEAST_WINDOW_SECONDS = 0.25
_LEAST_HOP_SECONDS = 0.05
MOST_FACE_SECONDS = 30.0
"""Longest window that is cropped to a face: its whole frames are held until it is found."""
_REST_SECONDS = 0.1
"""Longest rest that may be left behind the last window."""


@dataclass(frozen=True)
class Windows:
    """How a recording is cut.

    Attributes:
        seconds: Of each window; of the only one, less, where the recording is shorter.
        hop_seconds: From a window's start to the next one's. The last window ends with the
            recording instead.

    Raises:
        DataError: If a window is too short or too long, or the hop leaves gaps.
    """

    seconds: float
    hop_seconds: float

    def __post_init__(self) -> None:
        if not _LEAST_WINDOW_SECONDS <= self.seconds <= MAX_CLIP_SECONDS:
            raise DataError(
                f"A window lasts {_LEAST_WINDOW_SECONDS} to {MAX_CLIP_SECONDS:.0f} s, "
                f"not {self.seconds} s (--window)."
            )
        if not _LEAST_HOP_SECONDS <= self.hop_seconds <= self.seconds:
            raise DataError(
                f"The hop is at least {_LEAST_HOP_SECONDS} s, and at most the window "
                f"({self.seconds} s): {self.hop_seconds} s would not do (--hop)."
            )


@dataclass(frozen=True)
class Window:
    """A part of a recording.

    Attributes:
        start: In seconds from the recording's beginning.
        end: As `start`.
        audio: (L,) 16-bit samples, resampled as a clip's are; None where there is no sound.
        video: (V, H, W, 3) frames, taken evenly as a clip's are; None where there are none.
        lacking: Why there is no `audio` or `video`.
    """

    start: float
    end: float
    audio: NDArray[np.int16] | None
    video: NDArray[np.uint8] | None
    lacking: Mapping[str, str] = field(default_factory=dict)


class _Sound:
    """The decoded sound from some moment on, mono, at its own rate."""

    def __init__(self, path: Path, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._blocks = stream_audio(path)
        first = next(self._blocks, None)
        if first is None:
            raise MediaError("holds no sound")
        self._kept, self._rate_hz = first
        self._forgotten = 0  # samples before the kept ones

    @property
    def seconds(self) -> float:
        """How much is decoded."""
        return (self._forgotten + len(self._kept)) / self._rate_hz

    def fill(self, until: float) -> None:
        """Decodes up to a moment, or the end."""
        blocks, short = [self._kept], until - self.seconds
        while short > 0 and (item := next(self._blocks, None)) is not None:
            blocks.append(item[0])
            short -= len(item[0]) / self._rate_hz
        self._kept = np.concatenate(blocks) if len(blocks) > 1 else self._kept

    def forget(self, before: float) -> None:
        """Lets go of what will not be cut any more."""
        surplus = min(max(0, self._at(before)), len(self._kept))
        self._kept, self._forgotten = self._kept[surplus:].copy(), self._forgotten + surplus

    def cut(self, start: float, end: float) -> NDArray[np.int16]:
        """(L,) samples, as if the file were that part alone."""
        part = self._kept[self._at(start) : self._at(end)]
        return to_samples(part, self._rate_hz, self.sample_rate_hz)

    def _at(self, moment: float) -> int:
        return round(moment * self._rate_hz) - self._forgotten


class _Pictures:
    """The decoded pictures from some moment on, scaled and cropped."""

    def __init__(self, path: Path, wanted: int, size: tuple[int, int], rate_hz: float) -> None:
        self.wanted, self.size, self.rate_hz = wanted, size, rate_hz
        self._start(stream_pictures(path, size))

    def _start(self, stream: Iterator[tuple[float, Any]]) -> None:
        self._stream = stream
        first = next(self._stream, None)
        if first is None:
            raise MediaError("holds no pictures")
        self._origin = first[0]
        self._stamps, self._frames = [0.0], [first[1]]

    @property
    def seconds(self) -> float:
        """How much is decoded; the last picture lasts as long as the one before."""
        last = self._stamps[-2:]
        return last[0] + duration(np.asarray(last))

    def fill(self, until: float) -> None:
        """Decodes up to a moment, or the end."""
        while self.seconds < until and (item := next(self._stream, None)) is not None:
            self._stamps.append(item[0] - self._origin)
            self._frames.append(item[1])

    def forget(self, before: float) -> None:
        """Lets go of what will not be cut any more; the picture shown at that moment stays."""
        shown = int(np.searchsorted(self._stamps, before, side="right")) - 1
        surplus = max(0, min(shown, len(self._stamps) - 2))  # two tell how long one lasts
        del self._stamps[:surplus], self._frames[:surplus]

    def cut(self, start: float, end: float) -> NDArray[np.uint8]:
        """(V, H, W, 3) pictures, evenly spread over that part."""
        moments = start + spread(self.wanted, end - start, self.rate_hz)
        stamps = np.asarray(self._stamps)
        rows = frames_at(stamps, moments - stamps[0]).tolist()
        made = {row: self._picture(self._frames[row]) for row in set(rows)}
        return np.stack([made[row] for row in rows])

    def _picture(self, frame: Any) -> NDArray[np.uint8]:
        """(H, W, 3) of what was held."""
        picture: NDArray[np.uint8] = frame
        return picture


class _Faces(_Pictures):
    """The same, cropped to the face of each window."""

    def __init__(
        self,
        path: Path,
        wanted: int,
        size: tuple[int, int],
        rate_hz: float,
        faces: FaceFinder,
        look_every_s: float,
    ) -> None:
        self.wanted, self.size, self.rate_hz, self.faces = wanted, size, rate_hz, faces
        self._seen: list[tuple[float, list[Box]]] = []  # where faces were, and when
        self._shape = (0, 0)  # of the pictures they were looked for in
        self._box = Box(0.0, 0.0, 1.0, 1.0)
        self._start(self._looked(stream_frames_for_faces(path, size, look_every_s)))

    def _looked(
        self, stream: Iterator[tuple[float, av.VideoFrame, NDArray[np.uint8] | None]]
    ) -> Iterator[tuple[float, av.VideoFrame]]:
        origin = None
        for time, frame, look in stream:
            origin = time if origin is None else origin
            if look is not None:
                self._shape = look.shape[:2]
                self._seen.append((time - origin, self.faces.look(look)))
            yield time, frame

    def forget(self, before: float) -> None:
        super().forget(before)
        self._seen = [(time, boxes) for time, boxes in self._seen if time >= before]

    def cut(self, start: float, end: float) -> NDArray[np.uint8]:
        seen = [boxes for time, boxes in self._seen if start <= time < end]
        found = self.faces.choose(seen, self._shape, self.size) if seen else None
        self._box = found or centre(self._shape, self.size)
        return super().cut(start, end)

    def _picture(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        return cut_face(frame, None, self._box, self.size)


def read_windows(
    path: Path,
    windows: Windows,
    *,
    sample_rate_hz: int = 0,
    frames: int = 0,
    frame_size: tuple[int, int] = (0, 0),
    rate_hz: float = 0.0,
    faces: FaceFinder | None = None,
    hold: bool = False,
) -> Iterator[Window]:
    """Decodes a recording of any length once, and yields its windows in order.

    Sound and pictures both begin at 0 s; the longer one says when the recording ends.

    Args:
        path: A sound file, or a container.
        windows: How it is cut.
        sample_rate_hz: Of the sound; 0 to leave it out.
        frames: V, pictures a window; 0 to leave them out.
        frame_size: (H, W) in pixels.
        rate_hz: Pictures of every second instead.
        faces: What finds the face that a window's pictures are cropped to, one box a window.
        hold: Where one stream ends before the other, it goes on with silence or its last picture,
            so that what is said of a window is of all of it.

    Raises:
        MediaError: If nothing in it can be used, or it breaks off.
        DataError: If a window is too long to be cropped to a face.
    """
    if frames and faces and windows.seconds > MOST_FACE_SECONDS:
        raise DataError(
            f"A window whose pictures are cropped to a face lasts {MOST_FACE_SECONDS:.0f} s at "
            f"most, not {windows.seconds:g} s (--window)."
        )
    lacking: dict[str, str] = {}
    sound, pictures = None, None
    if sample_rate_hz:
        try:
            sound = _Sound(path, sample_rate_hz)
        except MediaError as error:
            lacking["audio"] = str(error)
    if frames and path.suffix.lower() in AUDIO_SUFFIXES:
        lacking["video"] = "is a sound file"
    elif frames:
        try:
            pictures = (
                _Faces(path, frames, frame_size, rate_hz, faces, windows.seconds / LOOKS)
                if faces
                else _Pictures(path, frames, frame_size, rate_hz)
            )
        except MediaError as error:
            lacking["video"] = str(error)
    tracks = [track for track in (sound, pictures) if track]
    if not tracks:
        raise MediaError("; ".join(dict.fromkeys(lacking.values())))
    for start, end in _spans(tracks, windows):
        make = _held_window if hold else _window
        yield make(start, end, sound, pictures, lacking)


def _spans(tracks: list[_Sound | _Pictures], windows: Windows) -> Iterator[tuple[float, float]]:
    end = 0.0
    for number in count():
        start = number * windows.hop_seconds
        for track in tracks:
            track.fill(start + windows.seconds)
        length = max(track.seconds for track in tracks)
        if length < start + windows.seconds - 1e-6:
            break
        end = start + windows.seconds
        yield start, end
        for track in tracks:
            track.forget(start)
    if end == 0.0 or length - end > _REST_SECONDS:
        yield max(0.0, length - windows.seconds), length


def _held_window(
    start: float,
    end: float,
    sound: _Sound | None,
    pictures: _Pictures | None,
    lacking: Mapping[str, str],
) -> Window:
    """All of a window of every stream that there is."""
    audio = None
    if sound:
        heard = min(end, sound.seconds)
        audio = np.zeros(round((end - start) * sound.sample_rate_hz), np.int16)
        if heard > start:
            part = sound.cut(start, heard)[: len(audio)]
            audio[: len(part)] = part
    return Window(start, end, audio, pictures.cut(start, end) if pictures else None, lacking)


def _window(
    start: float,
    end: float,
    sound: _Sound | None,
    pictures: _Pictures | None,
    lacking: Mapping[str, str],
) -> Window:
    """Return what each stream has of a window; one that covers less than half of it has nothing."""
    here = dict(lacking)
    needed = (start + end) / 2
    if sound and sound.seconds < needed:
        here["audio"] = f"its sound ends at {sound.seconds:.1f} s"
    if pictures and pictures.seconds < needed:
        here["video"] = f"its pictures end at {pictures.seconds:.1f} s"
    return Window(
        start,
        end,
        sound.cut(start, end) if sound and "audio" not in here else None,
        pictures.cut(start, min(end, pictures.seconds))
        if pictures and "video" not in here
        else None,
        here,
    )
