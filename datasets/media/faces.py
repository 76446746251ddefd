"""Finds the face that a clip is cropped to: one box a clip, from a few of its pictures.

Detections that overlap from one picture to the next are one face. The face that is there most,
weighed by its size, is taken, if a quarter of the pictures show it; its box is the median of
its detections, which a few false ones do not move, widened by a margin.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from datasets.clips import DataError
from datasets.media.crop import Crop

try:
    import cv2
except ImportError:  # an export whose frames show no face is read without
    cv2 = None  # type: ignore[assignment]

Picture = NDArray[np.uint8]
T = TypeVar("T")

LOOKS = 7
"""Pictures of a clip that are searched."""
_LEAST_SHARE = 0.25
"""Share of the frames that must show a face."""
_LEAST_OVERLAP = 0.3
"""Intersection over union of a face's detections in two pictures that follow each other."""


class Box(NamedTuple):
    """A part of a picture; in pixels, or in shares of its width and height."""

    left: float
    top: float
    width: float
    height: float


class FaceDetector(Protocol):
    """Finds faces in a picture.

    Attributes:
        short_side: To which pictures are scaled for it, in pixels; smaller ones stay.
    """

    short_side: int

    def detect(self, picture: Picture) -> list[Box]:
        """(H, W, 3) RGB → boxes in its pixels, the largest first."""
        ...


class CascadeDetector:
    """The Haar cascade of frontal faces that OpenCV 4 carries (Lienhart & Maydt, 2002).

    It finds faces of a quarter of the picture's shorter side and more; where there is none, of
    a tenth and more, which takes several times as long.

    Raises:
        DataError: If this OpenCV carries none.
    """

    short_side = 200
    _FILE = "haarcascade_frontalface_alt2.xml"
    _SHARES = (4, 10)

    def __init__(self) -> None:
        folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
        cascades = getattr(cv2, "CascadeClassifier", None)  # 5.x has neither
        self._cascade = cascades(f"{folder}{self._FILE}") if cascades and folder else None
        if self._cascade is None or self._cascade.empty():
            raise DataError(
                f"OpenCV {cv2.__version__} carries no '{self._FILE}'. Install "
                "opencv-python-headless 4.x, or name a YuNet ONNX (--face-model)."
            )

    def detect(self, picture: Picture) -> list[Box]:
        """See `FaceDetector`."""
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        for share in self._SHARES:
            least = max(20, min(grey.shape) // share)
            found = self._cascade.detectMultiScale(  # type: ignore[union-attr]
                grey, scaleFactor=1.2, minNeighbors=3, minSize=(least, least)
            )
            if len(found):
                break
        return _largest_first(Box(*map(float, box)) for box in found)


class YunetDetector:
    """YuNet (Wu et al., 2023), a small network, by OpenCV's own interface to it.

    Args:
        content: Of its ONNX file.

    Raises:
        DataError: If it is none.
    """

    short_side = 320
    _LEAST_SCORE, _LEAST_NMS, _MOST = 0.6, 0.3, 100

    def __init__(self, content: bytes) -> None:
        buffer, nothing = np.frombuffer(content, np.uint8), np.zeros(0, np.uint8)
        size = (self.short_side, self.short_side)
        options = (self._LEAST_SCORE, self._LEAST_NMS, self._MOST)
        try:
            self._network = cv2.FaceDetectorYN.create("onnx", buffer, nothing, size, *options)
            self.detect(np.zeros((*size, 3), np.uint8))
        except cv2.error as error:
            reason = " ".join(str(error).rpartition("error: ")[2].split())[:120]
            raise DataError(
                f"is no YuNet that OpenCV {cv2.__version__} can run: {reason}"
            ) from None

    def detect(self, picture: Picture) -> list[Box]:
        """See `FaceDetector`."""
        height, width = picture.shape[:2]
        self._network.setInputSize((width, height))
        found = self._network.detect(np.ascontiguousarray(picture[..., ::-1]))[1]
        rows = [] if found is None else found[np.isfinite(found).all(axis=1)]
        return _largest_first(Box(*map(float, row[:4])) for row in rows)


def _largest_first(boxes: Iterable[Box]) -> list[Box]:
    # The cascade's threads return them in any order.
    real = [box for box in boxes if box.width > 0 and box.height > 0]
    return sorted(real, key=lambda box: (-box.width * box.height, box))


def crop_by(kind: str, margin: float, model: Path | None) -> Crop:
    """The crop that was asked for; raises DataError, also where the model cannot be read."""
    if kind == "face" and model:
        digest = hashlib.sha256(_read_model(model)).hexdigest()
        crop = Crop(kind="face", margin=margin, detector="yunet", model_sha256=digest)
        open_finder(crop, model)
        return crop
    if model:
        raise DataError("--face-model goes with --crop face.")
    if kind not in ("centre", "face"):
        raise DataError(f"Unknown crop '{kind}'. Known: centre, face.")
    return Crop(kind="face", margin=margin) if kind == "face" else Crop()


@lru_cache(maxsize=4)
def open_finder(crop: Crop, model: Path | None = None) -> FaceFinder | None:
    """Return the finder of the faces for a crop; None for a crop that looks for none.

    Args:
        crop: As an index or an export says.
        model: YuNet's ONNX file, where it is YuNet's.

    Raises:
        DataError: No such file, or it is not the one that the crop was made with, or none that
            OpenCV can run.
    """
    if not crop.of_face:
        return None
    if cv2 is None:
        raise DataError("To find faces, opencv-python-headless 4.x is needed. Install it.")
    if crop.detector == "haar":
        return FaceFinder(CascadeDetector(), crop.margin)
    if model is None:
        raise DataError(
            f"Faces are found by the YuNet whose ONNX has the SHA-256 {crop.model_sha256}. "
            "Name that file (--face-model)."
        )
    content = _read_model(model)
    if (found := hashlib.sha256(content).hexdigest()) != crop.model_sha256:
        raise DataError(
            f"'{model}' is another face model than the one that was used: its SHA-256 is {found}, "
            f"not {crop.model_sha256} (--face-model)."
        )
    try:
        return FaceFinder(YunetDetector(content), crop.margin)
    except DataError as error:
        raise DataError(f"'{model}' {error} (--face-model)") from error


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"Cannot read the face model '{path}': {error.strerror or error} (--face-model)."
        ) from error


class FaceFinder:
    """One box for the pictures of a clip.

    Args:
        detector: Of faces in one picture.
        margin: Added on every side of the face, as a share of its size.
    """

    def __init__(self, detector: FaceDetector, margin: float) -> None:
        self.detector, self.margin = detector, margin

    def find(self, pictures: Sequence[Picture], size: tuple[int, int]) -> Box | None:
        """Where the face is in pictures of one scene.

        Args:
            pictures: (H, W, 3) RGB each, in order.
            size: (H, W) of the frames; the box has their aspect.

        Returns:
            In shares of the picture; None if no face is there.
        """
        height, width = pictures[0].shape[:2]
        return self.choose([self.look(picture) for picture in pictures], (height, width), size)

    def look(self, picture: Picture) -> list[Box]:
        """(H, W, 3) RGB → the faces, the largest first, in its pixels."""
        scale = self.detector.short_side / min(picture.shape[:2])
        if scale >= 1:
            return self.detector.detect(picture)
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        across, down = picture.shape[1] / small.shape[1], picture.shape[0] / small.shape[0]
        boxes = self.detector.detect(small)
        return [
            Box(b.left * across, b.top * down, b.width * across, b.height * down) for b in boxes
        ]

    def choose(
        self, seen: Sequence[Sequence[Box]], picture: tuple[int, int], size: tuple[int, int]
    ) -> Box | None:
        """Choose like `find`, among the faces that `look` saw in frames of (H, W) pixels."""
        face = steadiest(seen)
        return self.around(face, picture, size) if face else None

    def around(self, face: Box, picture: tuple[int, int], size: tuple[int, int]) -> Box:
        """A face's box with its margin, in the frames' aspect, inside the picture, in its shares."""
        side = max(face.width, face.height) * (1 + 2 * self.margin)
        middle = (face.left + face.width / 2, face.top + face.height / 2)
        return fitting(middle, side, picture, size)


def fitting(
    middle: tuple[float, float], side: float, picture: tuple[int, int], size: tuple[int, int]
) -> Box:
    """The smallest box of a frame's aspect around a square, moved and shrunk into the picture.

    Args:
        middle: x and y of the square, in pixels.
        side: Of the square, in pixels.
        picture: (H, W) of the picture.
        size: (H, W) of the frame.

    Returns:
        In shares of the picture.
    """
    (rows, columns), (height, width) = picture, size
    scale = min(side / min(height, width), rows / height, columns / width)
    height_px, width_px = height * scale, width * scale
    left = min(max(0.0, middle[0] - width_px / 2), columns - width_px)
    top = min(max(0.0, middle[1] - height_px / 2), rows - height_px)
    return Box(left / columns, top / rows, width_px / columns, height_px / rows)


def centre(picture: tuple[int, int], size: tuple[int, int]) -> Box:
    """The largest box of a frame's aspect, in the middle of a picture, in its shares."""
    rows, columns = picture
    return fitting((columns / 2, rows / 2), float(rows + columns), picture, size)


def steadiest(seen: Sequence[Sequence[Box]]) -> Box | None:
    """The face that most of some pictures show, weighed by its size: the median of its boxes."""
    faces: list[list[Box]] = []
    for boxes in seen:
        grown: set[int] = set()
        for box in boxes:
            near = [(_overlap(face[-1], box), n) for n, face in enumerate(faces) if n not in grown]
            overlap, nearest = max(near, default=(0.0, -1))
            if overlap < _LEAST_OVERLAP:
                nearest = len(faces)
                faces.append([])
            faces[nearest].append(box)
            grown.add(nearest)
    needed = math.ceil(_LEAST_SHARE * len(seen))
    able = [np.asarray(face) for face in faces if len(face) >= needed]
    if not able:
        return None
    face = max(able, key=lambda boxes: len(boxes) * float(np.median(boxes[:, 2])))
    width, height = np.median(face[:, 2:], axis=0)
    x, y = np.median(face[:, :2] + face[:, 2:] / 2, axis=0)
    return Box(float(x - width / 2), float(y - height / 2), float(width), float(height))


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
    down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    shared = max(0.0, across) * max(0.0, down)
    return shared / (one.width * one.height + other.width * other.height - shared)


def cut_out(picture: Picture, box: Box, size: tuple[int, int]) -> Picture:
    """(H, W, 3): a box of a picture, in its shares, scaled to `size`."""
    rows, columns = picture.shape[:2]
    width, height = max(1, round(box.width * columns)), max(1, round(box.height * rows))
    left = min(round(box.left * columns), columns - width)
    top = min(round(box.top * rows), rows - height)
    part = np.ascontiguousarray(picture[top : top + height, left : left + width])
    shrinks = height >= size[0] and width >= size[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC  # the mean over what a pixel covers
    scaled: Picture = cv2.resize(part, (size[1], size[0]), interpolation=how)
    return scaled


class Spread(Generic[T]):
    """A few items of a stream of unknown length, evenly spread over it.

    Every item is kept at first, then every second, every fourth …, so that there are never
    more than twice as many as wanted.
    """

    def __init__(self, wanted: int = LOOKS) -> None:
        self._wanted, self._every, self._count = wanted, 1, 0
        self._kept: list[T] = []

    def offer(self, make: Callable[[], T]) -> None:
        """Looks at the next item; it is made only if it is kept."""
        if len(self._kept) == 2 * self._wanted and self._count % self._every == 0:
            del self._kept[1::2]
            self._every *= 2
        if self._count % self._every == 0:
            self._kept.append(make())
        self._count += 1

    def taken(self) -> list[T]:
        """Those wanted, in order; all, if there were fewer."""
        if len(self._kept) <= self._wanted:
            return list(self._kept)
        places = (np.arange(self._wanted) + 0.5) / self._wanted * len(self._kept)
        return [self._kept[int(place)] for place in places]
