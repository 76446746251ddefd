"""Decodes a corpus once into WebDataset shards: `python -m datasets.prepare CORPUS --root DIR --out DIR`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from datasets.clips import Corpus, DataError
from datasets.corpora.crema_d import TARGETS, load_crema_d
from datasets.corpora.iemocap import CLASSES as IEMOCAP_CLASSES
from datasets.corpora.iemocap import load_iemocap
from datasets.corpora.manifest import load_manifest
from datasets.corpora.ravdess import load_ravdess
from datasets.corpora.recola import GOLDS, STEP_SECONDS, WINDOW_SECONDS, load_recola
from datasets.features import MISSING_CHOICES, with_features
from datasets.media.crop import KINDS as CROPS
from datasets.media.crop import MOST_MARGIN
from datasets.media.faces import crop_by, open_finder
from datasets.media.preview import write_preview
from datasets.rater_votes import TIES
from datasets.sharding.index import FILE_NAME, ShardIndex
from datasets.sharding.writer import ShardSettings, prepare

_MOST_FRAME_RATE = 100.0


def _frame_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 60x100, got '{text}'")
    return int(height), int(width)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got '{text}'")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST_MARGIN:
        raise argparse.ArgumentTypeError(f"expected 0 to {MOST_MARGIN:g}, got '{text}'")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MOST_FRAME_RATE:
        raise argparse.ArgumentTypeError(f"expected up to {_MOST_FRAME_RATE:g}, got '{text}'")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Decodes a corpus once and writes WebDataset shards and index.json. "
        "An interrupted call is taken up where it stopped.",
    )
    parser.add_argument(
        "corpus",
        choices=[
            "ravdess",
            "iemocap",
            "recola",
            "crema_d",
            "manifest",
            "synthetic",
            "synthetic_traces",
        ],
    )
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        help="the corpus as you have it: a folder (manifest: a folder with manifest.csv, or a CSV)",
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
    _add_options_of_one_corpus(parser)
    parser.add_argument(
        "--sample-rate",
        type=_positive,
        default=16_000,
        metavar="HZ",
        help="audio rate in the shards (default 16000)",
    )
    _add_options_of_pictures(parser)
    parser.add_argument("--clips-per-shard", type=_positive, default=64, help="(default 64)")
    parser.add_argument(
        "--workers", type=_positive, help="processes (default: one a core where it pays)"
    )
    return parser


def _add_options_of_pictures(parser: argparse.ArgumentParser) -> None:
    taken = parser.add_mutually_exclusive_group()
    taken.add_argument(
        "--frames",
        type=_positive,
        help="frames taken of a clip's video, evenly spread (default 20; recola: one a step)",
    )
    taken.add_argument(
        "--frame-rate",
        type=_rate,
        default=0.0,
        metavar="HZ",
        help="frames taken of every second instead, so that longer videos have more",
    )
    parser.add_argument(
        "--frame-size",
        type=_frame_size,
        metavar="HxW",
        help="frame size in pixels (default 60x100; recola: 96x96)",
    )
    parser.add_argument(
        "--crop",
        choices=CROPS,
        default="centre",
        help="what frames show: the picture's centre, or its face (default centre)",
    )
    parser.add_argument(
        "--face-margin",
        type=_share,
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


def _add_options_of_one_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--song", action="store_true", help="ravdess: the sung clips instead of the spoken ones"
    )
    parser.add_argument(
        "--classes",
        choices=list(IEMOCAP_CLASSES),
        default="4",
        help="iemocap: angry, happy, neutral, sad; three without happy; or all (default 4)",
    )
    parser.add_argument(
        "--keep-excited",
        action="store_true",
        help="iemocap: excited turns are not taken as happy ones",
    )
    parser.add_argument(
        "--part",
        choices=["impro", "script", "all"],
        default="all",
        help="iemocap: improvised or scripted dialogues alone (default all)",
    )
    parser.add_argument(
        "--target",
        choices=list(TARGETS),
        default="intended",
        help="crema_d: the emotion that the actor meant, or what most said who heard (voice), "
        "saw (face), or heard and saw it (both)",
    )
    parser.add_argument(
        "--ties",
        choices=list(TIES),
        help="manifest, crema_d: clips whose raters agree on no emotion: an error (manifest's default), left out "
        "and named (drop; crema_d's), or kept under the first named (soft; for search.run --soft-labels)",
    )
    parser.add_argument(
        "--gold",
        choices=list(GOLDS),
        default="ccc",
        help="recola: raters weighted by how well they agree with the others, or alike (default ccc)",
    )
    parser.add_argument(
        "--window",
        type=float,
        default=WINDOW_SECONDS,
        metavar="SECONDS",
        help="recola: a clip's length (default 6)",
    )
    parser.add_argument(
        "--hop",
        type=float,
        metavar="SECONDS",
        help="recola: from a clip's start to the next one's (default: the window)",
    )
    parser.add_argument(
        "--speakers",
        type=_positive,
        default=12,
        help="synthetic, synthetic_traces: speakers (default 12)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=1.0,
        help="synthetic_traces: of each recording (default 1)",
    )
    parser.add_argument(
        "--repetitions",
        type=_positive,
        default=3,
        help="synthetic: clips per speaker and emotion (default 3)",
    )
    parser.add_argument("--seed", type=int, default=0, help="synthetic corpora: seed (default 0)")


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
    root, features, missing = options.root, options.features, options.missing_features
    if options.corpus == "ravdess":
        song = options.song
        return load_ravdess(root, features=features, song=song, missing_features=missing)
    if options.corpus == "iemocap":
        merge = not options.keep_excited
        corpus = load_iemocap(root, classes=options.classes, merge_excited=merge, part=options.part)
        return with_features(corpus, features, missing=missing) if features else corpus
    if options.corpus == "crema_d":
        corpus = load_crema_d(root, target=options.target, ties=options.ties or "drop")
        return with_features(corpus, features, missing=missing) if features else corpus
    if options.corpus in ("recola", "synthetic_traces"):
        if options.corpus == "synthetic_traces":
            from datasets.corpora.synthetic_traces import make_synthetic_traces

            make_synthetic_traces(
                root, speakers=options.speakers, minutes=options.minutes, seed=options.seed
            )
        corpus = load_recola(
            root, gold=options.gold, window_seconds=options.window, hop_seconds=options.hop
        )
        return with_features(corpus, features, missing=missing) if features else corpus
    if options.corpus == "manifest":
        ties = options.ties or "error"
        return load_manifest(root, features=features, missing_features=missing, ties=ties)
    from datasets.corpora.synthetic import (
        load_synthetic,  # half a second, which no worker should spend
    )

    if features:
        raise DataError("The synthetic corpus has features of its own; leave out --features.")
    return load_synthetic(
        root, speakers=options.speakers, repetitions=options.repetitions, seed=options.seed
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.preview_only and not options.preview:
        parser.error("--preview-only goes with --preview")
    if not options.out and not options.preview_only:
        parser.error("the following arguments are required: --out")
    return options


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
        try:
            corpus = _load(options)
        except OSError as error:
            where = error.filename or options.root
            raise DataError(f"Cannot read '{where}': {error.strerror or error}.") from error
        over_time, steps = bool(corpus.dimensions), round(options.window / STEP_SECONDS)
        settings = ShardSettings(
            sample_rate_hz=options.sample_rate,
            frames=options.frames or (steps if over_time else 20),
            frame_size=options.frame_size or ((96, 96) if over_time else (60, 100)),
            clips_per_shard=options.clips_per_shard,
            frame_rate=options.frame_rate,
            crop=crop,
            face_model=options.face_model,
        )
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
