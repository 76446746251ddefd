"""Clips a second of one core's time, with frames of the centre and of the face, of real videos.

`EMOTION_CORPORA=DIR python -m benchmarks.faces`
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import av

from benchmarks.common import arguments, machine, scratch
from datasets.clips import ClipRecord, Corpus
from datasets.media.crop import Crop
from datasets.sharding.writer import ShardSettings, prepare

_FOLDERS = {"grid": "*.mpg", "crema_d": "*.flv", "ravdess_video": "*.mp4"}
_CLIPS = 12
_ROUNDS = 3


def main() -> None:
    """Plain decoding, and preparation with either crop; the best of three rounds, in turn."""
    arguments(__doc__ or "")
    corpora = Path(os.environ.get("EMOTION_CORPORA", ""))
    if not (corpora / "grid").is_dir():
        sys.exit("EMOTION_CORPORA names no folder of real recordings.")
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    print(machine())
    for name, pattern in _FOLDERS.items():
        paths = sorted((corpora / name).glob(pattern))
        paths = (paths * _CLIPS)[:_CLIPS]
        best: dict[str, float] = {}
        with scratch() as folder:
            for number in range(_ROUNDS):
                started = time.process_time()
                for path in paths:
                    _decode(path)
                _note(best, "decoding alone", started)
                for kind in ("centre", "face"):
                    out = Path(folder) / f"{name}-{kind}-{number}"
                    settings = ShardSettings(crop=Crop(kind=kind))
                    started = time.process_time()
                    prepare(_corpus(paths), out, settings, workers=1)
                    _note(best, f"prepared, {kind}", started)
        shown = ", ".join(f"{what} {_CLIPS / seconds:.1f}" for what, seconds in best.items())
        print(f"  {name}: clips per CPU second: {shown}")


def _note(best: dict[str, float], what: str, started: float) -> None:
    seconds = time.process_time() - started
    best[what] = min(seconds, best.get(what, seconds))


def _decode(path: Path) -> None:
    with av.open(str(path)) as container:
        for _ in container.decode(video=0):
            pass


def _corpus(paths: list[Path]) -> Corpus:
    clips = tuple(
        ClipRecord(clip=f"{n:02d}", speaker="one", label="any", video=path)
        for n, path in enumerate(paths)
    )
    return Corpus(name="videos", labels=("any",), clips=clips)


if __name__ == "__main__":
    main()
