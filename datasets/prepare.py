"""Decodes a corpus once into WebDataset shards: `python -m datasets.prepare CORPUS --root DIR --out DIR`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from datasets.clips import Corpus, DataError
from datasets.corpora import option_types
from datasets.corpora.registry import CORPORA
from datasets.features import MISSING_CHOICES, with_features
from datasets.media.crop import KINDS as CROPS
from datasets.media.crop import Crop
from datasets.media.faces import crop_by, open_finder
from datasets.media.preview import write_preview
from datasets.sharding.index import FILE_NAME, ShardIndex
from datasets.sharding.writer import ShardSettings, prepare


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Decodes a corpus once and writes WebDataset shards and index.json. "
        "An interrupted call is taken up where it stopped.",
        epilog="Options of a corpus: python -m datasets.prepare CORPUS --help",
    )
    commands = parser.add_subparsers(dest="corpus", required=True, metavar="CORPUS")
    for corpus in CORPORA.values():
        command = commands.add_parser(
            corpus.name, help=corpus.description, description=corpus.description
        )
        _add_common_options(command)
        corpus.add_options(command)
    return parser


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=Path, required=True, help="the corpus: a folder, or a manifest's CSV"
    )
    parser.add_argument("--out", type=Path, help="where the shards go")
    parser.add_argument(
        "--features",
        type=Path,
        help="features such as action units, joined by name: a table with one row a clip or one a frame "
        "(CSV, openSMILE's CSV or ARFF, Parquet, npz), or a folder of files of one clip each (npy too, "
        "and OpenFace's CSV)",
    )
    parser.add_argument(
        "--missing-features",
        choices=list(MISSING_CHOICES),
        default="error",
        help="frames and clips whose features lack a value: an error, or left out and named (skip)",
    )
    parser.add_argument(
        "--sample-rate",
        type=option_types.positive,
        default=16_000,
        metavar="HZ",
        help="audio rate in the shards (default 16000)",
    )
    _add_frame_options(parser)
    parser.add_argument(
        "--clips-per-shard", type=option_types.positive, default=64, help="(default 64)"
    )
    parser.add_argument(
        "--workers",
        type=option_types.positive,
        help="processes (default: one a core where it pays)",
    )


def _add_frame_options(parser: argparse.ArgumentParser) -> None:
    taken = parser.add_mutually_exclusive_group()
    taken.add_argument(
        "--frames",
        type=option_types.positive,
        default=20,
        help="frames taken of a clip's video, evenly spread (default 20; of traces one a step)",
    )
    taken.add_argument(
        "--frame-rate",
        type=option_types.frame_rate,
        default=0.0,
        metavar="HZ",
        help="frames taken of every second instead, so that longer videos have more",
    )
    parser.add_argument(
        "--frame-size",
        type=option_types.frame_size,
        default="60x100",
        metavar="HxW",
        help="frame size in pixels (default %(default)s)",
    )
    parser.add_argument(
        "--crop",
        choices=CROPS,
        default="centre",
        help="what frames show: the picture's centre, or its face (default centre)",
    )
    parser.add_argument(
        "--face-margin",
        type=option_types.margin,
        default=0.3,
        metavar="X",
        help="added on every side of the face, as a share of its size (default 0.3)",
    )
    parser.add_argument(
        "--face-model",
        type=Path,
        metavar="ONNX",
        help="find faces with this YuNet instead of OpenCV's Haar cascade",
    )
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="PNG",
        help="write a contact sheet of up to 24 clips first: the whole picture, and the crop",
    )
    parser.add_argument(
        "--preview-only", action="store_true", help="write that sheet, and no shards"
    )


class _Bar:
    """How many clips are done, how many come a second, and how long the rest will take.

    On a terminal as a bar; elsewhere as a line now and then.
    """

    LINE_SECONDS = 30.0

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        columns = (
            TextColumn("preparing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("clips{task.description}"),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)
        self._started = self._line_at = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Clips done and in all; what an earlier call did counts in no rate."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, min(self._started, now)
        text = pace(done - self._first, total - done, now - self._started)
        self._bar.update(self._task, completed=done, description=text)
        if not self._console.is_terminal and now > self._line_at + self.LINE_SECONDS:
            self._line_at = now
            self._console.print(f"prepared {done} of {total} clips{text}", soft_wrap=True)


def pace(done: int, left: int, seconds: float) -> str:
    """Such as `, 812/s, 0:02:04 left`; nothing before there is a rate."""
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    left_seconds = round(left / rate)
    clock = f"{left_seconds // 3600}:{left_seconds // 60 % 60:02d}:{left_seconds % 60:02d}"
    return f", {rate:.3g}/s, {clock} left" if rate < 100 else f", {rate:.0f}/s, {clock} left"


def _print_summary(index: ShardIndex, out: Path) -> None:
    summary = index.summary()
    print(
        f"{summary['clips']} clips of {len(summary['per_speaker'])} speakers "
        f"in {len(index.shards)} shards: {out}"
    )
    if index.labels:
        counts = (f"{label} {summary['per_class'].get(label, 0)}" for label in index.labels)
        print(f"classes: {', '.join(counts)}")
    if index.dimensions:
        print(
            f"traces of {', '.join(index.dimensions)} every {index.step_seconds * 1000:g} ms, of "
            f"{len({entry.recording for entry in index.clips})} recordings"
        )
    print(
        "with "
        + ", ".join(f"{kind} {count}" for kind, count in summary["with"].items())
        + ("; video with saliency maps" if index.saliency_maps else "")
    )
    if line := index.faces_found():
        print(line)
    for group in summary["exact_duplicates"]:
        print(f"same recording: {' = '.join(group)}")
    if index.skipped:
        print(
            f"skipped {len(index.skipped)} (all in {FILE_NAME}): "
            + "; ".join(f"{s.clip}: {s.reason}" for s in index.skipped[:3])
        )


def _load(options: argparse.Namespace) -> Corpus:
    registered = CORPORA[options.corpus]
    try:
        corpus = registered.load(options)
        if registered.reads_features or not options.features:
            return corpus
        return with_features(corpus, options.features, missing=options.missing_features)
    except OSError as error:
        where = error.filename or options.root
        raise DataError(f"Cannot read '{where}': {error.strerror or error}.") from error


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        print(
            f"error: Unknown option '{unknown[0]}' of the corpus {options.corpus}. "
            f"Known: python -m datasets.prepare {options.corpus} --help",
            file=sys.stderr,
        )
        sys.exit(2)
    if options.preview_only and not options.preview:
        parser.error("--preview-only goes with --preview")
    if not options.out and not options.preview_only:
        parser.error("the following arguments are required: --out")
    return options


def _settings(options: argparse.Namespace, corpus: Corpus, crop: Crop) -> ShardSettings:
    steps = max(0 if record.trace is None else len(record.trace) for record in corpus.clips)
    return ShardSettings(
        sample_rate_hz=options.sample_rate,
        frames=options.frames or steps,
        frame_size=options.frame_size,
        clips_per_shard=options.clips_per_shard,
        frame_rate=options.frame_rate,
        crop=crop,
        face_model=options.face_model,
    )


def _preview(corpus: Corpus, path: Path, settings: ShardSettings) -> str:
    return write_preview(
        corpus,
        path,
        count=settings.frames,
        size=settings.frame_size,
        rate_hz=settings.frame_rate,
        faces=open_finder(settings.crop, settings.face_model),
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse → load → prepare → report."""
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        crop = crop_by(options.crop, options.face_margin, options.face_model)
        corpus = _load(options)
        settings = _settings(options, corpus, crop)
        if options.preview:
            with console.status("drawing the preview"):
                print(_preview(corpus, options.preview, settings))
        if options.preview_only:
            return 0
        with _Bar(console, len(corpus.clips)) as bar:
            index = prepare(
                corpus, options.out, settings, workers=options.workers, on_progress=bar.show
            )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command takes up where it stopped.", file=sys.stderr)
        return 130
    _print_summary(index, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
