"""Decodes a corpus once into WebDataset shards: `python -m datasets.prepare CORPUS --root DIR --out DIR`."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datasets.clips import ClipRecord, Corpus, DataError, Skipped
from datasets.crema_d import TARGETS, load_crema_d
from datasets.crop import CENTRE, MOST_MARGIN, Crop
from datasets.crop import KINDS as CROPS
from datasets.faces import crop_by, open_finder
from datasets.features import with_features
from datasets.iemocap import CLASSES as IEMOCAP_CLASSES
from datasets.iemocap import load_iemocap
from datasets.index import FILE_NAME, ClipEntry, ShardEntry, ShardIndex, read_index, write_index
from datasets.manifest import load_manifest
from datasets.media import MediaError, read_audio, take_frames
from datasets.preview import write_preview
from datasets.ravdess import load_ravdess
from datasets.stream import Sample, content_hashes, content_sizes, encode_clip
from datasets.synthetic import load_synthetic

_PROGRESS_FOLDER = ".prepare"
# Below this many clips the start of worker processes costs more than it saves.
_PARALLEL_FROM_CLIPS = 400
_MOST_FRAME_RATE = 100.0


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What the shards hold.

    Attributes:
        sample_rate_hz: Audio is resampled to it.
        frames: V, frames taken of every video.
        frame_size: (H, W) in pixels.
        clips_per_shard: Clips in a tar.
        frame_rate: Frames taken of every second of a video instead; 0 for V of each.
        crop: Which part of the pictures they show.
        face_model: YuNet's ONNX file, where it finds the faces.
    """

    sample_rate_hz: int = 16_000
    frames: int = 20
    frame_size: tuple[int, int] = (60, 100)
    clips_per_shard: int = 64
    frame_rate: float = 0.0
    crop: Crop = CENTRE
    face_model: Path | None = None

    def identity(self) -> dict[str, Any]:
        """What the shards depend on: of a face model its content, not where it lies."""
        named = {name: value for name, value in asdict(self).items() if name != "face_model"}
        return {**named, "crop": self.crop.to_json()}


def prepare(
    corpus: Corpus,
    out: Path,
    settings: ShardSettings | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardIndex:
    """Writes a corpus's shards and index; takes up where an interrupted call stopped.

    A shard appears under its name only when it is whole, and the index only when every
    shard is there. Media that cannot be read is left out and named in the index.

    Args:
        corpus: What to decode.
        out: The shards' folder; must be empty, absent, or an interrupted preparation of
            the same corpus with the same settings.
        settings: What the shards hold.
        workers: Processes; by default one a core for corpora that are worth it.
        on_progress: Called with clips done and clips in all.

    Raises:
        DataError: If `out` holds something else or cannot be written, or if nothing of the
            corpus could be read.
    """
    settings = settings or ShardSettings()
    _claim_folder(corpus, out, settings)
    parts = _deal(corpus, settings.clips_per_shard)
    jobs = [(number, part, out, settings) for number, part in enumerate(parts)]
    total = len(corpus.clips)
    reports: dict[int, dict[str, Any]] = {}
    try:
        for number, report in _run(jobs, workers or _default_workers(total)):
            reports[number] = report
            if on_progress:
                on_progress(sum(len(parts[n]) for n in reports), total)
    except OSError as error:
        raise DataError(f"Cannot write to '{out}': {error.strerror or error}.") from error
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process died while decoding (out of memory, or killed). "
            "Run the same command again: it takes up where it stopped."
        ) from error
    index = _merge(corpus, settings, [reports[n] for n in sorted(reports)], out)
    write_index(index, out)
    shutil.rmtree(out / _PROGRESS_FOLDER)
    return read_index(out)


def _deal(corpus: Corpus, clips_per_shard: int) -> list[list[ClipRecord]]:
    """Mixes the clips, so that no shard holds one speaker or class alone."""
    order = np.random.default_rng(0).permutation(len(corpus.clips))
    count = max(1, -(-len(order) // clips_per_shard))
    return [[corpus.clips[i] for i in part] for part in np.array_split(order, count)]


def _default_workers(clips: int) -> int:
    return len(os.sched_getaffinity(0)) if clips >= _PARALLEL_FROM_CLIPS else 1


def _claim_folder(corpus: Corpus, out: Path, settings: ShardSettings) -> None:
    names = [
        [r.clip, str(r.audio), str(r.video), r.label, r.speaker]
        + [str(extra) for extra in (r.saliency, r.audio_part, r.video_part) if extra]
        for r in corpus.clips
    ]
    features = b"".join(r.features.tobytes() for r in corpus.clips if r.features is not None)
    identity = hashlib.sha256(
        json.dumps([settings.identity(), names]).encode() + features
    ).hexdigest()
    claim = out / _PROGRESS_FOLDER / "corpus.txt"
    try:
        if (out / FILE_NAME).exists():
            raise DataError(
                f"'{out}' already holds prepared shards. Name another --out, or remove it."
            )
        if claim.exists() and claim.read_text() != identity:
            raise DataError(
                f"'{out}' holds an unfinished preparation of another corpus or with other "
                "settings. Name another --out, or remove it."
            )
        names_there = {path.name for path in out.iterdir()} if out.exists() else set()
        if not claim.exists() and names_there - {_PROGRESS_FOLDER}:
            raise DataError(f"'{out}' is not empty. Name another --out.")
        claim.parent.mkdir(parents=True, exist_ok=True)
        partial = claim.with_suffix(".partial")
        partial.write_text(identity)
        partial.replace(claim)
    except OSError as error:
        raise DataError(f"Cannot write to '{out}': {error.strerror or error}.") from error


def _run(
    jobs: list[tuple[int, list[ClipRecord], Path, ShardSettings]], workers: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield job[0], _write_shard(*job)
        return
    # Spawned: forking a process whose libraries run threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures = {pool.submit(_write_shard, *job): job[0] for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_shard(
    number: int, records: list[ClipRecord], out: Path, settings: ShardSettings
) -> dict[str, Any]:
    """Writes one shard and its report, unless an earlier call already did."""
    name = f"shard-{number:05d}.tar"
    report_path = out / _PROGRESS_FOLDER / f"{name}.json"
    if report_path.exists():
        return dict(json.loads(report_path.read_text()))
    partial = out / f"{name}.partial"
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    faceless: list[str] = []
    with partial.open("wb") as file:
        with wds.TarWriter(file, encoder=False, mtime=0.0) as writer:
            for position, record in enumerate(records):
                try:
                    sample = decode_record(record, settings)
                except MediaError as error:
                    skipped.append({"clip": record.clip, "reason": str(error)})
                    continue
                if sample.get("face") is False:
                    faceless.append(record.clip)
                key = f"{number:05d}{position:05d}"
                writer.write(encode_clip(key, sample, settings.sample_rate_hz))
                entries.append(asdict(_entry(record, sample, name)))
        file.flush()
        os.fsync(file.fileno())
    with partial.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = partial.stat().st_size
    partial.replace(out / name)
    shard = asdict(ShardEntry(name, len(entries), size, sha256))
    report = {"shard": shard, "clips": entries, "skipped": skipped, "faceless": faceless}
    partial_report = report_path.with_suffix(".partial")
    partial_report.write_text(json.dumps(report))
    partial_report.replace(report_path)
    return report


def decode_record(record: ClipRecord, settings: ShardSettings) -> Sample:
    """Decodes what a record names; `face` says whether one was found, where it was looked for.

    Raises:
        MediaError: Names the file that cannot be read.
    """
    sample: Sample = {"clip": record.clip}
    if record.audio is not None:
        with _naming(record.audio):
            sample["audio"] = read_audio(record.audio, settings.sample_rate_hz, record.audio_part)
    if record.video is not None:
        with _naming(record.video):
            taken = take_frames(
                record.video,
                settings.frames,
                settings.frame_size,
                saliency=record.saliency,
                part=record.video_part,
                rate_hz=settings.frame_rate,
                faces=open_finder(settings.crop, settings.face_model),
            )
            sample["video"] = taken.frames
            if taken.face is not None:
                sample["face"] = taken.face
    if record.features is not None:
        sample["features"] = record.features
    if len(sample) == 1:
        raise MediaError("has neither audio, video nor features")
    return sample


class _naming:
    """Puts the file's name in front of a MediaError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MediaError):
            raise MediaError(f"'{self.path.name}' {error}") from error


def _entry(record: ClipRecord, sample: Sample, shard: str) -> ClipEntry:
    content_hash, audio_hash = content_hashes(sample)
    return ClipEntry(
        clip=record.clip,
        speaker=record.speaker,
        label=record.label,
        shard=shard,
        **content_sizes(sample),
        content_hash=content_hash,
        audio_hash=audio_hash,
        attributes=record.attributes,
    )


def _merge(
    corpus: Corpus, settings: ShardSettings, reports: list[dict[str, Any]], out: Path
) -> ShardIndex:
    clips = [ClipEntry(**clip) for report in reports for clip in report["clips"]]
    skipped = (*corpus.skipped, *(Skipped(**s) for report in reports for s in report["skipped"]))
    if not clips:
        # Nothing to take up: the same command tries again once the media are mended.
        for shard in out.glob("shard-*.tar"):
            shard.unlink()
        shutil.rmtree(out / _PROGRESS_FOLDER)
        reasons = "; ".join(f"{s.clip}: {s.reason}" for s in skipped[:3])
        raise DataError(f"None of the {len(corpus.clips)} clips could be read. First: {reasons}")
    return ShardIndex(
        root=str(out),
        corpus=corpus.name,
        labels=corpus.labels,
        clips=tuple(sorted(clips, key=lambda entry: entry.clip)),
        shards=tuple(ShardEntry(**report["shard"]) for report in reports if report["clips"]),
        skipped=skipped,
        sample_rate_hz=settings.sample_rate_hz,
        frame_size=settings.frame_size,
        feature_names=corpus.feature_names,
        saliency_maps=corpus.saliency_maps,
        frame_rate=settings.frame_rate,
        crop=settings.crop,
        faceless=tuple(sorted(clip for report in reports for clip in report["faceless"])),
    )


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
        "corpus", choices=["ravdess", "iemocap", "crema_d", "manifest", "synthetic"]
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
        help="a CSV of features such as action units, joined by name, one row "
        "a clip (clip,NAME,…) or one a frame (clip,frame,NAME,…); or a folder of OpenFace's CSV files",
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
        "--workers", type=_positive, help="processes (default: one a core for 400 clips or more)"
    )
    return parser


def _add_options_of_pictures(parser: argparse.ArgumentParser) -> None:
    taken = parser.add_mutually_exclusive_group()
    taken.add_argument(
        "--frames",
        type=_positive,
        default=20,
        help="frames taken of a video, evenly spread (default 20)",
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
        default=(60, 100),
        metavar="HxW",
        help="frame size in pixels (default 60x100)",
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
        "--speakers", type=_positive, default=12, help="synthetic: speakers (default 12)"
    )
    parser.add_argument(
        "--repetitions",
        type=_positive,
        default=3,
        help="synthetic: clips per speaker and emotion (default 3)",
    )
    parser.add_argument("--seed", type=int, default=0, help="synthetic: seed (default 0)")


def _print_summary(index: ShardIndex, out: Path) -> None:
    summary = index.summary()
    print(
        f"{summary['clips']} clips of {len(summary['per_speaker'])} speakers "
        f"in {len(index.shards)} shards: {out}"
    )
    print(
        "classes: "
        + ", ".join(f"{label} {summary['per_class'].get(label, 0)}" for label in index.labels)
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
    root, features = options.root, options.features
    if options.corpus == "ravdess":
        return load_ravdess(root, features=features, song=options.song)
    if options.corpus == "iemocap":
        merge = not options.keep_excited
        corpus = load_iemocap(root, classes=options.classes, merge_excited=merge, part=options.part)
        return with_features(corpus, features) if features else corpus
    if options.corpus == "crema_d":
        corpus = load_crema_d(root, target=options.target)
        return with_features(corpus, features) if features else corpus
    if options.corpus == "manifest":
        return load_manifest(root, features=features)
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
        settings = ShardSettings(
            sample_rate_hz=options.sample_rate,
            frames=options.frames,
            frame_size=options.frame_size,
            clips_per_shard=options.clips_per_shard,
            frame_rate=options.frame_rate,
            crop=crop_by(options.crop, options.face_margin, options.face_model),
            face_model=options.face_model,
        )
        corpus = _load(options)
        if options.preview:
            with console.status("drawing the preview"):
                print(_preview(corpus, options.preview, settings))
        if options.preview_only:
            return 0
        with Progress(
            TextColumn("preparing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("clips"),
            TimeRemainingColumn(),
            console=console,
        ) as bar:
            task = bar.add_task("", total=len(corpus.clips))
            index = prepare(
                corpus,
                options.out,
                settings,
                workers=options.workers,
                on_progress=lambda done, _: bar.update(task, completed=done),
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
