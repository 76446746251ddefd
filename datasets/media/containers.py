"""Opens files with sound or pictures: soundfile for sound files, PyAV for containers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import soundfile

from datasets.clips import Part

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".aiff", ".aif", ".au"})
CONTAINER_SUFFIXES = frozenset(
    {
        ".mp4",
        ".mkv",
        ".mpg",
        ".mpeg",
        ".avi",
        ".mov",
        ".webm",
        ".flv",
        ".m4v",
        ".m4a",
        ".3gp",
        ".wmv",
    }
)
MAX_CLIP_SECONDS = 600.0
# FFmpeg also draws text files as pictures, and follows playlists to other files.
_DEMUXERS = (
    "mov,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,dv,mxf,rm,"
    "wav,w64,flac,mp3,ogg,aac,ac3,aiff,au,caf,amr"
)
_MISSING_SECONDS = 0.2
"""Seconds that a part may lack: labels are timed by hand, and a file may end a little before."""


class MediaError(ValueError):
    """A file that cannot be decoded, or that holds nothing to decode."""


_threads = 0


def decode_with_threads(count: int) -> None:
    """How many threads one file's pictures are decoded with from now on, in this process; 0: as FFmpeg likes."""
    global _threads
    _threads = count


def decoding_threads() -> int:
    """Return the number set by `decode_with_threads`; 0 leaves it to FFmpeg."""
    return _threads


@dataclass(frozen=True)
class Media:
    """A file that is open, or a part of it; see `open_media`.

    Attributes:
        path: The file.
        part: What of it is decoded; None for all of it.
        limit_seconds: Length that is refused before it is decoded.
    """

    path: Path
    part: Part | None
    limit_seconds: float
    _opened: ExitStack

    @property
    def is_sound_file(self) -> bool:
        """Whether soundfile opens it, and not PyAV."""
        return self.path.suffix.lower() in AUDIO_SUFFIXES

    def sound_file(self) -> soundfile.SoundFile:
        """Open a sound file; raises MediaError if it is too long or truncated."""
        file = self._opened.enter_context(soundfile.SoundFile(self.path))
        self.check_length(file.frames / file.samplerate)
        _check_riff(self.path)
        return file

    def stream(self, kind: Literal["sound", "pictures"]) -> av.stream.Stream:
        """Open a container; raises MediaError if it is truncated, or has no such stream."""
        _check_riff(self.path)  # AVI
        _check_boxes(self.path)
        _check_segment(self.path)
        options = {"format_whitelist": _DEMUXERS}
        container = self._opened.enter_context(av.open(str(self.path), options=options))
        streams = container.streams.audio if kind == "sound" else container.streams.video
        if not streams:
            raise MediaError(f"has no {kind}")
        if streams[0].codec_context is None:
            raise MediaError(f"cannot be decoded: it has {kind} of an unknown kind")
        return streams[0]

    def check_length(self, seconds: float) -> None:
        """Raises MediaError for what is longer than a clip may be."""
        _check_length(seconds, self.limit_seconds)


@contextmanager
def open_media(
    path: Path, part: Part | None = None, *, any_length: bool = False
) -> Iterator[Media]:
    """Open a file to decode its sound or its pictures; errors of the libraries become MediaError.

    Args:
        path: A sound file, or a container.
        part: What of the file is decoded, however long the file is; None for all of it.
        any_length: Whether the file may be longer than a clip.

    Raises:
        MediaError: The file is missing, empty, undecodable or truncated, it or its part is longer
            than a clip may be, or it has not the stream that is read.
    """
    _check_file(path)
    with ExitStack() as opened:
        if part is not None:
            _check_length(part.end_s - part.start_s, MAX_CLIP_SECONDS)
        limit_seconds = math.inf if any_length or part is not None else MAX_CLIP_SECONDS
        try:
            yield Media(path, part, limit_seconds, opened)
        except MediaError:
            raise
        except (av.FFmpegError, soundfile.LibsndfileError, RuntimeError, ValueError) as error:
            raise MediaError(f"cannot be decoded: {error}") from error


def check_end(seconds: float, part: Part | None) -> None:
    """Raises MediaError for a file that ends well before its part does."""
    if part is not None and seconds < part.end_s - _MISSING_SECONDS:
        raise MediaError(f"lasts {seconds:.2f} s, its part ends at {part.end_s:.2f} s")


def _check_length(seconds: float, limit_seconds: float) -> None:
    if seconds > limit_seconds:
        raise MediaError(f"is longer than {MAX_CLIP_SECONDS:.0f} s; cut it into utterances")


def _check_file(path: Path) -> None:
    """Raises MediaError unless it is a file that can be read, and not empty."""
    try:
        if not path.is_file():
            raise MediaError("no such file")
        with path.open("rb") as file:
            if not file.read(1):
                raise MediaError("is empty")
    except OSError as error:
        raise MediaError(f"cannot be read: {error.strerror or error}") from error
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise MediaError("has a name that is not UTF-8; rename it") from None


def _check_riff(path: Path) -> None:
    """A WAV or AVI that is shorter than it says; what is there would be read as the whole."""
    with path.open("rb") as file:
        header = file.read(8)
    promised = int.from_bytes(header[4:8], "little")
    # Streamed files promise 0, or all that 32 bits can say.
    if header[:4] == b"RIFF" and 0 < promised < 0xFFFFFF00:
        missing = promised + 8 - path.stat().st_size
        if missing > 1:  # some writers count a padding byte that they do not write
            raise MediaError(f"is truncated: {missing} bytes are missing")


def _check_segment(path: Path) -> None:
    """A Matroska or WebM file that is shorter than it says."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return
    position, header = _ebml_size(head, 4)
    position += header or 0
    if head[position : position + 4] != b"\x18\x53\x80\x67"[: len(head) - position]:
        return
    position, promised = _ebml_size(head, position + 4)
    missing = position + (promised or 0) - path.stat().st_size
    if promised is not None and missing > 0:
        raise MediaError(f"is truncated: {missing} bytes are missing")


def _ebml_size(head: bytes, position: int) -> tuple[int, int | None]:
    """Where the element begins whose size stands here, and the size; None if it was streamed."""
    width = 9 - head[position].bit_length() if position < len(head) else 9
    if position + width > len(head):
        raise MediaError("is truncated")
    value = int.from_bytes(head[position : position + width], "big") & ~(1 << 7 * width)
    return position + width, None if value == (1 << 7 * width) - 1 else value


def _check_boxes(path: Path) -> None:
    """An MP4 or MOV that is shorter than it says; FFmpeg would decode what is there."""
    size, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if position == 0 and kind != b"ftyp":
                return
            if length == 1:  # too long for 32 bits
                length = int.from_bytes(header[8:], "big")
            missing = position + length - size
            if kind in (b"mdat", b"moov", b"moof") and missing > 0:
                raise MediaError(f"is truncated: {missing} bytes are missing")
            if length < 8:  # it reaches to the end
                return
            position += length
