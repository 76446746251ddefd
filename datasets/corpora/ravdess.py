"""RAVDESS (Livingstone & Russo 2018): `Actor_NN/MM-VC-EE-II-SS-RR-AA.{wav,flac,mp4,…}`.

A clip is one utterance. Its audio-only file (03-…) and its video file (01-… with sound,
02-… without) differ only in the first field; they are joined under the audio-only name.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus, DataError, Skipped
from datasets.corpora.files import files_under
from datasets.features import FeatureTable, read_features

LABELS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
_NAME = re.compile(r"^(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d{2})$")
_MEDIA = {".wav", ".flac", ".mp3", ".mp4", ".mkv", ".avi", ".mov"}


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
