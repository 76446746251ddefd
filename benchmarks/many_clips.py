"""A corpus of very many small clips: prepared, verified, streamed and cached, with the memory it takes.

`python -m benchmarks.many_clips [--clips 10000,50000,100000] [--workers N]`

The clips are 0.25 s of noise at 16 kHz, WAV and FLAC in turn, made here; every step is a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile

from benchmarks.common import machine, scratch

SPEAKERS, LABELS = 50, ("angry", "happy", "neutral", "sad")
STEPS = {
    "prepare": "from datasets.prepare import main; "
    "sys.exit(main(['manifest', '--root', media, '--out', shards, *more]))",
    "read the index": "from datasets.sharding.index import read_index; print(len(read_index(shards).clips))",
    "stream": "from datasets.sharding.index import read_index; "
    "from datasets.sharding.stream import stream_clips; "
    "print(sum(1 for _ in stream_clips(read_index(shards))))",
    "fill the cache": "from datasets.sharding.index import read_index; "
    "from datasets.sharding.clip_cache import open_cache; "
    "print(len(open_cache(read_index(shards), Path(cache)).targets))",
    "verify": "from datasets.verify import main; sys.exit(main([shards]))",
}
"""Steps, each run in its own process."""


def _make_some(folder: Path, first: int, last: int) -> None:
    samples = np.random.default_rng(first).normal(0, 2000, 4000 + last - first).astype(np.int16)
    for number in range(first, last):
        suffix = "flac" if number % 2 else "wav"
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.{suffix}"
        soundfile.write(path, samples[number - first :][:4000], 16_000)


def make(folder: Path, clips: int) -> None:
    """Media and manifest."""
    rows = ["clip,speaker,label,audio"]
    for number in range(clips):
        name = f"{number // 1000:03d}/{number:06d}.{'flac' if number % 2 else 'wav'}"
        who, what = f"speaker_{number % SPEAKERS:02d}", LABELS[number // SPEAKERS % len(LABELS)]
        rows.append(f"c{number:06d},{who},{what},{name}")
    for block in range(-(-clips // 1000)):
        (folder / f"{block:03d}").mkdir(parents=True)
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    with multiprocessing.get_context("spawn").Pool() as pool:
        parts = [(folder, n, min(n + 1000, clips)) for n in range(0, clips, 1000)]
        pool.starmap(_make_some, parts)


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Bytes of a process: resident, and what of it is no mapped file."""
    try:
        said = process.memory_info()
        return said.rss, said.rss - said.shared
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0, 0


def watch(step: str, places: list[str], more: list[str]) -> dict[str, float]:
    """Runs a step; seconds, and MiB at the highest: the parent, its own pages, its largest child, all together."""
    code = "import sys; from pathlib import Path; media, shards, cache, *more = sys.argv[1:]; "
    started = time.perf_counter()
    # A file: what is spawned imports the main module again.
    script = Path(places[0]).parent / "step.py"
    script.write_text(f"{code}\nif __name__ == '__main__':\n    {STEPS[step]}\n")
    child = subprocess.Popen(
        [sys.executable, str(script), *places, *more], stdout=subprocess.DEVNULL,
        env={"PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    parent = psutil.Process(child.pid)
    peak = dict.fromkeys(("parent", "own", "child", "tree"), 0)
    while child.poll() is None:
        resident, own = _memory(parent)
        children = [_memory(c)[0] for c in parent.children(recursive=True)] if resident else []
        now = {
            "parent": resident,
            "own": own,
            "child": max(children, default=0),
            "tree": resident + sum(children),
        }
        peak = {kind: max(peak[kind], now[kind]) for kind in peak}
        time.sleep(0.1)
    if child.returncode not in (0, 1):
        sys.exit(f"{step} ended with {child.returncode}")
    return {"seconds": time.perf_counter() - started} | {k: v / 2**20 for k, v in peak.items()}


def main() -> None:
    """Makes each corpus, takes the steps, prints a row a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", default="10000,50000,100000", help="sizes of the corpora")
    parser.add_argument(
        "--workers", type=int, help="processes of prepare (default: its own choice)"
    )
    parser.add_argument("--steps", default=",".join(STEPS), help=f"some of: {', '.join(STEPS)}")
    options = parser.parse_args()
    more = ["--workers", str(options.workers)] if options.workers else []
    print(f"{machine()}; {resource.getpagesize()} bytes a page")
    print(
        "| clips | step | seconds | clips/s | parent MiB | without mapped files | largest worker | all |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for clips in map(int, options.clips.split(",")):
        with scratch() as name:
            folder = Path(name)
            make(folder / "media", clips)
            places = [str(folder / place) for place in ("media", "shards", "cache")]
            for step in options.steps.split(","):
                found = watch(step, places, more if step == "prepare" else [])
                print(
                    f"| {clips} | {step} | {found['seconds']:.1f} | {clips / found['seconds']:.0f} | "
                    f"{found['parent']:.0f} | {found['own']:.0f} | {found['child']:.0f} | {found['tree']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
