"""The process that decodes uploads: one line of JSON in, one out, arrays through a file.

`python -m ensembles.serving.decode DIR` is started by `ensembles.serving.decoder`. FFmpeg and
libsndfile read what strangers send; should they crash, hang or eat memory, this process dies
and nothing else does. What it returns is JSON and plain arrays, never pickled.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

from datasets.media.containers import AUDIO_SUFFIXES, MediaError
from datasets.media.windows import Window, Windows, read_windows
from ensembles.artifact.manifest import read_artifact
from ensembles.inference.predictor import Predictor
from ensembles.inference.sliding_windows import clip_of
from ensembles.serving.limits import Limits, Refused

_MEMORY_BYTES = 6 << 30
"""Limit of addresses, of which torch alone takes more than one GiB."""
_OUTPUT_BYTES = 2 << 30
_GRACE_S = 5
"""After the server's own time limit: should the server be gone, nobody else would end it."""
_MOST_WINDOWS = 120
"""Most windows of an upload; a longer one is looked at in larger steps, of at most a window."""
_VIDEO_FORMATS = "mov,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v"


def main(arguments: list[str] | None = None) -> int:
    """Decodes until its input ends."""
    folder, seconds = arguments or sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    _set_limits()
    predictor = Predictor(read_artifact(Path(folder)))
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        _limit_time(float(seconds))
        try:
            reply = _decode(predictor, json.loads(line))
        except Refused as refusal:
            reply = {"status": refusal.status, "error": refusal.text}
        except MemoryError:
            reply = {"status": 422, "error": "The clip takes more memory than is allowed."}
        except OSError as error:  # whoever asked went away, and the upload with them
            reply = {"status": 422, "error": f"The file cannot be decoded: {error.strerror}."}
        signal.alarm(0)
        print(json.dumps(reply), file=replies, flush=True)
    return 0


def _set_limits() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to answer
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_OUTPUT_BYTES, _OUTPUT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """Has the kernel end this process, which may be stuck in C code, some time later."""
    signal.alarm(int(seconds) + _GRACE_S)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cores = len(os.sched_getaffinity(0))
    cpu = used.ru_utime + used.ru_stime + (seconds + _GRACE_S) * cores
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1, resource.RLIM_INFINITY))


def _decode(predictor: Predictor, request: dict[str, Any]) -> dict[str, Any]:
    """One upload → its arrays in a file, and what else there is to say."""
    path, limits = Path(request["path"]), Limits(**request["limits"])
    try:
        promised = promised_seconds(path)
        limits.check_seconds(promised)
        clip = predictor.load(path)
        arrays = dict(clip.arrays)
        seconds = promised
        if "audio" in arrays:
            seconds = len(arrays["audio"]) / predictor.artifact.sample_rate_hz
        limits.check_seconds(seconds)
        windows = []
        for number, window in enumerate(_windows(path, seconds, predictor, limits)):
            part = clip_of(window, path.name, predictor.artifact.all_inputs)
            arrays |= {f"{number} {kind}": array for kind, array in part.arrays.items()}
            windows.append((window.start, window.end, _without(path, part.lacking)))
    except MediaError as error:
        raise Refused(422, f"The file {_nameless(path, str(error))}.") from error
    np.savez(request["out"], **arrays)  # type: ignore[arg-type]  # the stub means allow_pickle
    return {"seconds": seconds, "lacking": _without(path, clip.lacking), "windows": windows}


def _windows(path: Path, seconds: float, predictor: Predictor, limits: Limits) -> Iterable[Window]:
    """Cut windows as `ensembles.predict --window` does; none of a clip that is no longer than one."""
    artifact = predictor.artifact
    if seconds <= limits.window_seconds:
        return ()
    spread = (seconds - limits.window_seconds) / (_MOST_WINDOWS - 1)
    hop_seconds = min(max(limits.hop_seconds, spread), limits.window_seconds)
    return read_windows(
        path,
        Windows(limits.window_seconds, hop_seconds),
        sample_rate_hz=artifact.sample_rate_hz,
        frames=artifact.frames,
        frame_size=artifact.frame_size,
        rate_hz=artifact.frame_rate,
        faces=predictor.faces,
    )


def promised_seconds(path: Path) -> float:
    """How long a container says it is, before it is decoded; 0 where it does not say."""
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return 0.0
    try:
        with av.open(str(path), options={"format_whitelist": _VIDEO_FORMATS}) as container:
            return float((container.duration or 0) / av.time_base)
    except (av.FFmpegError, ValueError):
        return 0.0  # whoever decodes it says why


def _without(path: Path, lacking: Mapping[str, str]) -> dict[str, str]:
    return {kind: _nameless(path, why) for kind, why in lacking.items()}


def _nameless(path: Path, text: str) -> str:
    """A text without the place of the upload on this machine."""
    return text.replace(str(path), path.name)


if __name__ == "__main__":
    sys.exit(main())
