"""Clips a second and core: decoding and writing shards.

`python -m benchmarks.prepare`
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.common import arguments, machine, scratch
from datasets.clips import ClipRecord, Corpus
from datasets.prepare import prepare
from datasets.synthetic import load_synthetic


def main() -> None:
    """Audio alone, and audio with video, on one core."""
    arguments(__doc__ or "")
    print(machine())
    with scratch() as folder:
        made = load_synthetic(Path(folder) / "media", speakers=8, repetitions=4)
        for name in ("audio", "audio + video"):
            clips = tuple(
                ClipRecord(
                    clip=r.clip,
                    speaker=r.speaker,
                    label=r.label,
                    audio=r.audio,
                    video=r.video if "video" in name else None,
                )
                for r in made.clips
            )
            corpus = Corpus(name=name, labels=made.labels, clips=clips)
            started = time.perf_counter()
            prepare(corpus, Path(folder) / name.replace(" ", ""), workers=1)
            print(
                f"  {len(clips) / (time.perf_counter() - started):6.0f} clips/s on one core: {name}"
            )


if __name__ == "__main__":
    main()
