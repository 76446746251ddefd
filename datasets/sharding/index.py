"""`index.json`: what a folder of shards holds. Written by `prepare`, read by everyone else."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from datasets.clips import DataError, Skipped
from datasets.media.crop import CENTRE, Crop
from datasets.storage.atomic import written_whole
from datasets.storage.retrying import open_resuming
from datasets.storage.synced_folder import OutsideError, below

FORMAT_VERSION = 1
FILE_NAME = "index.json"
_NAMED = 10
"""Clips that a line names."""
KINDS = ("audio", "video", "features", "feature_sequence")
"""Kinds of content of a clip. Features that come frame by frame count twice: their means too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipEntry:
    """One clip in the shards.

    Attributes:
        shard: The tar it lies in.
        samples: L, audio samples (0: no audio).
        frames: V, video frames (0: no video).
        features: F, features (0: none).
        content_hash: SHA-256 over the decoded samples, frames and features.
        audio_hash: SHA-256 over the decoded samples alone (finds the same recording twice).
        feature_steps: S, frames that the features come of (0: one row for the clip).
        trace_steps: S, steps of its trace (0: none).
        recording: Of which a clip with a trace is a window.
        first_step: Where in the recording its trace begins.
        votes: Label → share of its raters; empty where there is one label alone.
        video_seconds: How long the source's pictures last (0: unknown).
        source_rate_hz: Of the sound, before it was resampled (0: unknown).
    """

    clip: str
    speaker: str
    label: str
    shard: str
    samples: int
    frames: int
    features: int
    content_hash: str
    audio_hash: str
    attributes: dict[str, str] = field(default_factory=dict)
    feature_steps: int = 0
    trace_steps: int = 0
    recording: str = ""
    first_step: int = 0
    votes: dict[str, float] = field(default_factory=dict)
    video_seconds: float = 0.0
    source_rate_hz: int = 0


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One tar file."""

    name: str
    clips: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """A corpus that was joined with others, or mapped to other labels: `datasets.join`.

    Attributes:
        checksum: Of its own index.
        label_map: What its labels became; empty where they stayed.
    """

    corpus: str
    checksum: str
    label_map: str


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """A prepared corpus.

    Attributes:
        root: Folder or URL of the shards; not stored in the file.
        checksum: SHA-256 of the index file; a cache filled from another one is stale.
        frame_size: (H, W) of the video frames.
        part: Whose clips these are: (worker, of how many). `shards` are always all.
        saliency_maps: Whether frames have a fourth channel, a saliency map.
        dimensions: (D,) names of what traces tell, empty without any.
        step_seconds: From one step of a trace to the next.
        frame_rate: Frames taken of every second of a video; 0 where every video gave as many.
        crop: Which part of the pictures the frames show.
        faceless: Clips in whose pictures no face was found, if looked for: frames of the centre.
        sources: What it was joined from; empty for a corpus as it was prepared. Then `corpus` is theirs with a
            + between them, a speaker is `CORPUS:SPEAKER`, and clips have an attribute `corpus`.
        left_out: Clips of what was joined that are not of this corpus, since their label maps to nothing;
            the shards may hold them.
    """

    root: str
    corpus: str
    labels: tuple[str, ...]
    clips: tuple[ClipEntry, ...]
    shards: tuple[ShardEntry, ...]
    skipped: tuple[Skipped, ...]
    sample_rate_hz: int
    frame_size: tuple[int, int]
    feature_names: tuple[str, ...]
    checksum: str = ""
    part: tuple[int, int] = (0, 1)
    saliency_maps: bool = False
    dimensions: tuple[str, ...] = ()
    step_seconds: float = 0.0
    frame_rate: float = 0.0
    crop: Crop = CENTRE
    faceless: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    left_out: tuple[Skipped, ...] = ()

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, channels) of the video frames."""
        return (*self.frame_size, 4 if self.saliency_maps else 3)

    def part_of(self, rank: int, count: int) -> ShardIndex:
        """The clips that one of `count` workers streams: WebDataset deals out whole shards.

        Raises:
            DataError: If there are fewer shards than workers.
        """
        if count > len(self.shards):
            raise DataError(
                f"'{self.root}' has {len(self.shards)} shards for {count} workers; each needs one "
                "or more. Prepare smaller shards (--clips-per-shard), or take fewer workers."
            )
        names = {shard.name for shard in self.shards[rank::count]}
        clips = tuple(entry for entry in self.clips if entry.shard in names)
        return replace(self, clips=clips, part=(rank, count))

    def has(self, kind: str) -> int:
        """How many clips have one of KINDS, or a trace."""
        attribute = {
            "audio": "samples",
            "video": "frames",
            "features": "features",
            "feature_sequence": "feature_steps",
            "trace": "trace_steps",
        }[kind]
        return sum(getattr(entry, attribute) > 0 for entry in self.clips)

    def restrict(self, classes: tuple[str, ...]) -> ShardIndex:
        """The same corpus with some of its classes, in the order given.

        Raises:
            DataError: If a class is unknown, is named twice, or fewer than two remain.
        """
        unknown = [name for name in classes if name not in self.labels]
        if unknown:
            raise DataError(f"Unknown class '{unknown[0]}'. Known: {', '.join(self.labels)}.")
        if len(set(classes)) < 2 or len(set(classes)) != len(classes):
            raise DataError(
                f"classes must name two or more different classes, got {','.join(classes)}."
            )
        return replace(
            self, labels=classes, clips=tuple(e for e in self.clips if e.label in classes)
        )

    def duplicates(self) -> list[list[ClipEntry]]:
        """Groups of clips whose decoded sound is the same in every sample; silence does not count.

        Of clips without sound those whose frames (and features) are the same in every pixel; black
        frames do not count.
        """
        groups: dict[str, list[ClipEntry]] = defaultdict(list)
        for entry in self.clips:
            if entry.samples:
                groups[entry.audio_hash].append(entry)
            elif entry.frames:
                groups[entry.content_hash].append(entry)
        return [
            group
            for digest, group in groups.items()
            if len(group) > 1 and digest != self._empty(group[0])
        ]

    def _empty(self, entry: ClipEntry) -> str:
        """The hash of digital silence as long as a clip, or of as many black frames."""
        size = 2 * entry.samples or entry.frames * math.prod(self.frame_shape)
        return hashlib.sha256(bytes(size)).hexdigest()

    def faces_found(self) -> str | None:
        """One line on how many clips show a face, and which do not; None if none was looked for."""
        if not self.crop.of_face:
            return None
        lost = set(self.faceless)
        seen = [entry.clip for entry in self.clips if entry.frames]
        without = [clip for clip in seen if clip in lost]
        named = ", ".join(without[:_NAMED]) + ("…" if len(without) > _NAMED else "")
        rest = f"; centre crop: {named}" if without else ""
        return f"face found in {len(seen) - len(without)} of {len(seen)} clips with video{rest}"

    def summary(self) -> dict[str, Any]:
        """Counts for people; derived from the clips."""
        corpora = Counter(e.attributes["corpus"] for e in self.clips if "corpus" in e.attributes)
        return {
            "clips": len(self.clips),
            "seconds_of_audio": round(sum(e.samples for e in self.clips) / self.sample_rate_hz, 1),
            "per_class": dict(Counter(e.label for e in self.clips)),
            **({"per_corpus": dict(sorted(corpora.items()))} if corpora else {}),
            "per_speaker": dict(sorted(Counter(e.speaker for e in self.clips).items())),
            "with": {kind: self.has(kind) for kind in KINDS},
            "saliency_maps": self.saliency_maps,
            "exact_duplicates": [[e.clip for e in group] for group in self.duplicates()],
        }


def own_name(corpus: str, speaker: str) -> tuple[str, str]:
    """A speaker's own corpus and name there, where `corpus` is joined (`ravdess+crema_d`): else both as they are."""
    own, _, name = speaker.partition(":")
    joined = corpus.split("+")
    return (own, name) if len(joined) > 1 and own in joined else (corpus, speaker)


def write_index(index: ShardIndex, folder: Path) -> None:
    """Writes `index.json` atomically, a clip a line."""
    document = {
        "format_version": FORMAT_VERSION,
        "corpus": index.corpus,
        "labels": index.labels,
        "sample_rate_hz": index.sample_rate_hz,
        "frame_size": index.frame_size,
        "feature_names": index.feature_names,
        "saliency_maps": index.saliency_maps,
        **(
            {"dimensions": index.dimensions, "step_seconds": index.step_seconds}
            if index.dimensions
            else {}
        ),
        "frame_rate": index.frame_rate,
        "crop": index.crop.to_json(),
        "faceless": index.faceless,
        **({"sources": [asdict(s) for s in index.sources]} if index.sources else {}),
        **({"left_out": [asdict(s) for s in index.left_out]} if index.left_out else {}),
        "summary": index.summary(),
        "skipped": [asdict(s) for s in index.skipped],
        "shards": [asdict(s) for s in index.shards],
    }
    names = [column.name for column in fields(ClipEntry)]
    with written_whole(folder / FILE_NAME) as file:
        file.write(json.dumps(document, indent=1).removesuffix("\n}").encode())
        file.write(b',\n "clips": [')
        for number, entry in enumerate(index.clips):
            line = json.dumps(_without_unknown({name: getattr(entry, name) for name in names}))
            file.write(f"{',' if number else ''}\n  {line}".encode())
        file.write(b"\n ]\n}\n")


def _without_unknown(clip: dict[str, Any]) -> dict[str, Any]:
    """A clip's entry without what it has not: there may be a hundred thousand."""
    optional = (
        "votes",
        "video_seconds",
        "source_rate_hz",
        "trace_steps",
        "recording",
        "first_step",
    )
    return {name: value for name, value in clip.items() if value or name not in optional}


def _entry_or_dict(values: dict[str, Any]) -> Any:
    """A clip's values become its entry while the rest is still read: not all are in memory twice."""
    # Attributes, which may be called anything, are never called clip.
    return ClipEntry(**values) if {"clip", "content_hash"} <= set(values) else values


def _require_entry(value: object) -> ClipEntry:
    if not isinstance(value, ClipEntry):
        raise TypeError(f"{str(value)[:80]} is no clip")
    return value


def _inside(shard: ShardEntry, location: str) -> ShardEntry:
    """The shard, which is read, and copied, by its name; raises OutsideError."""
    below(Path(location), shard.name, f"{location}/{FILE_NAME}")
    return shard


def read_index(root: str | Path) -> ShardIndex:
    """Reads the index of a prepared corpus.

    Args:
        root: A folder, or a URL that fsspec opens (s3://, gs://, https://).

    Raises:
        DataError: If there is none, it is of another format version, it is damaged, or it names
            shards outside its folder.
    """
    location = str(root).rstrip("/")
    try:
        with open_resuming(f"{location}/{FILE_NAME}") as file:
            content = file.read()
    except FileNotFoundError:
        raise DataError(
            f"No {FILE_NAME} in '{location}'. Make shards with: "
            f"python -m datasets.prepare CORPUS --root DIR --out {location}"
        ) from None
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"Cannot read '{location}/{FILE_NAME}': {error}") from error
    try:
        document = json.loads(content, object_hook=_entry_or_dict)
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"'{location}' has shards of format version {version}; this program reads version "
                f"{FORMAT_VERSION}. Prepare the corpus again."
            )
        return ShardIndex(
            root=location,
            corpus=document["corpus"],
            labels=tuple(document["labels"]),
            clips=tuple(_require_entry(c) for c in document["clips"]),
            shards=tuple(_inside(ShardEntry(**s), location) for s in document["shards"]),
            skipped=tuple(Skipped(**s) for s in document["skipped"]),
            sample_rate_hz=document["sample_rate_hz"],
            frame_size=(document["frame_size"][0], document["frame_size"][1]),
            feature_names=tuple(document["feature_names"]),
            saliency_maps=bool(document.get("saliency_maps", False)),
            dimensions=tuple(document.get("dimensions", ())),
            step_seconds=float(document.get("step_seconds", 0.0)),
            frame_rate=float(document.get("frame_rate", 0.0)),
            crop=Crop.from_json(document.get("crop")),
            faceless=tuple(document.get("faceless", ())),
            sources=tuple(Source(**s) for s in document.get("sources", ())),
            left_out=tuple(Skipped(**s) for s in document.get("left_out", ())),
            checksum=hashlib.sha256(content).hexdigest(),
        )
    except OutsideError as error:
        raise DataError(f"{error}.") from error
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, IndexError) as error:
        raise DataError(
            f"'{location}/{FILE_NAME}' is damaged: {error!r}. Prepare the corpus again."
        ) from error
