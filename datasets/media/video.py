"""Reads pictures from containers: frames evenly spread in time, of the centre or of the face."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from datasets.clips import Part
from datasets.media.containers import MediaError, check_end, decoding_threads, open_media
from datasets.media.faces import Box, FaceFinder, Spread, centre, cut_out

_HELD_PACKET_BYTES = 64 * 2**20
"""Most bytes of a video's packets, which are held to see its time stamps before it is decoded."""
_LOOK_SIDE = 320
"""Pixels of the shorter side of pictures that are kept for the face detector."""
_HELD_BYTES = 96 << 20
"""Most bytes of frames kept until the face in them is found; a longer clip is decoded a second time."""


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
        check_end(float(stamps[0]) + duration(stamps), part)
        taken = Taken(np.stack([pictures[i] for i in frames_at(stamps, moments)]))
    else:
        stamps, looks, held = _look(path, size, part)
        moments, seconds = _moments(stamps, count, rate_hz, part)
        check_end(float(stamps[0]) + duration(stamps), part)
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
    """Decode like `_decode_pictures`, but for frames that it did not expect; None for all frames."""
    pictures: dict[int, NDArray[np.uint8]] = {}
    seconds: list[float] = []
    reformatter = VideoReformatter()

    def expected(stamps: NDArray[np.float64]) -> frozenset[float]:
        stamps = stamps[max(0, int(np.sum(stamps <= part.start_s)) - 1) :] if part else stamps
        assert moments_of is not None
        return frozenset(stamps[frames_at(stamps, moments_of(stamps))].round(5).tolist())

    for time, frame, wanted in _stream_frames(path, part, expected if moments_of else None):
        if part is not None and time <= part.start_s:  # the last one before the part is shown in it
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
    before: tuple[float, av.VideoFrame] | None = None
    for time, frame, _ in _stream_frames(path, part):
        if part is not None and time <= part.start_s:
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
    for time, frame, _ in _stream_frames(path, any_length=True):
        yield time, _scale_and_crop(frame, size, None, reformatter)


def stream_frames_for_faces(
    path: Path, size: tuple[int, int], look_every_s: float
) -> Iterator[tuple[float, av.VideoFrame, NDArray[np.uint8] | None]]:
    """Yield frames like `stream_pictures`, for faces that are found later.

    Yields:
        The time stamp in seconds, the frame for `cut_face`, and every so many seconds the
        picture (H, W, 3) to look for faces in.
    """
    last = -1
    origin = None
    for time, frame, _ in _stream_frames(path, any_length=True):
        origin = time if origin is None else origin
        number = int((time - origin) / look_every_s)
        look = small_picture(frame) if number != last else None
        last = number
        yield time, working_frame(frame, size), look


Expect = Callable[[NDArray[np.float64]], frozenset[float]]
"""(frames,) time stamps that packets announce → those of the frames that will be wanted, to 5 digits."""


def _stream_frames(
    path: Path,
    part: Part | None = None,
    expect: Expect | None = None,
    *,
    any_length: bool = False,
) -> Iterator[tuple[float, av.VideoFrame, frozenset[float] | None]]:
    """Time stamp, frame, and what `expect` said; None where the packets are too many to be looked at first.

    Of a part, what is shown then and some before it; time stamps then count from the file's beginning.
    """
    with open_media(path, part, any_length=any_length) as media:
        stream = media.stream("pictures")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = decoding_threads()
        origin = 0.0
        if part is not None:
            origin = float((stream.start_time or 0) * (stream.time_base or 0))
            # To the key frame before it; decoding an hour for each of its clips would take days.
            stream.container.seek(int((part.start_s + origin) * av.time_base), backward=True)
        packets, wanted = stream.container.demux(stream), None
        if expect is not None:
            held, stamps = _look_ahead(packets, origin, part.end_s if part else math.inf)
            packets = chain(held, packets)
            wanted = expect(stamps) if stamps is not None else None
        frames = (frame for packet in packets for frame in packet.decode())
        first: float | None = None
        for number, frame in enumerate(frames):
            time = (frame.time if frame.time is not None else float(number)) - origin
            if part is not None and time >= part.end_s:
                return
            first = time if first is None else first
            media.check_length(time - first)
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
