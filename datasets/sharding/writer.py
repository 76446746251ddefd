"""Writes a corpus's shards and index: decoded once, on all cores, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from datasets.clips import ClipRecord, Corpus, DataError, Skipped
from datasets.media.audio import read_audio
from datasets.media.containers import MediaError, decode_with_threads
from datasets.media.crop import CENTRE, Crop
from datasets.media.faces import open_finder
from datasets.media.probe import measure_sources
from datasets.media.video import take_frames
from datasets.sharding.index import (
    FILE_NAME,
    ClipEntry,
    ShardEntry,
    ShardIndex,
    read_index,
    write_index,
)
from datasets.sharding.stream import Sample, content_hashes, content_sizes, encode_clip
from datasets.sharding.worker_pool import Job, Marker, run_jobs
from datasets.storage.atomic import write_atomically, written_whole

_PROGRESS_FOLDER = ".prepare"
# What a clip may take, and from how much work on all cores are worth their start of about a second.
_SECONDS_OF_SOUND, _SECONDS_OF_PICTURES, _PARALLEL_FROM_SECONDS = 0.003, 0.06, 2.5
_MOST_DEATHS = 40
"""Most deaths of worker processes in one call: beyond it, the clips are not what is broken."""


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Settings of the shards' content.

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
        """Return what the shards depend on: of a face model its content, not where it lies."""
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
    lock = FileLock(str(out / _PROGRESS_FOLDER / "lock"))
    try:
        with lock.acquire(timeout=0):
            _remove_partial_files(out)  # of a process that was killed
            try:
                _write_shards(corpus, out, settings, workers, on_progress)
            except OSError:
                _remove_partial_files(out)  # of workers that were ended when one could not write
                raise
            write_index(_merge(corpus, settings, out), out)
            shutil.rmtree(out / _PROGRESS_FOLDER)
    except Timeout:
        raise DataError(f"Another process is preparing '{out}'. Wait for it.") from None
    except OSError as error:
        raise DataError(f"Cannot write to '{out}': {error.strerror or error}.") from error
    return read_index(out)


def _remove_partial_files(out: Path) -> None:
    progress = out / _PROGRESS_FOLDER
    for partial in (*progress.glob("*.partial"), *out.glob(f"{FILE_NAME}.*.partial")):
        partial.unlink(missing_ok=True)


def _write_shards(
    corpus: Corpus,
    out: Path,
    settings: ShardSettings,
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Every shard that is not there yet, and its report."""
    parts = _deal(corpus, settings.clips_per_shard)
    deaths = _Deaths(out, parts)
    todo = [number for number in range(len(parts)) if _report(out, number) is None]
    done = len(corpus.clips) - sum(len(parts[number]) for number in todo)
    furthest = done

    def tell(current: int) -> None:
        nonlocal furthest  # a shard may begin anew
        furthest = max(furthest, done + current)
        if on_progress:
            on_progress(furthest, len(corpus.clips))

    if done:
        tell(0)
    count = min(workers or _default_workers(corpus), max(1, len(todo)))
    # Where a process died a second one may: then it had better not be this one.
    if count == 1 and not deaths.found_at_start:
        for number in todo:
            _write_shard(number, parts[number], out, settings, deaths.culprits(number), tell)
            done += len(parts[number])
            tell(0)
        return
    jobs = (
        Job(
            name=_shard_name(number),
            arguments=(number, parts[number], out, settings, deaths.culprits(number)),
        )
        for number in todo
    )
    running = {_shard_name(number): number for number in todo}
    for ended in run_jobs(_write_shard, jobs, count, deaths.judge):
        if ended is not None:
            done += len(parts[running.pop(ended[0].name)])
        tell(sum(_at(out, name) or 0 for name in list(running)[: 2 * count]))


class _Deaths:
    """Clips at which worker processes died: at the second time they are left out.

    Attributes:
        found_at_start: Whether an earlier call ended, by force or by itself, while it decoded.
    """

    def __init__(self, out: Path, parts: list[list[ClipRecord]]) -> None:
        self.out, self.parts = out, parts
        self._file = out / _PROGRESS_FOLDER / "culprits.json"
        try:
            self._reasons: dict[str, str] = json.loads(self._file.read_text())
        except FileNotFoundError:
            self._reasons = {}
        names = [_shard_name(number) for number in range(len(parts))]
        self.found_at_start = any(_at(out, name) is not None for name in names)
        self._times: Counter[tuple[str, int | None]] = Counter()

    def culprits(self, number: int) -> dict[str, str]:
        """Return clip → why it is left out, of a shard."""
        return {
            r.clip: self._reasons[r.clip] for r in self.parts[number] if r.clip in self._reasons
        }

    def judge(self, job: Job, exit_code: int) -> Job:
        """Return the job in place of one whose process died; raises DataError where there is no hope."""
        number = job.arguments[0]
        item = _at(self.out, job.name)
        self._times[job.name, item] += 1
        record = self.parts[number][item] if item is not None else None
        path = (record.video or record.audio) if record is not None else None
        ended = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        twice = self._times[job.name, item] > 1
        if self._times.total() > _MOST_DEATHS or (twice and record is None):
            where = f", the last at '{path or (record and record.clip)}'" if record else ""
            raise DataError(
                f"{self._times.total()} worker processes died while decoding ({ended}{where}): out of memory, "
                "or killed. Take fewer --workers; the same command takes up where it stopped."
            )
        if twice and record is not None:
            name = f"'{path.name}' " if path else ""
            self._reasons[record.clip] = f"{name}ends the process that decodes it ({ended})"
            write_atomically(self._file, json.dumps(self._reasons).encode())
        return replace(job, arguments=(*job.arguments[:-1], self.culprits(number)))


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def _marker(out: Path, shard: str) -> Path:
    return out / _PROGRESS_FOLDER / f"{shard}.now"


def _at(out: Path, shard: str) -> int | None:
    """Return which of a shard's clips is being decoded, or was when a process died."""
    return Marker.read(_marker(out, shard))


def _report(out: Path, number: int) -> dict[str, Any] | None:
    """Return the report of a whole shard; None if it is not there, or not as it was."""
    name = _shard_name(number)
    try:
        report = json.loads((out / _PROGRESS_FOLDER / f"{name}.json").read_text())
        whole = (out / name).stat().st_size == report["shard"]["bytes"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return dict(report) if whole else None


def _deal(corpus: Corpus, clips_per_shard: int) -> list[list[ClipRecord]]:
    """Mixes the clips, so that no shard holds one speaker or class alone."""
    order = np.random.default_rng(0).permutation(len(corpus.clips))
    count = max(1, -(-len(order) // clips_per_shard))
    return [[corpus.clips[i] for i in part] for part in np.array_split(order, count)]


def _default_workers(corpus: Corpus) -> int:
    sound = sum(record.audio is not None for record in corpus.clips)
    pictures = sum(record.video is not None for record in corpus.clips)
    work_seconds = sound * _SECONDS_OF_SOUND + pictures * _SECONDS_OF_PICTURES
    return len(os.sched_getaffinity(0)) if work_seconds > _PARALLEL_FROM_SECONDS else 1


def _claim_folder(corpus: Corpus, out: Path, settings: ShardSettings) -> None:
    names = [
        [r.clip, str(r.audio), str(r.video), r.label, r.speaker]
        + [str(extra) for extra in (r.saliency, r.audio_part, r.video_part, r.votes) if extra]
        for r in corpus.clips
    ]
    digest = hashlib.sha256(json.dumps([settings.identity(), names]).encode())
    for record in corpus.clips:
        for array in (record.features, record.trace):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
    identity = digest.hexdigest()
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
        write_atomically(claim, identity.encode())
    except OSError as error:
        raise DataError(f"Cannot write to '{out}': {error.strerror or error}.") from error


def _write_shard(
    number: int,
    records: list[ClipRecord],
    out: Path,
    settings: ShardSettings,
    culprits: dict[str, str],
    on_clip: Callable[[int], None] | None = None,
) -> None:
    """Writes one shard and its report; `culprits` (clip → why) are left out, `on_clip` hears how many are done."""
    name = _shard_name(number)
    progress = out / _PROGRESS_FOLDER
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    faceless: list[str] = []
    told = time.monotonic()
    decode_with_threads(1)  # shards are written side by side, and are the same on every machine
    try:
        with (
            written_whole(out / name, partial_in=progress) as file,
            _Tar(file) as tar,
            Marker(_marker(out, name)) as marker,
        ):
            for position, record in enumerate(records):
                marker.at(position)
                if on_clip and time.monotonic() > told + 0.5:
                    on_clip(position)
                    told = time.monotonic()
                try:
                    if record.clip in culprits:
                        raise MediaError(culprits[record.clip])
                    sample = decode_record(record, settings)
                except MediaError as error:
                    skipped.append({"clip": record.clip, "reason": str(error)})
                    continue
                if sample.get("face") is False:
                    faceless.append(record.clip)
                key = f"{number:05d}{position:05d}"
                tar.write(encode_clip(key, sample, settings.sample_rate_hz))
                entries.append(asdict(_entry(record, sample, name)))
    finally:
        decode_with_threads(0)
    shard = asdict(ShardEntry(name, len(entries), tar.bytes, tar.sha256))
    report = {"shard": shard, "clips": entries, "skipped": skipped, "faceless": faceless}
    write_atomically(progress / f"{name}.json", json.dumps(report).encode())


class _Tar:
    """A tar of clips as WebDataset writes it, without importing torch as WebDataset does.

    Attributes:
        bytes: Length of the file, when it is left.
        sha256: Hash of the file, when it is left.
    """

    def __init__(self, file: io.BufferedRandom) -> None:
        self._file, self.bytes, self.sha256 = file, 0, ""

    def __enter__(self) -> _Tar:
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def write(self, member: dict[str, bytes | str]) -> None:
        """Adds the files of a clip; `__key__` is their name without suffix."""
        key = str(member["__key__"])
        for suffix in sorted(set(member) - {"__key__"}):
            content = member[suffix]
            assert isinstance(content, bytes)
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size, info.mode, info.uname, info.gname = len(content), 0o444, "bigdata", "bigdata"
            self._tar.addfile(info, io.BytesIO(content))
            self._tar.members = []  # type: ignore[attr-defined]  # it would keep them all

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        self._tar.close()
        self.bytes = self._file.tell()
        self._file.seek(0)
        self.sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()


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
    if record.trace is not None:
        sample["trace"] = record.trace
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
        recording=record.recording,
        first_step=record.first_step,
        votes=record.votes,
        **measure_sources(record),
    )


def _merge(corpus: Corpus, settings: ShardSettings, out: Path) -> ShardIndex:
    """The index, from the reports of all shards."""
    clips: list[ClipEntry] = []
    shards: list[ShardEntry] = []
    skipped = list(corpus.skipped)
    faceless: list[str] = []
    for number in range(len(_deal(corpus, settings.clips_per_shard))):
        report = _report(out, number)
        if report is None:
            raise DataError(
                f"'{out / _shard_name(number)}' changed while it was prepared. Run it again."
            )
        clips += (ClipEntry(**clip) for clip in report["clips"])
        skipped += (Skipped(**clip) for clip in report["skipped"])
        faceless += report["faceless"]
        shards += [ShardEntry(**report["shard"])] if report["clips"] else []
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
        shards=tuple(shards),
        skipped=tuple(skipped),
        sample_rate_hz=settings.sample_rate_hz,
        frame_size=settings.frame_size,
        feature_names=corpus.feature_names,
        saliency_maps=corpus.saliency_maps,
        dimensions=corpus.dimensions,
        step_seconds=corpus.step_seconds,
        frame_rate=settings.frame_rate,
        crop=settings.crop,
        faceless=tuple(sorted(faceless)),
    )
