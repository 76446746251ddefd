"""CREMA-D (Cao et al. 2014): `1001_DFA_ANG_XX.{wav,mp3,flv,mp4}`, in one folder or in several.

A clip is one utterance: actor, sentence, intended emotion, intensity. The target is the emotion
that the actor meant (in the name), or the one that most listeners or viewers named
(`processedResults/summaryTable.csv`). How many named each is in `processedResults/tabulatedVotes.csv`;
without it a tie counts as one vote for each of its emotions.
"""

from __future__ import annotations

import csv
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datasets.clips import ClipRecord, Corpus, DataError, Skipped
from datasets.corpora.files import files_under
from datasets.corpora.registry import PublishedProtocol, register_corpus
from datasets.rater_votes import TIES, shares

LABELS = ("angry", "disgust", "fearful", "happy", "neutral", "sad")
TARGETS = {"intended": "", "voice": "VoiceVote", "face": "FaceVote", "both": "MultiModalVote"}
"""Values of `--target` → column of the votes."""

_EMOTIONS = dict(zip(("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"), LABELS, strict=True))
_VOTES = {code[0]: label for code, label in _EMOTIONS.items()}
_NAME = re.compile(r"^(1\d{3})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX|X)$")
_SOUND = (".wav", ".flac", ".mp3")
_PICTURES = (".flv", ".mp4", ".mkv", ".avi", ".mov")
_VOTES_FILE, _PEOPLE_FILE = "summaryTable.csv", "VideoDemographics.csv"
_COUNTS_FILE = "tabulatedVotes.csv"
_QUERIES = {"voice": "1", "face": "2", "both": "3"}
"""First digit of the row numbers in the table of counts: 100 000 × the kind of question + the clip's number."""
_BAD = {"1076_MTI_SAD_XX": "is silent (known of the release)"}

# Ours: every fifth actor. The published split that we know of has all actors on both sides.
_EVERY_FIFTH = tuple(
    tuple(str(actor) for actor in range(1001 + first, 1092, 5)) for first in range(5)
)
_PER_CLASS = {"neutral": 1087} | dict.fromkeys((n for n in LABELS if n != "neutral"), 1271)
"""Clips of each intended emotion (Cao et al. 2014)."""


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        choices=list(TARGETS),
        default="intended",
        help="the emotion that the actor meant, or what most said who heard (voice), saw (face), "
        "or heard and saw it (both)",
    )
    parser.add_argument(
        "--ties",
        choices=list(TIES),
        default="drop",
        help="clips whose raters agree on no emotion: left out and named (drop, the default), kept "
        "under the first named (soft; for search.run --soft-labels), or an error",
    )


@register_corpus(
    "crema_d",
    "91 actors speak twelve sentences in six emotions, rated by a crowd (Cao et al. 2014)",
    options=_add_options,
    licence="the Open Database License (ODbL)",
    vocabulary=LABELS,
    counts=lambda _: {"class": _PER_CLASS},
    protocols=(PublishedProtocol(name="crema-d-speakers5", groups=_EVERY_FIFTH),),
    default_protocol="crema-d-speakers5",
)
def _load(options: Namespace) -> Corpus:
    return load_crema_d(options.root, target=options.target, ties=options.ties)


def load_crema_d(root: Path, *, target: str = "intended", ties: str = "drop") -> Corpus:
    """Finds the CREMA-D clips under a folder.

    Args:
        root: The release, or any part of it: sound and video are joined by name. Where there is
            no sound file, the video's own sound is taken.
        target: `intended`, or the crowd's vote by `voice`, `face` or `both`.
        ties: Of clips whose vote is a tie: `drop` leaves them out, and names them; `soft` keeps
            them, under the emotion that was named first; `error`.

    Raises:
        DataError: The folder or the table of votes is missing, or nothing matches.
    """
    if not root.is_dir():
        raise DataError(f"No such folder: '{root}' (--root).")
    if target not in TARGETS:
        raise DataError(f"Unknown target '{target}'. Known: {', '.join(TARGETS)} (--target).")
    if ties not in TIES:
        raise DataError(f"Unknown ties '{ties}'. Known: {', '.join(TIES)} (--ties).")
    votes = _read_votes(root, TARGETS[target]) if target != "intended" else None
    counts = _read_counts(root, _QUERIES[target]) if target != "intended" else {}
    sex = _read_sex(root)
    sound: dict[str, Path] = {}
    pictures: dict[str, Path] = {}
    skipped: list[Skipped] = []
    known = (*_SOUND, *_PICTURES)  # WAV before the MP3 that was made of it
    for path in sorted(files_under(root, known), key=lambda p: known.index(p.suffix.lower())):
        if _NAME.match(path.stem) is None:
            why = "the name is not ACTOR_SENTENCE_EMOTION_LEVEL, such as 1001_DFA_ANG_XX"
            skipped.append(Skipped(str(path.relative_to(root)), why))
        else:
            kind = sound if path.suffix.lower() in _SOUND else pictures
            first = kind.setdefault(path.stem, path)
            if first != path and first.suffix == path.suffix:  # the release itself has WAV and MP3
                why = f"is there already: '{first.relative_to(root)}'"
                skipped.append(Skipped(str(path.relative_to(root)), why))
    clips = []
    for clip in sorted({**sound, **pictures}):
        labels, why = _labels(clip, votes)
        if len(labels) > 1 and ties != "soft":
            why = f"the vote is '{(votes or {})[clip]}', not one emotion"
        if why and ties == "error" and len(labels) > 1:
            raise DataError(
                f"'{clip}': {why}. Leave such clips out or keep them (--ties drop, soft)."
            )
        if why := _BAD.get(clip, why):
            skipped.append(Skipped(clip, why))
            continue
        record = _record(clip, labels[0], sound, pictures, sex)
        clips.append(_with_votes(record, labels, counts.get(clip, {})))
    absent = sorted(set(votes or ()) - set(sound) - set(pictures))
    skipped += (Skipped(clip, f"is in {_VOTES_FILE}, but has no file") for clip in absent)
    return Corpus(name="crema_d", labels=LABELS, clips=tuple(clips), skipped=tuple(skipped))


def _record(
    clip: str,
    label: str,
    sound: Mapping[str, Path],
    pictures: Mapping[str, Path],
    sex: Mapping[str, str],
) -> ClipRecord:
    actor, sentence, emotion, level = clip.split("_")
    attributes = {"sentence": sentence, "intensity": level, "intended": _EMOTIONS[emotion]}
    if actor in sex:
        attributes["gender"] = sex[actor]
    return ClipRecord(
        clip=clip,
        speaker=actor,
        label=label,
        audio=sound.get(clip) or pictures.get(clip),
        video=pictures.get(clip),
        attributes=attributes,
    )


def _with_votes(
    record: ClipRecord, labels: Sequence[str], counts: Mapping[str, float]
) -> ClipRecord:
    """With the crowd's votes: as counted, or one for each emotion of a tie."""
    tie = {"tie": "|".join(labels)} if len(labels) > 1 else {}
    if not counts and not tie:
        return record
    votes = shares(counts) if counts else shares({}, labels)
    return replace(record, votes=votes, attributes=record.attributes | tie)


def _labels(clip: str, votes: Mapping[str, str] | None) -> tuple[list[str], str]:
    """The label, or those that tie; or why there is none."""
    if votes is None:
        return [_EMOTIONS[clip.split("_")[2]]], ""
    vote = votes.get(clip)
    if vote is None:
        return [], f"has no row in {_VOTES_FILE}"
    if not all(part in _VOTES for part in vote.split(":")):
        return [], f"the vote is '{vote}', not one emotion"
    return [_VOTES[part] for part in vote.split(":")], ""


def _read_counts(root: Path, query: str) -> dict[str, dict[str, float]]:
    """Clip → emotion → how many named it in one kind of question; empty without the table."""
    rows = _read_table(root, _COUNTS_FILE, ("", "fileName", *_VOTES)) or []
    counts = {}
    for number, row in enumerate(rows, start=2):
        if not row[""].strip().startswith(query):
            continue
        found = {_VOTES[letter]: row[letter].strip() for letter in _VOTES}
        if not all(text.isdecimal() for text in found.values()):
            raise DataError(f"'{_COUNTS_FILE}', row {number}, has no numbers of votes.")
        if not any(map(int, found.values())):
            continue
        counts[row["fileName"].strip()] = {label: float(text) for label, text in found.items()}
    return counts


def _read_votes(root: Path, column: str) -> dict[str, str]:
    """Clip → initial of the emotion that most named; `A:D` for a tie."""
    rows = _read_table(root, _VOTES_FILE, ("FileName", column))
    if rows is None:
        raise DataError(
            f"No {_VOTES_FILE} under '{root}': it holds the votes. Add it, or take --target intended."
        )
    return {row["FileName"].strip(): row[column].strip() for row in rows}


def _read_sex(root: Path) -> dict[str, str]:
    """Actor → male or female; empty without the table."""
    rows = _read_table(root, _PEOPLE_FILE, ("ActorID", "Sex")) or []
    return {row["ActorID"].strip(): row["Sex"].strip().lower() for row in rows}


def _read_table(root: Path, name: str, columns: tuple[str, ...]) -> list[dict[str, str]] | None:
    """Rows of the CSV of that name anywhere under a folder; None if there is none."""
    path = next(iter(sorted(root.rglob(name))), None)
    if path is None:
        return None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' is not a CSV in UTF-8: {error}.") from error
    for column in columns:
        for number, row in enumerate(rows, start=2):
            if row.get(column) is None:
                raise DataError(f"'{path}', row {number}, has no column '{column}'.")
    return rows
