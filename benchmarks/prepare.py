"""Preparing clips against FFmpeg's plain decoding of the same files, on the same cores, side by side.

`python -m benchmarks.prepare [--corpora DIR] [--repeats 3]`

DIR (default: $EMOTION_CORPORA) holds `ravdess/`, `grid/` and `ravdess_video/`; what is absent is left out, and without
any a synthetic corpus is taken. FFmpeg decodes to nothing (`-f null -`): neither resampling, scaling, encoding nor
writing. It is run with one process a file, as many at once as there are cores; and, as starting a process a file
flatters what it is compared to, with one process a core that decodes a list of files. Ours is the whole command.
Beside clips a second there are clips a second of processor time, all processes together: on a machine that others
use too, these are what can be compared.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.common import machine, scratch
from datasets.corpora.synthetic import load_synthetic

SETS = {
    # name: (files, how often they are copied, whether they have pictures)
    "RAVDESS audio, FLAC 16 kHz": ("ravdess/Actor_*/*.flac", 2, False),
    "GRID audio + video, MPEG-1 360×288": ("grid/*.mpg", 80, True),
    "RAVDESS audio + video, H.264 1280×720": ("ravdess_video/*.mp4", 24, True),
}
FILES = 160
"""So many are enough to time what takes a process each."""
FFMPEG = ("ffmpeg", "-v", "quiet", "-nostdin", "-threads", "1")


def _copies(files: list[Path], count: int, folder: Path) -> list[Path]:
    """Files of their own, as a corpus has."""
    folder.mkdir()
    made = [folder / f"{n}-{path.name}" for n in range(count) for path in files]
    for path, source in zip(made, files * count, strict=True):
        shutil.copy(source, path)
    return made


def _manifest(files: list[Path], pictures: bool, folder: Path) -> None:
    rows = ["clip,speaker,label,audio,video"]
    rows += (f"c{n},any,any,{f.name},{f.name if pictures else ''}" for n, f in enumerate(files))
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def _ours(media: Path, out: Path, cores: int) -> None:
    command = [sys.executable, "-m", "datasets.prepare", "manifest", "--root", str(media)]
    more = ["--out", str(out), "--workers", str(cores)]
    subprocess.run([*command, *more], check=True, capture_output=True)
    shutil.rmtree(out)


def _a_process_a_file(files: list[Path], cores: int) -> None:
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda f: subprocess.run([*FFMPEG, "-i", f, "-f", "null", "-"]), files))


def _a_process_a_core(files: list[Path], cores: int, folder: Path) -> None:
    running = []
    for core in range(cores):
        listed = folder / f"list-{core}.txt"
        listed.write_text("".join(f"file '{f}'\n" for f in files[core::cores]))
        source = ("-f", "concat", "-safe", "0", "-i", str(listed))
        running.append(subprocess.Popen([*FFMPEG, *source, "-f", "null", "-"]))
    for process in running:
        process.wait()


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
    """On the wall, and of processor time in all processes that were started."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(name: str, files: list[Path], pictures: bool, repeats: int, folder: Path) -> str:
    """Three rows of the table: medians, taken in turn."""
    cores = len(os.sched_getaffinity(0))
    _manifest(files, pictures, files[0].parent)
    some = files[:FILES]
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "prepare": (len(files), partial(_ours, files[0].parent, folder / "shards", cores)),
        "ffmpeg, a process a file": (len(some), partial(_a_process_a_file, some, cores)),
        "ffmpeg, a process a core": (len(files), partial(_a_process_a_core, files, cores, folder)),
    }
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in runs}
    for _ in range(repeats):
        for kind, (clips, run) in runs.items():
            wall, busy = _seconds(run)
            taken[kind].append((clips / wall, clips / busy))
    rows, ours = [], [0.0, 0.0]
    for kind, found in taken.items():
        rates = [statistics.median(column) for column in zip(*found, strict=True)]
        ours = rates if kind == "prepare" else ours
        ratios = [f"{mine / rate:.2f}" for mine, rate in zip(ours, rates, strict=True)]
        rows.append(
            f"| {name} ({len(files)}) | {kind} | {rates[0]:.1f} | {ratios[0]} | {rates[1]:.1f} | {ratios[1]} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Prints a row for each set of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, default=os.environ.get("EMOTION_CORPORA"))
    parser.add_argument("--repeats", type=int, default=3, help="measurements; the median counts")
    options = parser.parse_args()
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    print(f"{machine()}; {' '.join(version.stdout.split()[:3])}")
    print("| clips | | clips/s | ours / it | clips/s of processor time | ours / it |")
    print("|---|---|---|---|---|---|")
    for name, (pattern, copies, pictures) in SETS.items():
        files = sorted(Path(options.corpora).glob(pattern)) if options.corpora else []
        if files:
            with scratch() as folder:
                made = _copies(files, copies, Path(folder) / "media")
                print(compare(name, made, pictures, options.repeats, Path(folder)), flush=True)
    if not options.corpora:
        with scratch() as folder:
            corpus = load_synthetic(Path(folder) / "media", speakers=8, repetitions=4)
            files = [record.audio for record in corpus.clips if record.audio]
            print(compare("synthetic audio", files, False, options.repeats, Path(folder)))


if __name__ == "__main__":
    main()
