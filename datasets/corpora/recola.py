"""RECOLA (Ringeval et al. 2013): conversations of five minutes, arousal and valence every 40 ms.

Two layouts are read: that of the AVEC 2016 challenge (`ratings_gold_standard`, `recordings_audio`,
`recordings_video`), and the original release (`RECOLA-Annotation` with each rater's own trace, from
which the gold standard is made). A clip is a window of one recording; it never holds two speakers.
"""

from __future__ import annotations

import csv
import math
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datasets.clips import ClipRecord, Corpus, DataError, Part, Skipped
from datasets.corpora.registry import PublishedProtocol, register_corpus

DIMENSIONS = ("arousal", "valence")
STEP_SECONDS = 0.04
WINDOW_SECONDS = 6.0

Gold = Literal["ccc", "mean"]
GOLDS: tuple[Gold, ...] = ("ccc", "mean")

_CHALLENGE = "ratings_gold_standard"
_ORIGINAL = "RECOLA-Annotation/emotional_behaviour"
_SOUND = (".wav", ".flac", ".mp3")
_PICTURE = (".mp4", ".avi", ".mkv", ".mov")
_SHORTEST = 25
"""Steps (1 s) that a recording needs."""

# Partitions: AVEC 2016 names them in its files; the other is of Tzirakis et al. 2017's code.
_AVEC = tuple(tuple(f"{part}_{n}" for n in range(1, 10)) for part in ("train", "dev"))
_TZIRAKIS = (
    (15, 16, 17, 18, 21, 23, 25, 37, 39, 41, 46, 50, 51, 55, 56, 60),
    (14, 19, 24, 26, 28, 30, 34, 40, 42, 43, 44, 45, 52, 64, 65),
    (13, 20, 22, 32, 38, 47, 48, 49, 53, 54, 57, 58, 59, 62, 63),
)


def add_options(parser: ArgumentParser) -> None:
    """Adds the options of `load`, and the frames that a clip of it has by default."""
    parser.add_argument(
        "--gold",
        choices=list(GOLDS),
        default="ccc",
        help="raters weighted by how well they agree with the others, or alike (default ccc)",
    )
    parser.add_argument(
        "--window",
        type=float,
        default=WINDOW_SECONDS,
        metavar="SECONDS",
        help="a clip's length (default 6)",
    )
    parser.add_argument(
        "--hop",
        type=float,
        metavar="SECONDS",
        help="from a clip's start to the next one's (default: the window)",
    )
    parser.set_defaults(frames=None, frame_size="96x96")


@register_corpus(
    "recola",
    "conversations of five minutes with arousal and valence every 40 ms (Ringeval et al. 2013)",
    options=add_options,
    licence="its owner's own end-user licence",
    protocols=(
        PublishedProtocol(name="recola-avec", kind="partition", groups=_AVEC),
        PublishedProtocol(
            name="recola-tzirakis",
            kind="partition",
            groups=tuple(tuple(f"P{number}" for number in part) for part in _TZIRAKIS),
        ),
        PublishedProtocol(name="recola-open-kfold", kind="balanced"),
    ),
    default_protocol="recola-open-kfold",
)
def load(options: Namespace) -> Corpus:
    """Loads it as `load_recola` does, from parsed options."""
    return load_recola(
        options.root,
        gold=options.gold,
        window_seconds=options.window,
        hop_seconds=options.hop,
    )


@dataclass(frozen=True)
class _Recording:
    """Annotations of one recording; `gold` (S, D), the step that begins at 0 s first."""

    name: str
    gold: NDArray[np.float32]
    audio: Path | None
    video: Path | None


def load_recola(
    root: Path,
    *,
    gold: Gold = "ccc",
    window_seconds: float = WINDOW_SECONDS,
    hop_seconds: float | None = None,
) -> Corpus:
    """Finds the labelled recordings, and cuts them into windows.

    Args:
        root: The corpus, in one of its two layouts.
        gold: How the raters' traces become one (original release; the challenge has made its own):
            see `gold_standard`.
        window_seconds: Of a clip; a recording's last window ends with it.
        hop_seconds: From a window's start to the next one's; the window's length without.

    Raises:
        DataError: The folder or its ratings are missing, a file cannot be read, or the windows
            cannot be.
    """
    if not root.is_dir():
        raise DataError(f"No such folder: '{root}' (--root).")
    if gold not in GOLDS:
        raise DataError(f"Unknown gold standard '{gold}'. Known: {', '.join(GOLDS)}.")
    hop_seconds = window_seconds if hop_seconds is None else hop_seconds
    steps, hop = round(window_seconds / STEP_SECONDS), round(hop_seconds / STEP_SECONDS)
    if steps < _SHORTEST or not 1 <= hop <= steps:
        raise DataError(
            f"A window lasts {_SHORTEST * STEP_SECONDS:g} s or more, and the hop at most the window: "
            f"got {window_seconds:g} s and {hop_seconds:g} s (--window, --hop)."
        )
    skipped: list[Skipped] = []
    if (root / _CHALLENGE).is_dir():
        recordings = list(_of_challenge(root, skipped))
    elif (root / _ORIGINAL).is_dir():
        recordings = list(_of_original(root, gold, skipped))
    else:
        raise DataError(
            f"'{root}' has neither '{_CHALLENGE}' (AVEC 2016) nor '{_ORIGINAL}' (original release) "
            "(--root)."
        )
    clips = [clip for recording in recordings for clip in _windows(recording, steps, hop)]
    return Corpus(
        name="recola",
        labels=(),
        clips=tuple(clips),
        skipped=tuple(skipped),
        dimensions=DIMENSIONS,
        step_seconds=STEP_SECONDS,
    )


def gold_standard(ratings: NDArray[np.float64], gold: Gold) -> NDArray[np.float64]:
    """(S, R) traces of R raters → (S,) one.

    Each rater's trace is centred, what they agree on is averaged, and the mean of all is added: raters
    differ in where they put the middle. `mean` averages them alike; `ccc`, as Tzirakis et al.
    (2017) do, by how well each agrees with the others (mean concordance, none below 0).
    """
    centres = ratings.mean(axis=0)
    weights = np.ones(ratings.shape[1])
    if gold == "ccc" and ratings.shape[1] > 1:
        agreement = _agreement(ratings)
        weights = agreement if agreement.sum() > 0 else weights
    weights = weights / weights.sum()
    return np.asarray((ratings - centres) @ weights + centres @ weights)


def _agreement(ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) mean concordance correlation of each rater with the others, none below 0."""
    spread, centres = ratings.var(axis=0), ratings.mean(axis=0)
    covariance = np.cov(ratings.T, bias=True)
    apart = spread[:, None] + spread[None] + (centres[:, None] - centres[None]) ** 2
    concordance = np.divide(2 * covariance, apart, out=np.zeros_like(apart), where=apart > 0)
    np.fill_diagonal(concordance, 0.0)
    return np.asarray(np.maximum(concordance.sum(axis=1) / (len(spread) - 1), 0.0))


def _windows(recording: _Recording, steps: int, hop: int) -> Iterator[ClipRecord]:
    """Each of `steps`; the last one ends with the recording, and overlaps what is before it."""
    count = len(recording.gold)
    starts = list(range(0, max(1, count - steps + 1), hop))
    if starts[-1] + steps < count:
        starts.append(count - steps)
    for start in starts:
        end = min(start + steps, count)
        part = Part(start_s=start * STEP_SECONDS, end_s=end * STEP_SECONDS)
        yield ClipRecord(
            clip=f"{recording.name}-{start:05d}",
            speaker=recording.name,
            label="",
            audio=recording.audio,
            video=recording.video,
            audio_part=part if recording.audio else None,
            video_part=part if recording.video else None,
            trace=recording.gold[start:end],
            recording=recording.name,
            first_step=start,
        )


def _of_challenge(root: Path, skipped: list[Skipped]) -> Iterator[_Recording]:
    """AVEC 2016: `train_1` … `dev_9`; the labels of `test` were never given away."""
    folders = [root / _CHALLENGE / dimension for dimension in DIMENSIONS]
    names = _names(folders, ".arff")
    for name in names:
        traces = [_read_arff(folder / f"{name}.arff", name) for folder in folders]
        yield from _recording(root, name, traces, skipped, ("recordings_audio", "recordings_video"))
    _unlabelled(root, "recordings_audio", set(names), skipped)


def _of_original(root: Path, gold: Gold, skipped: list[Skipped]) -> Iterator[_Recording]:
    """The release: `P16` …, six raters each."""
    folders = [root / _ORIGINAL / dimension for dimension in DIMENSIONS]
    media = ("RECOLA-Audio-recordings", "RECOLA-Video-recordings")
    names = _names(folders, ".csv")
    for name in names:
        traces = [_read_raters(folder / f"{name}.csv", gold) for folder in folders]
        yield from _recording(root, name, traces, skipped, media)
    _unlabelled(root, media[0], set(names), skipped)


def _names(folders: list[Path], suffix: str) -> list[str]:
    """Recordings that have a file of every dimension."""
    found = [
        {p.stem for p in folder.glob(f"*{suffix}") if not p.name.startswith("._")}
        for folder in folders
    ]
    lacking = sorted(found[0] ^ found[1])
    if lacking:
        raise DataError(
            f"'{lacking[0]}' has ratings of one dimension alone in '{folders[0].parent}'."
        )
    if not found[0]:
        raise DataError(f"No ratings (*{suffix}) in '{folders[0]}'.")

    def by_number(name: str) -> tuple[str, int]:
        digits = re.search(r"\d+$", name)
        return (name[: digits.start()], int(digits[0])) if digits else (name, 0)

    return sorted(found[0], key=by_number)


def _recording(
    root: Path,
    name: str,
    traces: list[NDArray[np.float64]],
    skipped: list[Skipped],
    media: tuple[str, str],
) -> Iterator[_Recording]:
    """The recording, where it has sound or pictures and enough of a trace."""
    if len({len(trace) for trace in traces}) > 1:
        skipped.append(Skipped(name, "its arousal and valence are of different length"))
        return
    audio = _find(root / media[0], name, _SOUND)
    video = _find(root / media[1], name, _PICTURE)
    if audio is None and video is None:
        skipped.append(Skipped(name, f"has ratings, but no file in '{media[0]}' or '{media[1]}'"))
    elif len(traces[0]) < _SHORTEST:
        skipped.append(Skipped(name, f"its ratings have {len(traces[0])} steps alone"))
    else:
        yield _Recording(name, np.stack(traces, axis=1).astype(np.float32), audio, video)


def _find(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path | None:
    return next((p for s in suffixes if (p := folder / f"{name}{s}").is_file()), None)


def _unlabelled(root: Path, folder: str, known: set[str], skipped: list[Skipped]) -> None:
    """Sound without ratings, such as the challenge's test recordings, is told of."""
    for path in sorted((root / folder).glob("*")):
        if path.suffix.lower() in _SOUND and path.stem not in known and path.name[:2] != "._":
            skipped.append(Skipped(path.stem, "has no ratings"))


def _read_arff(path: Path, name: str) -> NDArray[np.float64]:
    """(S,) of the rows `name,seconds,value` behind @data."""
    lines = _lines(path)
    begin = next((n for n, line in enumerate(lines) if line.strip().lower() == "@data"), None)
    if begin is None:
        raise DataError(f"'{path}' has no @data.")
    rows = []
    for number, line in enumerate(lines[begin + 1 :], start=begin + 2):
        if not line.strip() or line.startswith("%"):
            continue
        fields = [field.strip().strip("'\"") for field in line.split(",")]
        if len(fields) != 3 or fields[0] != name:
            raise DataError(
                f"'{path}', row {number}, is not '{name},SECONDS,VALUE': '{line[:60]}'."
            )
        rows.append((_number(fields[1], path, number), _number(fields[2], path, number)))
    return _on_grid(np.asarray(rows, np.float64).reshape(-1, 2), path)[:, 0]


def _read_raters(path: Path, gold: Gold) -> NDArray[np.float64]:
    """(S,) gold standard of the rows `seconds;rater;rater;…`, whose headers end in spaces."""
    rows = list(csv.reader(_lines(path), delimiter=";"))
    width = len([name for name in rows[0] if name.strip()]) if rows else 0
    if width < 2:
        raise DataError(f"'{path}' needs a column of time and one or more of raters, ';' between.")
    values = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(field.strip() for field in row):
            continue
        if len([field for field in row if field.strip()]) != width:
            raise DataError(f"'{path}', row {number}, has other fields than its header.")
        values.append([_number(field, path, number) for field in row[:width]])
    table = _on_grid(np.asarray(values, np.float64).reshape(-1, width), path)
    return gold_standard(table, gold) if len(table) else np.zeros(0)


def _on_grid(rows: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """Without the row of 0 s, which no frame goes with; the others must be a step apart."""
    rows = rows[rows[:, 0] > STEP_SECONDS / 2]
    wanted = STEP_SECONDS * np.arange(1, len(rows) + 1)
    wrong = np.flatnonzero(np.abs(rows[:, 0] - wanted) > STEP_SECONDS / 4)
    if len(wrong):
        raise DataError(
            f"'{path}': a rating every {STEP_SECONDS} s is wanted, but the one of "
            f"{wanted[wrong[0]]:.2f} s is of {rows[wrong[0], 0]:.2f} s."
        )
    return rows[:, 1:]


def _number(text: str, path: Path, row: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"'{path}', row {row}: '{text.strip()}' is not a finite number.")
    return value


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read: {error}.") from error
