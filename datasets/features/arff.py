"""ARFF, as openSMILE writes it: an attribute `name` says the clip, the class is left out.

With an attribute `frameTime` or `frameIndex` a row is a frame's, unless every clip has one row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from datasets.clips import DataError
from datasets.features.text import TIMES, Layout

_ATTRIBUTE = re.compile(r"""@attribute\s+('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)\s+(.+)""", re.I)
_NUMERIC = ("numeric", "real", "integer")
_CLIP = ("name", "clip")
_CLASS = ("class", "emotion")


@dataclass(frozen=True)
class _Attribute:
    name: str
    numeric: bool


def arff_layout(path: Path, *, one_clip: bool = False) -> Layout:
    """Reads an ARFF file's head.

    Args:
        path: The file.
        one_clip: It is of one clip, whose name is the file's.

    Raises:
        DataError: The head is damaged, or names no clips or no features.
    """
    attributes, skip, quote = _read_head(path)
    clip = next((n for n, a in enumerate(attributes) if a.name in _CLIP and not a.numeric), None)
    if clip is None and not one_clip:
        raise DataError(
            f"'{path}' has no attribute 'name' that says each row's clip (--features); it has: "
            f"{', '.join(a.name for a in attributes[:5])}."
        )
    places = {a.name: n for n, a in enumerate(attributes) if a.numeric}
    frame = next((places[name] for name in ("frame", *TIMES) if name in places), None)
    features = tuple(
        n for n, a in enumerate(attributes)
        if a.numeric and n != frame and a.name not in (*TIMES, *_CLASS)
    )  # fmt: skip
    if not features:
        raise DataError(f"'{path}' has no numeric attribute beside the class (--features).")
    if one_clip:
        clip, frame = None, -1 if frame is None else frame
    return Layout(
        width=len(attributes),
        names=tuple(attributes[n].name for n in features),
        features=features,
        clip=clip,
        frame=frame,
        skip=skip,
        quote=quote,
        comment="%",
        one_is_whole=True,
        is_file=True,
    )


def _read_head(path: Path) -> tuple[list[_Attribute], int, str]:
    """The attributes, the lines up to @data, and what the first row quotes names with."""
    attributes: list[_Attribute] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                text = line.strip()
                if text.lower() == "@data":
                    first = next((row for row in file if row.strip() and row[0] != "%"), "")
                    if first.lstrip().startswith("{"):
                        raise DataError(
                            f"'{path}' is a sparse ARFF, which is not read (--features)."
                        )
                    return attributes, number, '"' if '"' in first else "'"
                if text.lower().startswith("@attribute"):
                    attributes.append(_attribute(path, number, text))
                elif text and text[0] != "%" and not text.lower().startswith("@relation"):
                    raise DataError(
                        f"'{path}', line {number}, is no ARFF: '{text[:60]}' (--features)."
                    )
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is no ARFF in UTF-8: {error} (--features).") from error
    raise DataError(f"'{path}' is no ARFF: it has no @data (--features).")


def _attribute(path: Path, number: int, text: str) -> _Attribute:
    found = _ATTRIBUTE.fullmatch(text)
    if found is None:
        raise DataError(f"'{path}', line {number}, is no attribute: '{text[:60]}' (--features).")
    name, kind = found.groups()
    if name[0] in "'\"" and name[-1] == name[0]:
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return _Attribute(name, kind.strip().lower() in _NUMERIC)
