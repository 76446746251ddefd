"""Domains of settings: a choice or a range, and the conditions under which they exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna

Condition = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Choice:
    """One of several values; asked for only `when` other settings have certain values."""

    values: tuple[Any, ...]
    when: Condition = field(default_factory=dict)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Asks Optuna."""
        return trial.suggest_categorical(name, list(self.values))


@dataclass(frozen=True)
class Range:
    """A number between two bounds, on a logarithmic scale if asked; `when` as in `Choice`."""

    low: float
    high: float
    log: bool = False
    when: Condition = field(default_factory=dict)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Asks Optuna."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


Space = dict[str, Choice | Range]
