"""IEMOCAP (Busso et al. 2008): five sessions of two actors, `Session{1..5}/dialog` and `sentences`.

A clip is one turn of one actor. Labels and times are in `dialog/EmoEvaluation/*.txt`, the turn's sound
in `sentences/wav`, its picture in the dialogue's video, which both actors share: the one who wears
the markers, whom the dialogue is named after, on the left. The raters' own lines (`C-E1:	Anger;	()`) are
its votes; the actors' opinion of themselves (`C-F1:`) is none.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets.clips import ClipRecord, Corpus, DataError, Part, Skipped
from datasets.corpora.files import files_under
from datasets.corpora.registry import Counts, PublishedProtocol, register_corpus
from datasets.rater_votes import shares
from datasets.sharding.index import ShardIndex

CLASSES: dict[str, tuple[str, ...]] = {
    "4": ("angry", "happy", "neutral", "sad"),
    "3": ("angry", "neutral", "sad"),
    "all": (
        "angry", "disgust", "excited", "fearful", "frustrated", "happy", "neutral", "other", "sad", "surprised",
    ),
}  # fmt: skip
"""Values of `--classes`; turns on which the raters did not agree (`xxx`) are in none."""

Side = Literal["impro", "script", "all"]

_CODES = {
    "ang": "angry", "dis": "disgust", "exc": "excited", "fea": "fearful", "fru": "frustrated",
    "hap": "happy", "neu": "neutral", "oth": "other", "sad": "sad", "sur": "surprised",
}  # fmt: skip
_NUMBER = r"\d+(?:\.\d+)?"
_LINE = re.compile(
    rf"^\[({_NUMBER}) - ({_NUMBER})\]\s+((Ses0[1-5][FM])_(?:impro|script)\w*_([FM])\w{{3}})\s+(\w{{3}})"
    rf"\s+\[({_NUMBER}), ({_NUMBER}), ({_NUMBER})\]\s*$"
)
_RATER = re.compile(r"^C-E\d+:\s*([^\t(]*)")
_VIDEO = (".avi", ".mp4", ".mkv", ".mov")

# Busso et al. 2008. Of sessions the four classes with excited turns as happy ones, as everyone counts them.
_PER_CLASS = {
    "angry": 1103, "disgust": 2, "excited": 1041, "fearful": 40, "frustrated": 1849, "happy": 595,
    "neutral": 1708, "other": 3, "sad": 1084, "surprised": 107,
}  # fmt: skip
_PER_SESSION = {"Ses01": 1085, "Ses02": 1023, "Ses03": 1151, "Ses04": 1031, "Ses05": 1241}
_SESSION_PAIRS = tuple((f"{session}F", f"{session}M") for session in _PER_SESSION)
_SINGLE_SPEAKERS = tuple((speaker,) for pair in _SESSION_PAIRS for speaker in pair)


def _counts(index: ShardIndex) -> Counts:
    """Counts of the classes that were taken, excited turns perhaps as happy ones."""
    counts = dict(_PER_CLASS)
    if "excited" not in index.labels:
        counts["happy"] += counts["excited"]
    classes = {label: count for label, count in counts.items() if label in index.labels}
    four = set(index.labels) == set(CLASSES["4"])
    return {"class": classes, "session": _PER_SESSION if four else {}}


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--classes",
        choices=list(CLASSES),
        default="4",
        help="angry, happy, neutral, sad; three without happy; or all (default 4)",
    )
    parser.add_argument(
        "--keep-excited", action="store_true", help="excited turns are not taken as happy ones"
    )
    parser.add_argument(
        "--part",
        choices=["impro", "script", "all"],
        default="all",
        help="improvised or scripted dialogues alone (default all)",
    )


@register_corpus(
    "iemocap",
    "ten actors in five sessions of two, scripted and improvised dialogues (Busso et al. 2008)",
    options=_add_options,
    licence="its owner's own end-user licence",
    vocabulary=CLASSES["all"],
    counts=_counts,
    protocols=(
        PublishedProtocol(name="iemocap-loso5", groups=_SESSION_PAIRS),
        PublishedProtocol(  # the next session is kept for validation
            name="iemocap-loso5-validation",
            groups=_SESSION_PAIRS,
            excluded=tuple(((fold + 1) % 5,) for fold in range(5)),
        ),
        PublishedProtocol(  # the other actor of the session talks with who is tested
            name="iemocap-loso10",
            groups=_SINGLE_SPEAKERS,
            excluded=tuple((fold ^ 1,) for fold in range(10)),
        ),
    ),
    default_protocol="iemocap-loso5",
)
def _load(options: Namespace) -> Corpus:
    return load_iemocap(
        options.root,
        classes=options.classes,
        merge_excited=not options.keep_excited,
        part=options.part,
    )


@dataclass(frozen=True)
class _Turn:
    """A label line."""

    clip: str
    dialogue: str
    speaker: str
    code: str
    part: Part
    ratings: tuple[str, str, str]
    votes: dict[str, float] = field(default_factory=dict)


def load_iemocap(
    root: Path, *, classes: str = "4", merge_excited: bool = True, part: Side = "all"
) -> Corpus:
    """Reads the label files of every session, and finds sound and picture of each turn.

    The speaker is the letter in the turn's last field, with the session: a dialogue's own name
    says only who wears the markers.

    Args:
        root: Holds `Session1` to `Session5`, or some of them.
        classes: `4`, `3` or `all`.
        merge_excited: Take excited turns as happy ones, as the literature does with four classes.
        part: `impro`, `script` (whose text repeats across sessions) or `all`.

    Raises:
        DataError: The folder or its label files are missing, or a label line cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"No such folder: '{root}' (--root).")
    if classes not in CLASSES:
        raise DataError(f"Unknown classes '{classes}'. Known: {', '.join(CLASSES)}.")
    labels = CLASSES[classes]
    if merge_excited:
        labels = tuple(label for label in labels if label != "excited")
    files = sorted(root.glob("Session[1-5]/dialog/EmoEvaluation/*.txt"))
    files = [path for path in files if not path.name.startswith("._")]
    if not files:
        raise DataError(f"No Session*/dialog/EmoEvaluation/*.txt under '{root}' (--root).")
    clips: list[ClipRecord] = []
    skipped: list[Skipped] = []
    videos_of = {session: _videos(session) for session in {path.parents[2] for path in files}}
    for path in files:
        session = path.parents[2]
        known = set()
        for turn in _turns(path):
            known.add(turn.clip)
            if part != "all" and part not in turn.dialogue:
                continue
            label = _CODES.get(turn.code, "")
            label = "happy" if merge_excited and label == "excited" else label
            sound = session / "sentences" / "wav" / turn.dialogue / f"{turn.clip}.wav"
            if label not in labels:
                skipped.append(
                    Skipped(turn.clip, f"its label '{turn.code}' is none of the classes")
                )
            elif not sound.is_file():
                skipped.append(Skipped(turn.clip, f"no such file '{sound.relative_to(root)}'"))
            else:
                video = videos_of[session].get(turn.dialogue)
                clips.append(_record(turn, label, sound, video, merge_excited))
        folder = session / "sentences" / "wav" / path.stem
        for sound in sorted(folder.glob("*.wav")) if folder.is_dir() else ():
            if sound.stem not in known and not sound.name.startswith("._"):
                skipped.append(Skipped(sound.stem, f"has no label in '{path.name}'"))
    skipped += _without_labels(root, {path.stem for path in files})
    return Corpus(name="iemocap", labels=labels, clips=tuple(clips), skipped=tuple(skipped))


def _without_labels(root: Path, dialogues: set[str]) -> Iterator[Skipped]:
    """Turns of dialogues that have no label file."""
    for folder in sorted(root.glob("Session[1-5]/sentences/wav")):
        for sound in files_under(folder, (".wav",)):
            if sound.parent.name not in dialogues and not sound.name.startswith("._"):
                yield Skipped(
                    sound.stem, f"its dialogue has no label file '{sound.parent.name}.txt'"
                )


def _record(
    turn: _Turn, label: str, sound: Path, video: Path | None, merge_excited: bool
) -> ClipRecord:
    valence, activation, dominance = turn.ratings
    return ClipRecord(
        clip=turn.clip,
        speaker=turn.speaker,
        label=label,
        audio=sound,
        video=video,
        video_part=turn.part if video else None,
        attributes={
            "session": turn.speaker[:5],
            "gender": "female" if turn.speaker.endswith("F") else "male",
            "dialogue": turn.dialogue,
            "rated": turn.code,
            "valence": valence,
            "activation": activation,
            "dominance": dominance,
        },
        votes=_shares(turn, merge_excited),
    )


def _shares(turn: _Turn, merge_excited: bool) -> dict[str, float]:
    """Label → share of the raters; empty where the file does not say."""
    votes = dict(turn.votes)
    if merge_excited and "excited" in votes:
        votes["happy"] = votes.get("happy", 0.0) + votes.pop("excited")
    return shares(votes) if votes else {}


def _turns(path: Path) -> Iterator[_Turn]:
    """The label lines of a file, each with the raters' lines behind it; the header begins otherwise."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read: {error}.") from error
    turn: _Turn | None = None
    for number, line in enumerate(lines, start=1):
        if turn and (rater := _RATER.match(line)):
            _add_votes(turn.votes, rater[1])
        if not re.match(r"^\[\d", line):
            continue
        if turn:
            yield turn
        found = _LINE.match(line)
        if found is None:
            raise DataError(f"'{path}', line {number}, is no label: '{line[:80]}'.")
        start, end, clip, lead, letter, code, *ratings = found.groups()
        half: Literal["left", "right"] = "left" if letter == lead[-1] else "right"
        try:
            part = Part(start_s=float(start), end_s=float(end), half=half)
        except DataError as error:
            raise DataError(f"'{path}', line {number}: {error}") from error
        turn = _Turn(
            clip, clip[:-5], lead[:5] + letter, code, part, (ratings[0], ratings[1], ratings[2])
        )
    if turn:
        yield turn


def _add_votes(votes: dict[str, float], named: str) -> None:
    """A rater's vote, shared by the emotions that they named; the codes are the names' first letters."""
    labels = [
        _CODES[name.strip().lower()[:3]]
        for name in named.split(";")
        if name.strip().lower()[:3] in _CODES
    ]
    for label in labels:
        votes[label] = votes.get(label, 0.0) + 1.0 / len(labels)


def _videos(session: Path) -> dict[str, Path]:
    """Dialogue → its video."""
    folder = session / "dialog" / "avi"
    found = sorted(folder.rglob("*")) if folder.is_dir() else []
    return {
        path.stem: path
        for path in found
        if path.suffix.lower() in _VIDEO and not path.name.startswith("._")
    }
