"""Joins prepared corpora into one, perhaps with other labels: `python -m datasets.join OUT A B … [--map common4]`.

Nothing is decoded again: shards are hard links, or copies where that is impossible (another disk, a URL),
and the index is written anew.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from datasets.clips import DataError, Skipped
from datasets.corpora.label_maps import LabelMap, parse_map
from datasets.sharding.index import (
    ClipEntry,
    ShardEntry,
    ShardIndex,
    Source,
    read_index,
    write_index,
)
from datasets.storage.retrying import open_resuming
from datasets.storage.synced_folder import is_url

_NAME = re.compile(r"[\w.-]+")
_NAMED = re.compile(r"([^=/]+)=(.+)")
_ANYONES = ("manifest", "synthetic")
"""Corpora of these names may be of different people."""

_MERGED = {
    "root", "corpus", "labels", "clips", "shards", "skipped", "checksum", "part", "faceless", "sources", "left_out",
}  # fmt: skip
"""Fields of an index that are merged; all others must agree."""

_OF_KIND = {
    "sample_rate_hz": ("audio", "--sample-rate"),
    "frame_size": ("video", "--frame-size"),
    "frame_rate": ("video", "--frame-rate"),
    "crop": ("video", "--crop"),
    "saliency_maps": ("video", "a manifest with or without saliency maps"),
    "feature_names": ("features", "--features"),
}
"""Fields that need agree only where both have clips of that kind, and the option that sets each."""


@dataclass(frozen=True)
class Part:
    """A corpus to be joined.

    Attributes:
        name: What it is called in the joined one; parts of one name are of the same people.
        index: As it was prepared, or mapped before.
    """

    name: str
    index: ShardIndex


def read_part(text: str) -> Part:
    """A folder or URL of shards, or `NAME=FOLDER`.

    Raises:
        DataError: There are no shards, or the name is none.
    """
    named = None if Path(text).exists() else _NAMED.fullmatch(text)
    index = read_index(named[2] if named else text)
    if len({source.corpus for source in index.sources}) > 1:
        raise DataError(f"'{index.root}' is joined already. Join what it was made of.")
    name = named[1] if named else index.corpus
    if not _NAME.fullmatch(name):
        raise DataError(f"A corpus is named with letters, digits and . _ -, got '{name}'.")
    return Part(name, index)


def join(
    parts: Sequence[Part],
    out: Path,
    label_map: LabelMap | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardIndex:
    """Makes one corpus of several; the folder appears whole, or not at all.

    Of one corpus alone, or parts of one, names stay as they are, so that its protocols apply.

    Args:
        parts: The corpora.
        out: The folder of the joined one, absent or empty.
        label_map: What becomes of their labels.
        on_progress: Called with shards done and shards in all.

    Raises:
        DataError: They do not fit together, a shard is not what its index says, or the folder
            cannot be written.
    """
    index, shards = _joined(parts, label_map or LabelMap())
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"'{out}' is not empty. Name another folder.")
        partial.mkdir(parents=True)
        for done, (source, entry) in enumerate(shards, start=1):
            _take_over(source, entry, partial / entry.name)
            if on_progress:
                on_progress(done, len(shards))
        write_index(index, partial)
        partial.replace(out)
    except OSError as error:
        where = error.filename or out
        raise DataError(f"Cannot write '{out}': {error.strerror or error} ('{where}').") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(partial)
    return read_index(out)


def _joined(
    parts: Sequence[Part], label_map: LabelMap
) -> tuple[ShardIndex, list[tuple[str, ShardEntry]]]:
    """The index, and for each of its shards where it is now."""
    _check_names(parts)
    agreed = {
        field.name: _agreed(parts, field.name)
        for field in fields(ShardIndex)
        if field.name not in _MERGED
    }
    _check_frames_and_features(parts)
    names = list(dict.fromkeys(part.name for part in parts))
    clips: list[ClipEntry] = []
    left_out: list[Skipped] = []
    shards: list[tuple[str, ShardEntry]] = []
    for number, part in enumerate(parts):
        earlier = sum(other.name == part.name for other in parts[:number])
        prefix = f"{part.name}-{earlier + 1}-" if earlier else f"{part.name}-"
        kept, without = _mapped(part, label_map, prefix, several=len(names) > 1)
        clips, left_out = clips + kept, left_out + without
        of_kept = {entry.shard for entry in kept}
        for shard in part.index.shards:
            if (name := prefix + shard.name) in of_kept:
                shards.append((f"{part.index.root}/{shard.name}", replace(shard, name=name)))
    index = ShardIndex(
        root="",
        corpus="+".join(names),
        labels=_labels(parts, label_map),
        clips=tuple(sorted(clips, key=lambda entry: entry.clip)),
        shards=tuple(entry for _, entry in shards),
        skipped=tuple(skipped for part in parts for skipped in part.index.skipped),
        left_out=tuple(left_out),
        faceless=tuple(sorted({clip for part in parts for clip in part.index.faceless})),
        sources=tuple(_source(part, label_map) for part in parts),
        **agreed,
    )
    return index, shards


def _check_names(parts: Sequence[Part]) -> None:
    """Who is the same person, and that no clip is there twice, not even in a shard."""
    name_of: dict[str, str] = {}
    for part in parts:
        own = part.index.corpus
        if own not in _ANYONES and name_of.setdefault(own, part.name) != part.name:
            raise DataError(
                f"'{name_of[own]}' and '{part.name}' are both of the corpus '{own}', and so of the same speakers. "
                "Give them one name."
            )
        same = [other for other in parts if other.name == part.name]
        if len(same) > 1 and own in _ANYONES and part.name == own:
            raise DataError(
                f"Two corpora are called '{own}'. Name them: NAME={same[0].index.root} (parts of one name are "
                "of the same speakers)."
            )
    root_of: dict[str, str] = {}
    for part in parts:
        for clip in [e.clip for e in part.index.clips] + [s.clip for s in part.index.left_out]:
            if (first := root_of.setdefault(clip, part.index.root)) != part.index.root:
                raise DataError(
                    f"The clip '{clip}' is in '{first}' and in '{part.index.root}'. Clips of a joined corpus have "
                    "different names: rename those of one, and prepare it again."
                )
    if len({part.index.root for part in parts}) < len(parts):
        raise DataError("A corpus is named twice. Name each once.")


def _agreed(parts: Sequence[Part], name: str) -> Any:
    """Return the value that all parts agree on; parts without such clips do not count."""
    kind, option = _OF_KIND.get(name, ("", ""))
    concerned = [part for part in parts if not kind or part.index.has(kind)] or parts[:1]
    first = concerned[0]
    value = getattr(first.index, name)
    for part in concerned[1:]:
        if (other := getattr(part.index, name)) != value:
            remedy = f" ({option})" if option else ""
            raise DataError(
                f"Joined corpora have the same {name}: '{first.name}' has {_shown(value)}, '{part.name}' "
                f"{_shown(other)}. Prepare one of them again{remedy}."
            )
    return value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value.to_json() if hasattr(value, "to_json") else value)


def _check_frames_and_features(parts: Sequence[Part]) -> None:
    """Check that videos have equally many frames, unless taken at a rate, and features are of one kind."""
    for what, of_part, option in (
        ("frames of a video", _frames, "--frames"),
        ("features", _feature_kind, "--features"),
    ):
        found = {part.name: value for part in parts if (value := of_part(part.index))}
        if len(set(found.values())) > 1:
            said = ", ".join(f"'{name}' has {value}" for name, value in found.items())
            raise DataError(
                f"Joined corpora have the same {what}: {said}. Prepare one of them again ({option})."
            )


def _frames(index: ShardIndex) -> str:
    counts = sorted({entry.frames for entry in index.clips if entry.frames})
    return str(counts[0]) if len(counts) == 1 and not index.frame_rate else ""


def _feature_kind(index: ShardIndex) -> str:
    if not index.has("features"):
        return ""
    return "one row a frame" if index.has("feature_sequence") else "one row a clip"


def _labels(parts: Sequence[Part], label_map: LabelMap) -> tuple[str, ...]:
    """The classes of the joined corpus, sorted; none where clips have traces alone."""
    known = {label for part in parts for label in part.index.labels}
    if label_map.of and not known:
        raise DataError(f"The map '{label_map.text}' is of classes, which these corpora have not.")
    if strange := [label for label in label_map.written if label not in known]:
        raise DataError(
            f"No clip has the label '{strange[0]}' (--map). Known: {', '.join(sorted(known))}."
        )
    labels = {label_map.label(label) for label in known} - {""}
    if known and len(labels) < 2:
        raise DataError(
            f"Two or more classes are needed, '{label_map.text}' leaves {', '.join(labels) or 'none'}."
        )
    return tuple(sorted(labels))


def _mapped(
    part: Part, label_map: LabelMap, prefix: str, *, several: bool
) -> tuple[list[ClipEntry], list[Skipped]]:
    """A part's clips as they are in the joined corpus, and those that its shards hold beside them.

    A clip's label is what its own label becomes, also where other labels of its raters become
    one that has more votes then.
    """
    kept, left_out = [], list(part.index.left_out)
    for entry in part.index.clips:
        label = label_map.label(entry.label) if part.index.labels else entry.label
        if part.index.labels and not label:
            why = f"'{entry.label}' of {part.name} becomes nothing (map {label_map.text})"
            left_out.append(Skipped(entry.clip, why))
            continue
        joined = replace(
            entry,
            label=label,
            votes=label_map.votes(entry.votes) if entry.votes else entry.votes,
            shard=prefix + entry.shard,
        )
        if several:
            joined = replace(
                joined,
                speaker=f"{part.name}:{entry.speaker}",
                recording=f"{part.name}:{entry.recording}" if entry.recording else "",
                attributes={**entry.attributes, "corpus": part.name},
            )
        kept.append(joined)
    if not kept:
        raise DataError(f"The map '{label_map.text}' leaves no clip of '{part.name}'.")
    return kept, left_out


def _source(part: Part, label_map: LabelMap) -> Source:
    """Return the source of a part; of one that was mapped before, what it was and both maps."""
    before = part.index.sources
    maps = [text for text in (*(s.label_map for s in before), label_map.text) if text]
    checksum = before[0].checksum if len(before) == 1 else part.index.checksum
    return Source(part.name, checksum, "; ".join(maps))


def _take_over(source: str, entry: ShardEntry, target: Path) -> None:
    """Links a shard, or copies it and compares; raises DataError if it is not what the index says."""
    if not is_url(source):
        path = Path(source).resolve()
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise DataError(f"The shard '{source}' is not what its index says. Prepare it again.")
        with suppress(OSError):  # another disk, or one that has no links
            os.link(path, target)
            return
    digest = hashlib.sha256()
    try:
        with open_resuming(source) as file:
            _copy(file, target, digest)
    except FileNotFoundError:
        raise DataError(f"There is no shard '{source}', which its index names.") from None
    if digest.hexdigest() != entry.sha256:
        raise DataError(f"The shard '{source}' does not match its checksum. Prepare it again.")


def _copy(file: IO[bytes], target: Path, digest: Any) -> None:
    with target.open("wb") as copy:
        while block := file.read(2**20):
            digest.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.join",
        description="Joins prepared corpora into one, without decoding anything again; of one alone it makes "
        "a view with other labels.",
    )
    parser.add_argument("out", metavar="OUT", help="the folder of the joined corpus")
    parser.add_argument(
        "parts",
        metavar="A",
        nargs="+",
        help="folders or URLs of shards; NAME=FOLDER calls a corpus otherwise than it is called",
    )
    parser.add_argument(
        "--map",
        metavar="MAP",
        help="what becomes of labels: common4 (angry, happy, neutral, sad), common4-calm (and calm is neutral), "
        "common6 (and disgust, fearful), or written out: calm=neutral,surprised= (left out)",
    )
    return parser


def _print_summary(parts: Sequence[Part], index: ShardIndex) -> None:
    print(
        f"{len(index.clips)} clips of {len({e.speaker for e in index.clips})} speakers in "
        f"{len(index.shards)} shards: {index.root}"
    )
    per_corpus = index.summary().get("per_corpus", {})
    for name in dict.fromkeys(part.name for part in parts):
        of_corpus = [e for e in index.clips if e.attributes.get("corpus", name) == name]
        counts = Counter(e.label for e in of_corpus)
        told = ", ".join(f"{label} {counts[label]}" for label in index.labels)
        print(
            f"{name}: {per_corpus.get(name, len(of_corpus))} clips" + (f": {told}" if told else "")
        )
    for reason, count in Counter(skipped.reason for skipped in index.left_out).items():
        print(f"{count} clips are left out: {reason}")
    for group in index.duplicates():
        print(f"same recording: {' = '.join(entry.clip for entry in group)}")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: joined; 2: in one line, why not."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    columns = (TextColumn("joining"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    try:
        if is_url(options.out):  # before it is a path, which has no double slash
            raise DataError(f"The joined corpus is a folder of this machine, got '{options.out}'.")
        label_map = parse_map(options.map) if options.map is not None else None
        parts = [read_part(text) for text in options.parts]
        quiet = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
            task = bar.add_task("", total=None)
            index = join(
                parts,
                Path(options.out),
                label_map,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; nothing was written.", file=sys.stderr)
        return 130
    _print_summary(parts, index)
    return 0


if __name__ == "__main__":
    sys.exit(main())
