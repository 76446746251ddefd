"""Decodes uploads in a process of its own, which may die."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from ensembles.inference.predictor import Clip
from ensembles.serving.limits import Limits, Refused

_START_S = 120.0
"""To import torch and to check the artifact, on a busy machine."""
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Part:
    """A window of an upload, from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    clip: Clip


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upload, decoded.

    Attributes:
        clip: The whole, as `Predictor.load` gives it.
        parts: Its windows, in order; none of a clip that is no longer than one.
        seconds: How long it lasts; 0 if that is not known.
    """

    clip: Clip
    parts: tuple[Part, ...] = ()
    seconds: float


class DecoderDied(Exception):
    """The process ended instead of answering."""


class Decoder:
    """A decoding process, started again whenever it dies.

    Args:
        folder: The exported ensemble.
        limits: Of an upload.
        command: What is run; for tests.
    """

    def __init__(self, folder: Path, limits: Limits, command: list[str] | None = None) -> None:
        self.limits = limits
        own = [sys.executable, "-m", "ensembles.serving.decode", str(folder.resolve())]
        self._command = command or [*own, str(limits.decode_seconds)]
        self._lock = Lock()
        self._process = self._start()
        self._ready = False

    def decode(self, path: Path) -> Decoded:
        """Decodes one file; a second caller waits.

        Args:
            path: The upload; what is decoded is kept beside it.

        Raises:
            Refused: The file is too long, or cannot be decoded: also if the process dies of it.
        """
        with self._lock:
            self._await_ready()
            out = path.with_name("decoded.npz")
            request = {"path": str(path), "out": str(out), "limits": asdict(self.limits)}
            try:
                reply = self._ask(request, self.limits.decode_seconds)
            except TimeoutError:
                self._restart()
                limit = f"{self.limits.decode_seconds:g} s"
                raise Refused(504, f"The file was not decoded within {limit}.") from None
            except DecoderDied as death:
                self._restart()
                raise Refused(422, f"The file cannot be decoded: its decoder {death}.") from None
        if "error" in reply:
            raise Refused(int(reply["status"]), str(reply["error"]))
        return _read(out, path, reply)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT
        )

    def _restart(self) -> None:
        self.close()
        self._process, self._ready = self._start(), False

    def _await_ready(self) -> None:
        """Waits for a process that was started before; one that died idle is started again."""
        if self._process.poll() is not None:
            self._restart()
        if self._ready:
            return
        try:
            self._ready = self._reply(_START_S).get("ready") is True
        except (TimeoutError, DecoderDied) as error:
            self._restart()
            raise Refused(503, f"The decoder does not start ({error}). Try again.") from error

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        stdin = _pipe(self._process.stdin)
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise DecoderDied(self._why()) from None
        return self._reply(seconds)

    def _reply(self, seconds: float) -> dict[str, Any]:
        """One line of JSON.

        Raises:
            TimeoutError: There is none after so many seconds.
            DecoderDied: There will be none.
        """
        descriptor, line = _pipe(self._process.stdout).fileno(), b""
        deadline = time.monotonic() + seconds
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise DecoderDied(self._why())
            line += piece
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _why(self) -> str:
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}"


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _read(out: Path, path: Path, reply: dict[str, Any]) -> Decoded:
    with np.load(out, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    parts = []
    for number, (start_s, end_s, lacking) in enumerate(reply["windows"]):
        own = f"{number} "
        names = [name for name in arrays if name.startswith(own)]
        taken = {name.removeprefix(own): arrays.pop(name) for name in names}
        parts.append(Part(float(start_s), float(end_s), Clip(path.name, taken, _texts(lacking))))
    clip = Clip(path.name, arrays, _texts(reply["lacking"]))
    return Decoded(clip=clip, parts=tuple(parts), seconds=float(reply["seconds"]))


def _texts(lacking: dict[str, Any]) -> dict[str, str]:
    return {str(kind): str(why) for kind, why in lacking.items()}
