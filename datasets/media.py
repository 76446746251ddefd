"""Reads sound and pictures from files: soundfile for audio files, PyAV for containers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from datasets.clips import Part
from datasets.faces import Box, FaceFinder, Spread, centre, cut_out

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
_MAX_FILTER_BANK = 10_000_000
_BLOCK_SAMPLES = 1 << 20
_HELD_PACKET_BYTES = 64 * 2**20
"""Of a video's packets, which are held to see its time stamps before it is decoded."""
_SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU"})
_SEEKABLE_SAMPLES = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"})
_MISSING_SECONDS = 0.2
"""Of a part: labels are timed by hand, and a file may end a little before."""
_LOOK_SIDE = 320
"""Pixels of the shorter side of pictures that are kept for the face detector."""
_HELD_BYTES = 96 << 20
"""Of pictures, kept until the face in them is found; a longer clip is decoded a second time."""


class MediaError(ValueError):
    """A file that cannot be decoded, or that holds nothing to decode."""


_threads = 0


def decode_with_threads(count: int) -> None:
    """How many threads one file's pictures are decoded with from now on, in this process; 0: as FFmpeg likes."""
    global _threads
    _threads = count


def read_audio(path: Path, sample_rate_hz: int, part: Part | None = None) -> NDArray[np.int16]:
    """Decodes the sound of a file, mixes it to mono and resamples it.

    Args:
        path: A sound file, or a container with sound.
        sample_rate_hz: Of what is returned.
        part: What of the file is wanted, however long the file is; None for all of it.

    Returns:
        (L,) 16-bit samples at `sample_rate_hz`.

    Raises:
        MediaError: If the file is missing, empty, undecodable, has no sound, or is
            longer than `MAX_CLIP_SECONDS` (a clip is one utterance), or ends before the part does.
    """
    if part is not None and (found := _seek_sound(path, part)) is not None:
        return to_samples(*found, sample_rate_hz)
    blocks: list[NDArray[np.float32]] = []
    samples = source_rate_hz = 0
    for block, source_rate_hz in stream_audio(path, limit_seconds=_longest(part)):
        samples += len(block)
        if part is None:
            _check_length(samples / source_rate_hz)  # a container does not say how long it is
            blocks.append(block)
            continue
        before = samples - len(block)
        first, last = round(part.start_s * source_rate_hz), round(part.end_s * source_rate_hz)
        blocks.append(block[max(0, first - before) : max(0, last - before)])
        if samples >= last:
            break
    else:
        if part is not None and samples:
            _check_end(samples / source_rate_hz, part)
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    return to_samples(waveform, source_rate_hz, sample_rate_hz)


def to_samples(
    waveform: NDArray[np.float32], source_rate_hz: int, sample_rate_hz: int
) -> NDArray[np.int16]:
    """(L,) mono sound as decoded → 16-bit samples at `sample_rate_hz`; raises MediaError."""
    if waveform.size == 0:
        raise MediaError("holds no sound")
    if not np.isfinite(waveform).all():
        raise MediaError("holds non-finite samples")
    if source_rate_hz != sample_rate_hz:
        waveform = _resample(waveform, source_rate_hz, sample_rate_hz)
    return np.asarray(np.clip(np.rint(waveform * 32768.0), -32768, 32767), np.int16)


def stream_audio(
    path: Path, *, limit_seconds: float = math.inf
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Decodes the sound of a file of any length piece by piece.

    Args:
        path: A sound file, or a container with sound.
        limit_seconds: A sound file that says it is longer is refused before it is decoded.

    Yields:
        (L,) the next mono samples, and their rate in Hz.

    Raises:
        MediaError: As `read_audio`; for its length only by `limit_seconds`.
    """
    _check_file(path)
    yield from (
        _stream_audio_file(path, limit_seconds)
        if path.suffix.lower() in AUDIO_SUFFIXES
        else _stream_audio_container(path)
    )


class Taken(NamedTuple):
    """Frames of a video.

    Attributes:
        frames: (V, H, W, 3) RGB frames; (V, H, W, 4) with saliency maps, the map last.
        face: Whether they are of a face; None where none was looked for.
        box: Of the picture, or of its half, what they show, in shares of it; None without a finder.
    """

    frames: NDArray[np.uint8]
    face: bool | None = None
    box: Box | None = None


def read_frames(
    path: Path,
    count: int,
    size: tuple[int, int],
    *,
    saliency: Path | None = None,
    part: Part | None = None,
    rate_hz: float = 0.0,
    faces: FaceFinder | None = None,
) -> NDArray[np.uint8]:
    """The frames of `take_frames`, which see."""
    given = {"saliency": saliency, "part": part, "rate_hz": rate_hz, "faces": faces}
    return take_frames(path, count, size, **given).frames  # type: ignore[arg-type]


def take_frames(
    path: Path,
    count: int,
    size: tuple[int, int],
    *,
    saliency: Path | None = None,
    part: Part | None = None,
    rate_hz: float = 0.0,
    faces: FaceFinder | None = None,
) -> Taken:
    """Decodes a video and takes frames, evenly spread in time.

    Each frame is scaled to cover `size` and its centre is cropped, or the face in it is cut out
    and scaled to `size`. Frames are chosen by their time stamps, so that a variable frame rate
    does no harm; a video with fewer frames than are taken repeats some.

    Args:
        path: A container with pictures.
        count: V, how many frames to take; without meaning where there is a rate.
        size: (H, W) in pixels.
        saliency: A video of saliency maps, grey; they are taken at the frames' own moments.
        part: What of the file is wanted, however long the file is; None for all of it.
        rate_hz: Frames to take of every second instead, one in the middle of every 1/rate.
        faces: What finds the face to cut out; where it finds none, the centre is taken.

    Raises:
        MediaError: As `read_audio`, for the pictures; or maps of another length.
    """

    def moments_of(stamps: NDArray[np.float64]) -> NDArray[np.float64]:
        return _moments(stamps, count, rate_hz, part)[0]

    if faces is None:
        pictures, stamps = _decode_pictures(path, size, part, moments_of)
        moments, seconds = _moments(stamps, count, rate_hz, part)
        _check_part(stamps, part)
        taken = Taken(np.stack([pictures[i] for i in frames_at(stamps, moments)]))
    else:
        stamps, looks, held = _look(path, size, part)
        moments, seconds = _moments(stamps, count, rate_hz, part)
        _check_part(stamps, part)
        found = faces.find(looks, size)
        box = found or centre(looks[0].shape[:2], size)
        rows = frames_at(stamps, moments)
        taken = Taken(_cut_rows(path, size, part, rows, box, held), found is not None, box)
    if saliency is None:
        return taken
    try:
        maps, map_stamps = _decode_pictures(saliency, size, part, lambda _: moments, taken.box)
    except MediaError as error:
        raise MediaError(f"has unusable saliency maps: '{saliency.name}' {error}") from error
    if abs(duration(map_stamps) - seconds) > 0.1 + 0.1 * seconds:
        raise MediaError(
            f"lasts {seconds:.2f} s, its saliency maps '{saliency.name}' {duration(map_stamps):.2f} s"
        )
    shown = np.stack([maps[i] for i in frames_at(map_stamps, moments)])
    grey = np.rint(shown.mean(axis=-1, keepdims=True)).astype(np.uint8)
    return taken._replace(frames=np.concatenate([taken.frames, grey], axis=-1))


def spread(count: int, seconds: float, rate_hz: float = 0.0) -> NDArray[np.float64]:
    """Moments evenly spread over some seconds: `count`, or as many as a rate gives, one or more."""
    if rate_hz:
        count = max(1, round(seconds * rate_hz))
        return np.asarray((np.arange(count) + 0.5) / rate_hz, np.float64)
    return (np.arange(count) + 0.5) / count * seconds


def _moments(
    stamps: NDArray[np.float64], count: int, rate_hz: float, part: Part | None
) -> tuple[NDArray[np.float64], float]:
    """When frames are taken, in seconds after the first; and how long the clip is."""
    seconds = duration(stamps)
    if part is None:
        return spread(count, seconds, rate_hz), seconds
    seconds = part.end_s - part.start_s
    # The first frame may be shown since before the part.
    return part.start_s - stamps[0] + spread(count, seconds, rate_hz), seconds


def _check_part(stamps: NDArray[np.float64], part: Part | None) -> None:
    if part is not None:
        _check_end(float(stamps[0]) + duration(stamps), part)


def _decode_pictures(
    path: Path,
    size: tuple[int, int],
    part: Part | None,
    moments_of: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    box: Box | None = None,
) -> tuple[dict[int, NDArray[np.uint8]], NDArray[np.float64]]:
    """Those frames that are shown at some moments, and the time stamps of all; of a part, of those shown in it.

    All are decoded, but only those are scaled that the packets' time stamps let expect. Where these
    were wrong, the file is decoded again and all are scaled.

    Args:
        path: As `read_frames`.
        size: As `read_frames`.
        part: As `read_frames`.
        moments_of: (frames,) time stamps in seconds → moments in seconds after the first.
        box: What of the picture is cut out; None for its centre.

    Returns:
        Number → (H, W, 3), and (frames,) seconds.
    """
    _longest(part)
    pictures, stamps = _convert_some(path, size, part, moments_of, box)
    if all(int(i) in pictures for i in frames_at(stamps, moments_of(stamps))):
        return pictures, stamps
    return _convert_some(path, size, part, None, box)


def _convert_some(
    path: Path,
    size: tuple[int, int],
    part: Part | None,
    moments_of: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None,
    box: Box | None,
) -> tuple[dict[int, NDArray[np.uint8]], NDArray[np.float64]]:
    """As `_decode_pictures`, but for frames that it did not expect; None for all frames."""
    pictures: dict[int, NDArray[np.uint8]] = {}
    seconds: list[float] = []
    reformatter = VideoReformatter()

    def expected(stamps: NDArray[np.float64]) -> frozenset[float]:
        stamps = stamps[max(0, int(np.sum(stamps <= part.start_s)) - 1) :] if part else stamps
        assert moments_of is not None
        return frozenset(stamps[frames_at(stamps, moments_of(stamps))].round(5).tolist())

    for time, frame, wanted in _stream_frames(path, part, expected if moments_of else None):
        if part is None:
            _check_length(time - seconds[0] if seconds else 0.0)
        elif time <= part.start_s:  # the last one before the part is shown in it
            pictures, seconds = {}, []
        if wanted is None or round(time, 5) in wanted:
            pictures[len(seconds)] = _cut(frame, size, part, box, reformatter)
        seconds.append(time)
    if not seconds:
        raise MediaError("holds no pictures")
    return pictures, np.asarray(seconds)


def _look(
    path: Path, size: tuple[int, int], part: Part | None
) -> tuple[NDArray[np.float64], list[NDArray[np.uint8]], list[av.VideoFrame] | None]:
    """Time stamps, some pictures to look for faces in, and all, if they can be held."""
    half = part.half if part else None
    held: list[av.VideoFrame] | None = []
    room, seconds = _HELD_BYTES, []
    looks: Spread[NDArray[np.uint8]] = Spread()
    for time, frame in _shown(path, part):
        seconds.append(time)
        looks.offer(lambda frame=frame: small_picture(frame, half))  # type: ignore[misc]
        if held is not None:
            held.append(working_frame(frame, size, half))
            room -= sum(plane.buffer_size for plane in held[-1].planes)
            held = held if room > 0 else None
    if not seconds:
        raise MediaError("holds no pictures")
    return np.asarray(seconds), looks.taken(), held


def _cut_rows(
    path: Path,
    size: tuple[int, int],
    part: Part | None,
    rows: NDArray[np.int64],
    box: Box,
    held: list[av.VideoFrame] | None,
) -> NDArray[np.uint8]:
    """(V, H, W, 3): a box of some frames of a video."""
    wanted, half = set(rows.tolist()), part.half if part else None
    frames = (frame for _, frame in _shown(path, part)) if held is None else iter(held)
    cut = {}
    for number, frame in enumerate(frames):
        if number in wanted:
            # A frame that was held is in working size, and stays as it is.
            cut[number] = cut_face(working_frame(frame, size, half), half, box, size)
    try:
        return np.stack([cut[row] for row in rows.tolist()])
    except KeyError:
        raise MediaError("cannot be decoded twice to the same frames") from None


def _shown(path: Path, part: Part | None) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames of a clip and their time stamps; of a part, those shown in it."""
    _longest(part)
    first: float | None = None
    before: tuple[float, av.VideoFrame] | None = None
    for time, frame, _ in _stream_frames(path, part):
        first = time if first is None else first
        if part is None:
            _check_length(time - first)
        elif time <= part.start_s:
            before = (time, frame)
            continue
        if before is not None:  # the last one before the part is shown in it
            yield before
            before = None
        yield time, frame
    if before is not None:
        yield before


def stream_pictures(path: Path, size: tuple[int, int]) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Decodes the pictures of a file of any length one by one.

    Args:
        path: A container with pictures.
        size: (H, W) in pixels.

    Yields:
        The time stamp in seconds, and the picture (H, W, 3), scaled and cropped to `size`.

    Raises:
        MediaError: As `take_frames`, but for length.
    """
    reformatter = VideoReformatter()
    for time, frame, _ in _stream_frames(path):
        yield time, _scale_and_crop(frame, size, None, reformatter)


def stream_frames_for_faces(
    path: Path, size: tuple[int, int], look_every_s: float
) -> Iterator[tuple[float, av.VideoFrame, NDArray[np.uint8] | None]]:
    """As `stream_pictures`, for faces that are found later.

    Yields:
        The time stamp in seconds, the frame for `cut_face`, and every so many seconds the
        picture (H, W, 3) to look for faces in.
    """
    last = -1
    origin = None
    for time, frame, _ in _stream_frames(path):
        origin = time if origin is None else origin
        number = int((time - origin) / look_every_s)
        look = small_picture(frame) if number != last else None
        last = number
        yield time, working_frame(frame, size), look


Expect = Callable[[NDArray[np.float64]], frozenset[float]]
"""(frames,) time stamps that packets announce → those of the frames that will be wanted, to 5 digits."""


def _stream_frames(
    path: Path, part: Part | None = None, expect: Expect | None = None
) -> Iterator[tuple[float, av.VideoFrame, frozenset[float] | None]]:
    """Time stamp, frame, and what `expect` said; None where the packets are too many to be looked at first.

    Of a part, what is shown then and some before it; time stamps then count from the file's beginning.
    """
    _check_file(path)
    with _decoding(path) as container:
        stream = _first(container.streams.video, "pictures")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _threads
        origin = 0.0
        if part is not None:
            origin = float((stream.start_time or 0) * (stream.time_base or 0))
            # To the key frame before it; decoding an hour for each of its clips would take days.
            container.seek(int((part.start_s + origin) * av.time_base), backward=True)
        packets, wanted = container.demux(stream), None
        if expect is not None:
            held, stamps = _look_ahead(packets, origin, part.end_s if part else math.inf)
            packets = chain(held, packets)
            wanted = expect(stamps) if stamps is not None else None
        frames = (frame for packet in packets for frame in packet.decode())
        for number, frame in enumerate(frames):
            time = (frame.time if frame.time is not None else float(number)) - origin
            if part is not None and time >= part.end_s:
                return
            yield time, frame, wanted


def _look_ahead(
    packets: Iterator[av.Packet], origin: float, end_s: float
) -> tuple[list[av.Packet], NDArray[np.float64] | None]:
    """The packets up to a moment, and the sorted time stamps that they announce before it; None: unknown."""
    held: list[av.Packet] = []
    stamps: list[float] = []
    size = 0
    for packet in packets:
        held.append(packet)
        size += packet.size
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None and packet.size and not packet.is_discard:
            stamps.append(float(stamp * packet.time_base) - origin)
        if size > _HELD_PACKET_BYTES:
            return held, None
        if packet.dts is not None and float(packet.dts * packet.time_base) - origin >= end_s:
            break  # whatever is decoded later is shown later
    shown = np.sort(np.asarray([stamp for stamp in stamps if stamp < end_s]))
    return held, shown if len(shown) else None


def duration(stamps: NDArray[np.float64]) -> float:
    """From the first frame to the end of the last, which lasts as long as the one before."""
    last_step = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0.0
    return float(stamps[-1] - stamps[0] + last_step)


def frames_at(stamps: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frames that are shown some seconds after the first."""
    shown = np.searchsorted(stamps, stamps[0] + moments, side="right") - 1
    return np.asarray(np.clip(shown, 0, len(stamps) - 1), np.int64)


def _check_file(path: Path) -> None:
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


def _longest(part: Part | None) -> float:
    """Of a file, in seconds; raises MediaError for a part that is no clip."""
    if part is None:
        return MAX_CLIP_SECONDS
    _check_length(part.end_s - part.start_s)
    return math.inf


def _check_end(seconds: float, part: Part) -> None:
    if seconds < part.end_s - _MISSING_SECONDS:
        raise MediaError(f"lasts {seconds:.2f} s, its part ends at {part.end_s:.2f} s")


def _check_length(seconds: float) -> None:
    if seconds > MAX_CLIP_SECONDS:
        raise MediaError(f"is longer than {MAX_CLIP_SECONDS:.0f} s; cut it into utterances")


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


def _seek_sound(path: Path, part: Part) -> tuple[NDArray[np.float32], int] | None:
    """(L,) a part of a sound file, and its rate, without what lies before it; None where seeking may not be exact."""
    _check_file(path)
    _longest(part)
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        return None
    with _reading(path) as file:
        exact = file.format in _SEEKABLE and file.subtype in _SEEKABLE_SAMPLES and file.seekable()
        if not (exact and 0 < file.frames < 2**40):  # a streamed FLAC does not say how long it is
            return None
        _check_riff(path)
        rate_hz = int(file.samplerate)
        first, last = round(part.start_s * rate_hz), round(part.end_s * rate_hz)
        if last > file.frames:
            _check_end(file.frames / rate_hz, part)
        file.seek(min(first, file.frames))
        samples = file.read(max(0, last - first), dtype="float32", always_2d=True)
        if len(samples) < min(last, file.frames) - first:
            raise MediaError("is truncated")
        return samples.mean(axis=1), rate_hz


def _stream_audio_file(
    path: Path, limit_seconds: float
) -> Iterator[tuple[NDArray[np.float32], int]]:
    with _reading(path) as file:
        if file.frames > limit_seconds * file.samplerate:
            _check_length(file.frames / file.samplerate)
        _check_riff(path)
        while len(samples := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            yield samples.mean(axis=1), int(file.samplerate)


@contextmanager
def _reading(path: Path) -> Iterator[soundfile.SoundFile]:
    """Opens a sound file; libsndfile's errors become MediaError."""
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MediaError(f"cannot be decoded: {error}") from error


def _stream_audio_container(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    with _decoding(path) as container:
        stream = _first(container.streams.audio, "sound")
        rate_hz = int(stream.codec_context.sample_rate or 0)
        if rate_hz <= 0:
            raise MediaError("cannot be decoded: its sound has no sample rate")
        # The mean of the channels is taken here: FFmpeg's own mix to mono is their sum / √2.
        resampler = av.AudioResampler(format="fltp", rate=rate_hz)
        for frame in chain(container.decode(stream), [None]):
            for part in resampler.resample(frame):
                yield part.to_ndarray().mean(axis=0), rate_hz


def _first(streams: Sequence[av.stream.Stream], what: str) -> av.stream.Stream:
    """The stream that is taken; raises MediaError if there is none, or FFmpeg does not know what it is."""
    if not streams:
        raise MediaError(f"has no {what}")
    if streams[0].codec_context is None:
        raise MediaError(f"cannot be decoded: it has {what} of an unknown kind")
    return streams[0]


def _resample(
    waveform: NDArray[np.float32], source_rate_hz: int, sample_rate_hz: int
) -> NDArray[np.float32]:
    shared = math.gcd(source_rate_hz, sample_rate_hz)
    up, down = sample_rate_hz // shared, source_rate_hz // shared
    # torchaudio's filter bank has up × down entries: 12 GB for one clip at 44 101 Hz.
    if up * down > _MAX_FILTER_BANK:
        # Imported here, as torch is: a process that resamples nothing starts in a tenth of the time.
        from scipy.signal import resample_poly

        return np.asarray(resample_poly(waveform, up, down), np.float32)
    return _torch_resampler()(waveform, source_rate_hz, sample_rate_hz)


@cache
def _torch_resampler() -> Callable[[NDArray[np.float32], int, int], NDArray[np.float32]]:
    import torch
    import torchaudio

    def resample(waveform: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
        threads = torch.get_num_threads()
        if _threads:  # threads that wait for each other cost more than so short a sum
            torch.set_num_threads(_threads)
        try:
            resampled = torchaudio.functional.resample(torch.from_numpy(waveform), source, target)
        finally:
            torch.set_num_threads(threads)
        return np.asarray(resampled.numpy(), np.float32)

    return resample


@contextmanager
def _decoding(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a container; FFmpeg's errors become MediaError."""
    _check_riff(path)  # AVI
    _check_boxes(path)
    _check_segment(path)
    try:
        with av.open(str(path), options={"format_whitelist": _DEMUXERS}) as container:
            yield container
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"cannot be decoded: {error}") from error


def _scale_and_crop(
    frame: av.VideoFrame, size: tuple[int, int], half: str | None, reformatter: VideoReformatter
) -> NDArray[np.uint8]:
    """(H, W, 3): the frame, or its left or right half, scaled to cover `size`; the centre of it."""
    height, width = size
    shown = frame.width / (2 if half else 1)
    scale = max(height / frame.height, width / shown)
    scaled_height = max(height, round(frame.height * scale))
    scaled_width = max(width, round(shown * scale))
    whole_width = scaled_width * (2 if half else 1)
    image = reformatter.reformat(
        frame, width=whole_width, height=scaled_height, format="rgb24"
    ).to_ndarray()
    top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
    if half == "right":
        left += scaled_width
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def middle_picture(path: Path, part: Part | None = None) -> NDArray[np.uint8]:
    """(H, W, 3): the whole picture in the middle of a video or of its part, for people to look at."""
    some: Spread[av.VideoFrame] = Spread(1)
    for _, frame in _shown(path, part):
        some.offer(lambda frame=frame: frame)  # type: ignore[misc]
    if not some.taken():
        raise MediaError("holds no pictures")
    picture: NDArray[np.uint8] = some.taken()[0].to_ndarray(format="rgb24")
    return picture


def small_picture(frame: av.VideoFrame, half: str | None = None) -> NDArray[np.uint8]:
    """(H, W, 3): the frame, or its half, as faces are looked for in it: 320 pixels or less."""
    return _picture(_shrunk(frame, _LOOK_SIDE, half, "rgb24"), half)


def working_frame(
    frame: av.VideoFrame, size: tuple[int, int], half: str | None = None
) -> av.VideoFrame:
    """The whole frame as a face is cut out of it: its shorter side 4 times the crop's or less."""
    name = frame.format.name
    return _shrunk(
        frame, max(360, 4 * max(size)), half, name if name.startswith("yuv") else "rgb24"
    )


def cut_face(
    frame: av.VideoFrame, half: str | None, box: Box, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """(H, W, 3): a box of a working frame, or of its half, scaled to `size`."""
    return cut_out(_picture(frame, half), box, size)


def _cut(
    frame: av.VideoFrame,
    size: tuple[int, int],
    part: Part | None,
    box: Box | None,
    reformatter: VideoReformatter,
) -> NDArray[np.uint8]:
    half = part.half if part else None
    if box is None:
        return _scale_and_crop(frame, size, half, reformatter)
    return cut_face(working_frame(frame, size, half), half, box, size)


def _shrunk(frame: av.VideoFrame, side: int, half: str | None, pixels: str) -> av.VideoFrame:
    """The whole frame; its shorter side, or its half's, has `side` pixels or fewer."""
    scale = min(1.0, side / min(frame.height, frame.width / (2 if half else 1)))
    if scale == 1.0:
        return frame if frame.format.name == pixels else frame.reformat(format=pixels)
    width, height = (
        max(2, 2 * round(length * scale / 2)) for length in (frame.width, frame.height)
    )
    return frame.reformat(width=width, height=height, format=pixels)


def _picture(frame: av.VideoFrame, half: str | None) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a frame, or of its left or right half."""
    image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    middle = image.shape[1] // 2
    return image[:, middle:] if half == "right" else image[:, :middle] if half else image
