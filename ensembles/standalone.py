"""Predicts files with the exported ensemble in this folder: `python -I predict.py FILE…`.

Needs onnxruntime, numpy, soundfile and av, and nothing else. Each FILE is one utterance, wav, flac,
mp3, mp4, mkv …; features are not read. `ensemble.json` says what is computed; the files that it
lists are checked against their checksums first, and nothing is unpickled.
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
from collections.abc import Mapping
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
            "video": lambda: read_frames(path, self.said["frames"], (height, width)),
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


def read_frames(path: Path, count: int, size: tuple[int, int]) -> Array:
    """(V, H, W, 3) uint8 pictures, evenly spread in time, scaled and cropped; raises Failed."""
    if path.suffix.lower() in _SOUND:
        raise Failed("is a sound file")
    stamps: list[float] = []
    pictures: list[Array] = []
    try:
        with av.open(str(path), options={"format_whitelist": _DEMUXERS}) as container:
            if not container.streams.video:
                raise Failed("has no pictures")
            for frame in container.decode(container.streams.video[0]):
                stamps.append(frame.time if frame.time is not None else float(len(stamps)))
                _check_length(stamps[-1] - stamps[0])
                pictures.append(_scale_and_crop(frame, size))
    except (av.FFmpegError, ValueError) as error:
        raise Failed(f"cannot be decoded: {error}") from error
    if not pictures:
        raise Failed("holds no pictures")
    step = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0.0  # the last lasts as long
    moments = stamps[0] + (np.arange(count) + 0.5) / count * (stamps[-1] - stamps[0] + step)
    shown = np.searchsorted(stamps, moments, side="right") - 1
    return np.stack([pictures[i] for i in np.clip(shown, 0, len(stamps) - 1)])


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
