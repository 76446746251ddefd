"""Vocabularies of emotions, and maps that make the labels of several corpora one vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from datasets.clips import DataError
from datasets.corpora.registry import CORPORA
from datasets.rater_votes import shares

VOCABULARIES: dict[str, tuple[str, ...]] = {
    corpus.name: corpus.vocabulary for corpus in CORPORA.values() if corpus.vocabulary
}
"""Corpus → every label that its authors give."""

_FOUR = {
    "angry": "angry",
    "happy": "happy",
    "excited": "happy",  # as everyone merges IEMOCAP's
    "neutral": "neutral",
    "sad": "sad",
}
# RAVDESS has a second baseline beside neutral, calm: like neutral, but of mildly positive valence (Livingstone &
# Russo 2018). No other corpus has it: it is left out, or taken as neutral by those who ask for it.
_CHOSEN: dict[str, dict[str, str]] = {
    "common4": _FOUR,
    "common4-calm": {**_FOUR, "calm": "neutral"},
    "common6": {**_FOUR, "disgust": "disgust", "fearful": "fearful"},
}

MAPS: dict[str, dict[str, str]] = {
    name: {label: chosen.get(label, "") for of in VOCABULARIES.values() for label in of}
    for name, chosen in _CHOSEN.items()
}
"""Name → label → what it becomes, empty for clips that are left out; frozen. `common4` is what RAVDESS,
IEMOCAP and CREMA-D share with every other corpus; `common6`, what RAVDESS and CREMA-D share."""


@dataclass(frozen=True)
class LabelMap:
    """Mapping of a corpus's labels to common ones.

    Attributes:
        text: As it was asked for.
        of: Label → what it becomes, empty for clips that are left out.
        closed: Whether other labels are an error, as under a named map; otherwise they stay.
        written: The labels that were written out, which some corpus must have.
    """

    text: str = ""
    of: Mapping[str, str] | None = None
    closed: bool = False
    written: tuple[str, ...] = ()

    def label(self, label: str) -> str:
        """Return what a label becomes; empty for left out.

        Raises:
            DataError: A named map does not know it.
        """
        known = self.of or {}
        if self.closed and label not in known:
            raise DataError(
                f"The map '{self.text}' does not know the label '{label}'. Say what becomes of it: "
                f"--map {self.text},{label}=angry, or {self.text},{label}= to leave it out."
            )
        return known.get(label, label)

    def votes(self, votes: Mapping[str, float]) -> dict[str, float]:
        """Shares of what the labels become; votes for what is left out do not count."""
        counts: dict[str, float] = {}
        for label, share in votes.items():
            if becomes := self.label(label):
                counts[becomes] = counts.get(becomes, 0.0) + share
        return shares(counts) if counts else {}


def parse_map(text: str) -> LabelMap:
    """A map by name, written out, or both: `common4`, `calm=neutral,surprised=`, `common4,anger=angry`.

    Args:
        text: Named maps and `LABEL=BECOMES`, separated by commas; `LABEL=` leaves its clips out.
            What is written out comes before what a named map says.

    Raises:
        DataError: A map that is unknown, or a label that is named twice.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    named: dict[str, str] = {}
    written: dict[str, str] = {}
    for part in parts:
        label, equals, becomes = (piece.strip() for piece in part.partition("="))
        if not equals and label not in MAPS:
            raise DataError(
                f"Unknown map '{label}'. Known: {', '.join(MAPS)}; or write one out: calm=neutral,surprised= "
                "(surprised is left out)."
            )
        if not equals:
            named |= MAPS[label]
        elif not label or label in written:
            raise DataError(
                f"The map '{text}' has '{part}': every label is named once, such as calm=neutral."
            )
        else:
            written[label] = becomes
    return LabelMap(",".join(parts), named | written, bool(named), tuple(written))
