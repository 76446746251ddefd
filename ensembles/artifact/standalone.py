"""Predicts files with the exported ensemble in this folder: `python -I predict.py FILE…`.

Needs onnxruntime, numpy, soundfile and av, and nothing else; where pictures are cropped to faces,
opencv-python-headless 4.x too. Each FILE is one utterance, wav, flac, mp3, mp4, mkv …; features are
not read. `ensemble.json` says what is computed; the files that it lists are checked against their
checksums first, and nothing is unpickled.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this folder: nothing beside this file is code
import argparse
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import onnxruntime
import soundfile
from numpy.typing import NDArray

Array = NDArray[Any]

_SOUND = {".wav", ".flac", ".mp3", ".ogg", ".aiff", ".aif", ".au"}
_DEMUXERS = (
    "mov,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,dv,mxf,rm,"
    "wav,w64,flac,mp3,ogg,aac,ac3,aiff,au,caf,amr"
)
_MAX_SECONDS, _SILENCE = 600.0, 1e-3
_MAX_FILTER_BANK = 10_000_000
_ELSEWHERE = re.compile(rb"(\x0a|\x8a\x80*\x00)(\x08|\x88\x80*\x00)location")
"""A tensor that lies in another file."""
_LOOKS, _LEAST_SHARE, _LEAST_OVERLAP, _LOOK_SIDE = 7, 0.25, 0.3, 320
"""Pictures that are searched for a face, and the rules by which one is chosen, as in training."""


class Failed(Exception):
    """Why a file or the folder cannot be used."""


class Answer(NamedTuple):
    """Class → probability; who took part; inputs that were missing, and why."""

    probabilities: dict[str, float]
    experts: list[str]
    notes: list[str]


class Ensemble:
    """The folder, read and checked.

    Args:
        folder: Where `ensemble.json` lies.
        verify: The SHA-256 that it must have.
    """

    def __init__(self, folder: Path, verify: str | None = None) -> None:
        path = folder / "ensemble.json"
        if not path.is_file():
            raise Failed(f"No ensemble.json in '{folder}'.")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if verify is not None and found != verify.strip().lower():
            raise Failed(f"'{path}' is not what was asked for: its SHA-256 is {found} (--verify).")
        self.folder, self.said = folder, json.loads(content)
        if self.said["format_version"] != 1:
            raise Failed(f"'{folder}' is of format version {self.said['format_version']}, not 1.")
        for name, digest in self.said["files"].items():
            self._check(name, digest)
        self.inputs_of = {one["name"]: set(one["inputs"]) for one in self.said["experts"]}
        self._sessions: dict[str, Any] = {}
        crop = self.said.get("crop", {})
        self.faces = Faces(crop, folder) if crop.get("kind") == "face" else None

    def _check(self, name: str, digest: str) -> None:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise Failed(f"ensemble.json names a file outside its folder: '{name}'.")
        if not path.is_file():
            raise Failed(f"'{path}' is missing.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise Failed(f"'{path}' is truncated or changed: it does not match its checksum.")

    def predict(self, path: Path) -> Answer:
        """The answer to a file; raises Failed."""
        arrays, lacking = self._load(path)
        fused = self._ensemble_for(set(arrays), lacking)
        each = np.stack([self._log_posteriors(name, arrays) for name in fused["experts"]])
        (values,) = np.exp(apply_rule(fused["rule"], each))
        return Answer(
            dict(zip(self.said["labels"], values.tolist(), strict=True)),
            fused["experts"],
            [f"no {kind}: {why}" for kind, why in lacking.items()],
        )

    def _load(self, path: Path) -> tuple[dict[str, Array], dict[str, str]]:
        """What the file has of what the ensemble reads, and why it lacks the rest."""
        if not path.is_file():
            raise Failed("no such file")
        arrays: dict[str, Array] = {}
        lacking: dict[str, str] = {}
        height, width = self.said["frame_size"]
        readers = {
            "audio": lambda: read_audio(path, self.said["sample_rate_hz"]),
            "video": lambda: read_frames(
                path,
                self.said["frames"],
                (height, width),
                self.said.get("frame_rate", 0.0),
                self.faces,
            ),
        }
        wanted = set().union(*self.inputs_of.values())
        for kind in sorted(wanted & set(readers)):
            try:
                arrays[kind] = readers[kind]()
            except Failed as error:
                lacking[kind] = str(error)
        if lacking and not arrays:
            raise Failed("; ".join(dict.fromkeys(lacking.values())))
        others = sorted(wanted - set(readers))
        lacking.update(dict.fromkeys(others, "not read by this script"))
        return arrays, lacking

    def _ensemble_for(self, available: set[str], lacking: Mapping[str, str]) -> dict[str, Any]:
        """The whole ensemble, or what takes its place without some inputs."""
        fused: dict[str, Any] = self.said["fused"]
        needed = set().union(*(self.inputs_of[name] for name in fused["experts"]))
        if needed <= available:
            return fused
        able = [some for some in self.said["substitutes"] if set(some["inputs"]) <= available]
        if not able:
            why = "; ".join(f"{kind}: {text}" for kind, text in lacking.items())
            raise Failed(f"has no {' and no '.join(sorted(needed - available))} ({why})")
        return max(able, key=lambda some: (len(some["inputs"]), sorted(some["inputs"])))

    def _log_posteriors(self, name: str, arrays: Mapping[str, Array]) -> Array:
        """(1, K): the average of an expert's fold networks."""
        session = self._sessions.get(name) or self._open(name)
        self._sessions[name] = session
        given = {}
        for item in session.get_inputs():
            kind = item.name.removesuffix("_lengths")
            length = np.asarray([len(arrays[kind])], np.int64)
            given[item.name] = arrays[kind][None] if item.name == kind else length
        return np.asarray(session.run(["log_posteriors"], given)[0], np.float64)

    def _open(self, name: str) -> onnxruntime.InferenceSession:
        file = f"experts/{name}.onnx"
        if file not in self.said["files"]:
            raise Failed(f"ensemble.json has no checksum of '{file}'.")
        content = (self.folder / file).read_bytes()
        if _ELSEWHERE.search(content):
            raise Failed(f"'{file}' has tensors in other files.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own have no common class
            raise Failed(f"'{file}' is no ONNX graph: {type(error).__name__}") from error


def log_softmax(values: Array) -> Array:
    """Over the last axis."""
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def apply_rule(rule: Mapping[str, Any], each: Array) -> Array:
    """(M, N, K) log-posteriors of experts → (N, K), as the fitted rule fuses them."""
    kind = rule["kind"]
    if kind == "stacked":
        return apply_rule(
            rule["second"], np.stack([apply_rule(one, each) for one in rule["first"]])
        )
    if kind == "tempered":
        powers = np.asarray(rule["powers"])[:, None, None]
        return apply_rule(rule["inner"], log_softmax(each * powers))
    if kind == "calibrated":
        fused = np.maximum(apply_rule(rule["inner"], each), -30.0)
        return log_softmax(fused * np.asarray(rule["scale"]) + np.asarray(rule["offset"]))
    if kind == "linear":
        raw = np.exp(each) if rule["inputs"] == "probabilities" else np.maximum(each, -20.0)
        table = raw.transpose(1, 0, 2).reshape(each.shape[1], -1)
        return log_softmax(table @ np.asarray(rule["coefficients"]).T + rule["intercept"])
    if kind != "pooling":
        raise Failed(f"ensemble.json has an unknown kind of fusion '{kind}'.")
    floored = each if rule["floor"] is None else np.maximum(each, rule["floor"])
    weights = np.asarray(rule["weights"])
    if rule["space"] == "log":
        return log_softmax(np.tensordot(weights, floored, axes=1))
    mixed = np.tensordot(weights / weights.sum(), np.exp(floored), axes=1)
    return np.asarray(np.log(mixed + 1e-300))


def read_audio(path: Path, sample_rate_hz: int) -> Array:
    """(L,) float32, mono, resampled, in 16-bit steps as in training; raises Failed."""
    sound, rate_hz = _sound_file(path) if path.suffix.lower() in _SOUND else _soundtrack(path)
    if not len(sound):
        raise Failed("holds no sound")
    if not np.isfinite(sound).all():
        raise Failed("holds non-finite samples")
    steps = np.clip(np.rint(resample(sound, rate_hz, sample_rate_hz) * 32768.0), -32768, 32767)
    waveform = (steps / 32768.0).astype(np.float32)
    if np.abs(waveform).max() < _SILENCE:
        raise Failed("is silent")
    return waveform


def _sound_file(path: Path) -> tuple[Array, int]:
    try:
        with soundfile.SoundFile(path) as file:
            _check_length(file.frames / file.samplerate)
            samples = file.read(dtype="float32", always_2d=True)
            return samples.mean(axis=1), int(file.samplerate)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise Failed(f"cannot be decoded: {error}") from error


def _soundtrack(path: Path) -> tuple[Array, int]:
    blocks: list[Array] = [np.zeros(0, np.float32)]
    count = 0
    try:
        with av.open(str(path), options={"format_whitelist": _DEMUXERS}) as container:
            if not container.streams.audio:
                raise Failed("has no sound")
            stream = container.streams.audio[0]
            rate_hz = int(stream.rate)
            # Channels are averaged here: FFmpeg's own mix to mono is their sum / √2.
            planes = av.AudioResampler(format="fltp", rate=rate_hz)
            for frame in container.decode(stream):
                count += frame.samples
                _check_length(count / rate_hz)
                blocks += [part.to_ndarray().mean(axis=0) for part in planes.resample(frame)]
            blocks += [part.to_ndarray().mean(axis=0) for part in planes.resample(None)]
    except (av.FFmpegError, ValueError) as error:
        raise Failed(f"cannot be decoded: {error}") from error
    return np.concatenate(blocks), rate_hz


def resample(sound: Array, source_hz: int, target_hz: int) -> Array:
    """Windowed-sinc interpolation, the numbers of training's: torchaudio's defaults, or SciPy's.

    Every output sample is a dot product of the input around it with a kernel that depends only
    on where between two input samples it lies, of which there are `up` cases.
    """
    if source_hz == target_hz:
        return sound
    shared = math.gcd(source_hz, target_hz)
    up, down = target_hz // shared, source_hz // shared
    of_scipy = up * down > _MAX_FILTER_BANK  # there, torchaudio would need gigabytes
    half = 10 if of_scipy else 6  # zero crossings on either side
    cutoff = min(1.0, up / down) * (1.0 if of_scipy else 0.99)  # of the input's Nyquist frequency
    width = math.ceil(half / cutoff) + 1
    count = -(-len(sound) * up // down)
    padded = np.pad(sound, (width, width + down + 1)).astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1)
    out = np.empty(count, np.float32)
    for phase in range(min(up, count)):
        first, rest = divmod(phase * down, up)
        taps = np.arange(-width, width + 1)
        if of_scipy:
            kernel = _kernel_of_scipy((taps - rest / up) * cutoff) * cutoff
        else:  # rounded where torchaudio rounds: one may hear the last of 16 bits
            place = np.float32(-phase) / np.float32(up) + (taps + first).astype("f4") / np.float32(
                down
            )
            kernel = _kernel_of_torchaudio(place * np.float32(min(up, down) * 0.99)) * cutoff
        places = out[phase::up]
        places[:] = views[first::down][: len(places)] @ kernel.astype(np.float32)
    return out


def _kernel_of_torchaudio(place: Array) -> Array:
    place = np.clip(place, -6, 6)
    window = np.cos(place * np.float32(np.pi / 12)) ** 2
    return np.asarray(np.sinc(place) * window)


def _kernel_of_scipy(place: Array) -> Array:
    return np.interp(place, *_scipy_table(), left=0.0, right=0.0)


@cache
def _scipy_table() -> tuple[Array, Array]:
    """A Kaiser window (5.0) of ten zero crossings, with a sum of one."""
    grid = np.linspace(-10, 10, 200_001)
    table = np.sinc(grid) * np.i0(5.0 * np.sqrt(1 - (grid / 10) ** 2))
    return grid, table / (20 * table.mean())


class Faces:
    """Finds the face of a clip, and cuts it out, as training did.

    Args:
        crop: What `ensemble.json` says of it.
        folder: Where YuNet's ONNX lies, if it was used.
    """

    def __init__(self, crop: Mapping[str, Any], folder: Path) -> None:
        self.cv2 = _opencv()
        self.margin, self.yunet = crop["margin"], crop["detector"] == "yunet"
        self.side = 320 if self.yunet else 200
        if self.yunet:
            model = str(folder / "face-model.onnx")
            try:
                self.network = self.cv2.FaceDetectorYN.create(model, "", (320, 320), 0.6, 0.3, 100)
            except self.cv2.error as error:
                raise Failed(f"'{model}' is no YuNet that this OpenCV can run.") from error
        else:
            name = f"{self.cv2.data.haarcascades}haarcascade_frontalface_alt2.xml"
            self.network = self.cv2.CascadeClassifier(name)

    def frames(self, path: Path, count: int, size: tuple[int, int], rate_hz: float) -> Array:
        """(V, H, W, 3) uint8: the video is decoded twice, to find the face and to cut it out."""
        stamps: list[float] = []
        looks: list[Array] = []
        every = 1
        for number, (time, frame) in enumerate(_decode(path)):
            stamps.append(time)
            if len(looks) == 2 * _LOOKS and number % every == 0:
                del looks[1::2]
                every *= 2
            if number % every == 0:
                looks.append(_shrunk(frame, _LOOK_SIDE, "rgb24").to_ndarray(format="rgb24"))
        shown = _shown_frames(stamps, count, rate_hz)
        if len(looks) > _LOOKS:
            looks = [looks[int((i + 0.5) / _LOOKS * len(looks))] for i in range(_LOOKS)]
        box = self._box([self._look(picture) for picture in looks], looks[0].shape[:2], size)
        cut = {}
        for number, (_, frame) in enumerate(_decode(path)):
            if number in shown:
                name = frame.format.name if frame.format.name.startswith("yuv") else "rgb24"
                working = _shrunk(frame, max(360, 4 * max(size)), name)
                cut[number] = self._cut(working.to_ndarray(format="rgb24"), box, size)
        return np.stack([cut[number] for number in shown])

    def _look(self, picture: Array) -> list[Array]:
        """Faces (left, top, width, height) in a picture's pixels, the largest first."""
        cv2, scale = self.cv2, self.side / min(picture.shape[:2])
        small = picture
        if scale < 1:
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if self.yunet:
            self.network.setInputSize((small.shape[1], small.shape[0]))
            found = self.network.detect(np.ascontiguousarray(small[..., ::-1]))[1]
            found = [] if found is None else found[np.isfinite(found).all(axis=1)][:, :4]
        else:
            grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
            for share in (4, 10):
                least = max(20, min(grey.shape) // share)
                found = self.network.detectMultiScale(
                    grey, scaleFactor=1.2, minNeighbors=3, minSize=(least, least)
                )
                if len(found):
                    break
        boxes = [np.asarray(box, np.float64) for box in found if box[2] > 0 and box[3] > 0]
        boxes.sort(key=lambda box: (-box[2] * box[3], *box))
        across, down = picture.shape[1] / small.shape[1], picture.shape[0] / small.shape[0]
        return [box * (across, down, across, down) for box in boxes]

    def _box(self, seen: list[list[Array]], picture: Any, size: tuple[int, int]) -> Array:
        """What is cut out, in shares of the picture: around the steadiest face, or the centre."""
        (rows, columns), (height, width) = picture, size
        x, y, side = columns / 2, rows / 2, float(rows + columns)
        if (face := _steadiest(seen)) is not None:
            x, y, side = face[0], face[1], max(face[2:]) * (1 + 2 * self.margin)
        scale = min(side / min(height, width), rows / height, columns / width)
        high, wide = height * scale, width * scale
        left = min(max(0.0, x - wide / 2), columns - wide)
        top = min(max(0.0, y - high / 2), rows - high)
        return np.asarray([left / columns, top / rows, wide / columns, high / rows])

    def _cut(self, picture: Array, box: Array, size: tuple[int, int]) -> Array:
        rows, columns = picture.shape[:2]
        width, height = max(1, round(box[2] * columns)), max(1, round(box[3] * rows))
        left, top = (
            min(round(box[0] * columns), columns - width),
            min(round(box[1] * rows), rows - height),
        )
        part = np.ascontiguousarray(picture[top : top + height, left : left + width])
        shrinks = height >= size[0] and width >= size[1]
        how = self.cv2.INTER_AREA if shrinks else self.cv2.INTER_CUBIC
        return np.asarray(self.cv2.resize(part, (size[1], size[0]), interpolation=how))


def _opencv() -> Any:
    try:
        import cv2

        if hasattr(cv2, "CascadeClassifier"):  # which 5.x has not
            return cv2
    except ImportError:
        pass
    raise Failed(
        "The pictures that this ensemble reads are cropped to faces, for which "
        "opencv-python-headless 4.x is needed. Install it."
    )


def _steadiest(seen: list[list[Array]]) -> Array | None:
    """The face that most pictures show, weighed by its size: its medians of x, y, width, height."""
    faces: list[list[Array]] = []
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
    able = [np.asarray(face) for face in faces if len(face) >= math.ceil(_LEAST_SHARE * len(seen))]
    if not able:
        return None
    face = max(able, key=lambda boxes: len(boxes) * float(np.median(boxes[:, 2])))
    half = np.median(face[:, 2:], axis=0) / 2
    corner = np.median(face[:, :2] + face[:, 2:] / 2, axis=0) - half
    return np.concatenate([corner + half, 2 * half])


def _overlap(one: Array, other: Array) -> float:
    """Intersection over union."""
    ends = np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    shared = np.prod(np.maximum(0.0, ends - np.maximum(one[:2], other[:2])))
    return float(shared / (one[2] * one[3] + other[2] * other[3] - shared))


def _shrunk(frame: av.VideoFrame, side: int, pixels: str) -> av.VideoFrame:
    """The frame with a shorter side of `side` pixels or fewer."""
    scale = min(1.0, side / min(frame.height, frame.width))
    if scale == 1.0:
        return frame if frame.format.name == pixels else frame.reformat(format=pixels)
    width, height = (
        max(2, 2 * round(length * scale / 2)) for length in (frame.width, frame.height)
    )
    return frame.reformat(width=width, height=height, format=pixels)


def read_frames(
    path: Path, count: int, size: tuple[int, int], rate_hz: float = 0.0, faces: Faces | None = None
) -> Array:
    """(V, H, W, 3) uint8 pictures, evenly spread in time, scaled and cropped; raises Failed."""
    if path.suffix.lower() in _SOUND:
        raise Failed("is a sound file")
    if faces:
        return faces.frames(path, count, size, rate_hz)
    stamps: list[float] = []
    pictures: list[Array] = []
    for time, frame in _decode(path):
        stamps.append(time)
        pictures.append(_scale_and_crop(frame, size))
    return np.stack([pictures[i] for i in _shown_frames(stamps, count, rate_hz)])


def _shown_frames(stamps: list[float], count: int, rate_hz: float) -> list[int]:
    """Which frames are shown at moments evenly spread, or so many a second."""
    if not stamps:
        raise Failed("holds no pictures")
    step = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0.0  # the last lasts as long
    seconds = stamps[-1] - stamps[0] + step
    count = max(1, round(seconds * rate_hz)) if rate_hz else count
    moments = (np.arange(count) + 0.5) / (rate_hz or count) * (1.0 if rate_hz else seconds)
    shown = np.searchsorted(stamps, stamps[0] + moments, side="right") - 1
    return [int(number) for number in np.clip(shown, 0, len(stamps) - 1)]


def _decode(path: Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames and their time stamps."""
    first: float | None = None
    try:
        with av.open(str(path), options={"format_whitelist": _DEMUXERS}) as container:
            if not container.streams.video:
                raise Failed("has no pictures")
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                time = frame.time if frame.time is not None else float(number)
                first = time if first is None else first
                _check_length(time - first)
                yield time, frame
    except (av.FFmpegError, ValueError) as error:
        raise Failed(f"cannot be decoded: {error}") from error


def _scale_and_crop(frame: av.VideoFrame, size: tuple[int, int]) -> Array:
    height, width = size
    scale = max(height / frame.height, width / frame.width)
    scaled_height = max(height, round(frame.height * scale))
    scaled_width = max(width, round(frame.width * scale))
    image = frame.reformat(width=scaled_width, height=scaled_height, format="rgb24").to_ndarray()
    top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _check_length(seconds: float) -> None:
    if seconds > _MAX_SECONDS:
        raise Failed(f"is longer than {_MAX_SECONDS:.0f} s; cut it into utterances")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all predicted; 2: in one line each, what could not be."""
    parser = argparse.ArgumentParser(prog="predict.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and file")
    parser.add_argument("--verify", metavar="SHA256", help="which ensemble.json must have")
    given = parser.parse_args(arguments)
    try:
        ensemble = Ensemble(Path(__file__).resolve().parent, given.verify)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        print(f"error: ensemble.json is damaged: {error!r}", file=sys.stderr)
        return 2
    return max([_show(ensemble, path, given.json) for path in given.files])


def _show(ensemble: Ensemble, path: Path, as_json: bool) -> int:
    try:
        answer = ensemble.predict(path)
    except Failed as error:
        print(f"error: '{path}' {error}", file=sys.stderr)
        if as_json:
            print(json.dumps({"file": str(path), "error": str(error)}))
        return 2
    ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    if as_json:
        print(json.dumps({"file": str(path), "label": ranked[0][0], **answer._asdict()}))
    else:
        shown = "  ".join(f"{name} {100 * value:5.1f} %" for name, value in ranked[:3])
        print(
            f"{path}  {shown}  ({len(answer.experts)} experts; {', '.join(answer.notes) or 'all'})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
