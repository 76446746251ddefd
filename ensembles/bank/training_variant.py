"""How a training differs from the trial that the search chose by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Variant:
    """One of several trainings of a trial's configuration.

    Attributes:
        kind: `search`, the trial itself; `fresh seed`; `adapted` to new speakers by some of their
            unlabelled clips; `repeated`, because its networks were lost.
        number: The seed, or the number of clips; None where there is none, or several.
    """

    kind: Literal["search", "fresh seed", "adapted", "repeated"] = "search"
    number: int | None = None

    @property
    def suffix(self) -> str:
        """Suffix that tells the training's files from the trial's own."""
        number = "" if self.number is None else str(self.number)
        return {
            "search": "",
            "fresh seed": f"+seed{number}",
            "adapted": f"+enrol{number}" if number else "+enrolled",
            "repeated": "+again",
        }[self.kind]


SEARCH = Variant()
