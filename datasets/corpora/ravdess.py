"""RAVDESS (Livingstone & Russo 2018): `Actor_NN/MM-VC-EE-II-SS-RR-AA.{wav,flac,mp4,…}`.

A clip is one utterance. Its audio-only file (03-…) and its video file (01-… with sound,
02-… without) differ only in the first field; they are joined under the audio-only name.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus, DataError, Skipped
from datasets.corpora.files import files_under
from datasets.corpora.registry import Counts, PublishedProtocol, register_corpus
from datasets.features import FeatureTable, read_features
from datasets.sharding.index import ShardIndex

LABELS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
_NAME = re.compile(r"^(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d{2})$")
_MEDIA = {".wav", ".flac", ".mp3", ".mp4", ".mkv", ".avi", ".mov"}
_SUNG = re.compile(r"0[123]-02-.*")

# Test actors of each fold. Luna-Jiménez et al. 2021, and EmoBox (Ma et al. 2024).
_LUNA5 = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)
_EMOBOX6 = (
    (1, 11, 20, 21),
    (4, 10, 12, 14),
    (8, 9, 19, 23),
    (3, 5, 7, 24),
    (2, 15, 16, 18),
    (6, 13, 17, 22),
)


def _protocol(name: str, folds: tuple[tuple[int, ...], ...]) -> PublishedProtocol:
    groups = tuple(tuple(f"Actor_{actor:02d}" for actor in fold) for fold in folds)
    return PublishedProtocol(name=name, groups=groups)


def _counts(index: ShardIndex) -> Counts:
    """Counts of Livingstone & Russo (2018), of the spoken or of the sung clips."""
    sung = all(_SUNG.fullmatch(entry.clip) for entry in index.clips)
    common = LABELS[1:6] if sung else LABELS[1:]
    classes = {"neutral": 92 if sung else 96} | dict.fromkeys(common, 184 if sung else 192)
    speakers = {entry.speaker for entry in index.clips}
    return {"class": classes, "speaker": dict.fromkeys(speakers, 44 if sung else 60)}


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--song", action="store_true", help="the sung clips instead of the spoken ones"
    )


@register_corpus(
    "ravdess",
    "24 actors speak or sing two sentences in eight emotions (Livingstone & Russo 2018)",
    options=_add_options,
    reads_features=True,
    licence="CC BY-NC-SA 4.0 (no commercial use; adaptations under the same licence)",
    vocabulary=LABELS,
    counts=_counts,
    protocols=(_protocol("ravdess-luna5", _LUNA5), _protocol("ravdess-emobox6", _EMOBOX6)),
    default_protocol="ravdess-luna5",
)
def _load(options: Namespace) -> Corpus:
    return load_ravdess(
        options.root,
        features=options.features,
        song=options.song,
        missing_features=options.missing_features,
    )


def load_ravdess(
    root: Path,
    *,
    features: Path | None = None,
    song: bool = False,
    missing_features: str = "error",
) -> Corpus:
    """Finds the RAVDESS clips under a folder.

    Args:
        root: Holds `Actor_NN/` (or `ACTORNN/`) folders, or the files themselves.
        features: A table of features, see `read_features`. Rows are joined by the name without
            its first field (action units are taken from the 01-… video, the sound is the
            03-… file).
        song: Take the sung clips (VC 02) instead of the spoken ones.
        missing_features: See `read_features`.

    Raises:
        DataError: If the folder is missing, nothing matches, or the table has bad rows.
    """
    if not root.is_dir():
        raise DataError(f"No such folder: '{root}' (--root).")
    channel = "02" if song else "01"
    found: dict[str, dict[str, Path]] = {}
    skipped: list[Skipped] = []
    for path in files_under(root, _MEDIA):
        match = _NAME.match(path.stem)
        if match is None:
            skipped.append(
                Skipped(str(path.relative_to(root)), "the name is not MM-VC-EE-II-SS-RR-AA")
            )
        elif match[2] == channel:
            first = found.setdefault(path.stem[3:], {}).setdefault(match[1], path)
            if first != path:
                why = f"is there already: '{first.relative_to(root)}'"
                skipped.append(Skipped(str(path.relative_to(root)), why))
    rows = FeatureTable((), {})
    if features:
        rows = read_features(features, _key, missing=missing_features)
    clips = tuple(_record(key, files, rows.rows) for key, files in sorted(found.items()))
    if rows.names:
        skipped += rows.without_partner({record.clip[3:]: record.clip for record in clips})
    return Corpus(
        name="ravdess",
        labels=LABELS,
        clips=clips,
        feature_names=rows.names,
        skipped=tuple(skipped),
    )


def _record(key: str, files: dict[str, Path], table: dict[str, NDArray[np.float32]]) -> ClipRecord:
    _, emotion, intensity, sentence, repetition, actor = key.split("-")
    return ClipRecord(
        clip=f"03-{key}",
        speaker=f"Actor_{actor}",
        label=LABELS[int(emotion) - 1],
        audio=files.get("03") or files.get("01"),
        video=files.get("01") if _has_pictures(files.get("01")) else files.get("02"),
        features=table.get(key),
        attributes={
            "gender": "male" if int(actor) % 2 else "female",
            "intensity": "strong" if intensity == "02" else "normal",
            "sentence": sentence,
            "repetition": repetition,
        },
    )


def _has_pictures(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() not in {".wav", ".flac", ".mp3"}


def _key(clip: str) -> str | None:
    """A RAVDESS name without its first field."""
    return clip[3:] if _NAME.match(clip) else None
