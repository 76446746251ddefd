"""Scope of a search: architectures, early fusions and their parts, pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from models import ClipShape, get_architecture
from models.pretrained import Found, find_checkpoints
from models.registry import Architecture, Modality, ModelError, architectures

PLAIN_FUSION = "concatenation"
"""The early fusion whose parts are compared first."""

NEEDS_WEIGHTS = "needs pretrained weights"

DELAYS = (0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.8, 4.0, 6.0, 8.0)
"""Seconds by which raters may be late."""

SIDES: tuple[Modality, ...] = ("audio", "video")
"""The modalities that have experts of their own, and early fusion's parts."""


@dataclass(frozen=True)
class Transfer:
    """How an architecture with a backbone may start.

    Attributes:
        modes: Of scratch, frozen and finetune; the known-good one first.
        checkpoints: Pretrained weights that are there.
    """

    modes: tuple[str, ...]
    checkpoints: tuple[Found, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the run's record."""
        return {"modes": list(self.modes), "checkpoints": [c.to_json() for c in self.checkpoints]}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Transfer:
        """The inverse of `to_json`."""
        found = tuple(Found.from_json(c) for c in document["checkpoints"])
        return Transfer(tuple(document["modes"]), found)

    @property
    def known_good(self) -> dict[str, Any]:
        """Settings of the first mode."""
        if self.modes[0] == "scratch":
            return {"transfer": "scratch"}
        return {"transfer": self.modes[0], "checkpoint": self.checkpoints[0].to_json()}


@dataclass(frozen=True, kw_only=True)
class SearchScope:
    """Scope of a search: what it may try. A run records it, so that a resumed one searches the same.

    Attributes:
        single: Modality → architectures of its experts.
        fusions: Early fusions.
        parts: Modality → architectures that early fusion may join.
        transfers: Architecture → how its backbone may start; those that have one.
        epochs_scale: A preset shortens or lengthens every schedule.
        epochs: Every schedule's length, where it is not searched.
        saliency_maps: Whether the clips' frames come with maps of their own.
        all_recipes: Whether everything about training is searched, or the core of it.
        why_not: Architecture → why it is not offered.
        generation: 1, and one more whenever a finished search was given more architectures.
        too_slow: Architecture → settings that change waveforms, of which a trial would take too long.
        given: Modality → label → a plan's JSON: what is trained where nothing is searched.
        answers: What networks say, see `ClipShape`.
        delays: Label delays that recordings are long enough for, in seconds; of traces.
        frame_counts: How many frames of a clip networks may look at; of traces, which change
            within it.
    """

    single: Mapping[str, tuple[str, ...]]
    fusions: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transfers: Mapping[str, Transfer] = field(default_factory=dict)
    epochs_scale: float = 1.0
    epochs: int | None = None
    saliency_maps: bool = False
    all_recipes: bool = False
    why_not: Mapping[str, str] = field(default_factory=dict)
    generation: int = 1
    too_slow: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given: Mapping[str, Mapping[str, dict[str, Any]]] = field(default_factory=dict)
    answers: str = "classes"
    delays: tuple[float, ...] = ()
    frame_counts: tuple[int, ...] = ()

    @property
    def given_trials(self) -> int:
        """How many configurations are given; 0 where they are searched."""
        return sum(map(len, self.given.values()))

    @property
    def modalities(self) -> list[str]:
        """Those with something to search."""
        if self.given:
            return list(self.given)
        found: list[str] = [side for side in SIDES if self.single.get(side)]
        return [*found, "early"] if self.fusions else found

    @property
    def networks(self) -> set[str]:
        """Every architecture that takes part, as an expert or as a part of early fusion."""
        groups = (*self.single.values(), *self.parts.values())
        return {name for names in groups for name in names}

    def choices(self, modality: str) -> tuple[str, ...]:
        """Values of the modality's `architecture` parameter."""
        return self.fusions if modality == "early" else self.single[modality]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Audio and video parts of early fusion."""
        if not self.fusions:
            return []
        return [(a, v) for a in self.parts["audio"] for v in self.parts["video"]]

    def start_of(self, name: str) -> dict[str, Any]:
        """How an architecture's backbone starts, known-good; empty where it has none."""
        return self.transfers[name].known_good if name in self.transfers else {}

    def joined(self, other: SearchScope) -> SearchScope:
        """This one, and what another one has besides."""
        single, parts = _union(self.single, other.single), _union(self.parts, other.parts)
        fusions = tuple(dict.fromkeys([*self.fusions, *other.fusions]))
        transfers = {**other.transfers, **self.transfers}
        before = (dict(self.single), dict(self.parts), self.fusions)
        if (single, parts, fusions) == before:
            return self
        return replace(
            self,
            single=single,
            fusions=fusions,
            parts=parts,
            transfers=transfers,
            why_not={name: why for name, why in self.why_not.items() if name in other.why_not},
            too_slow={**other.too_slow, **self.too_slow},
            generation=self.generation + 1,
        )

    def to_json(self) -> dict[str, Any]:
        """For the run's `run.json`."""
        return {
            **asdict(replace(self, transfers={})),
            "transfers": {name: t.to_json() for name, t in self.transfers.items()},
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> SearchScope:
        """The inverse of `to_json`; raises ModelError on a scope of an older program."""
        if "fusions" not in document:
            raise ModelError(
                "The run was searched by an older version of this program. Start a new run."
            )
        lists = {
            key: {side: tuple(names) for side, names in document[key].items()}
            for key in ("single", "parts")
        }
        too_slow = {n: tuple(keys) for n, keys in document.get("too_slow", {}).items()}
        transfers = {n: Transfer.from_json(t) for n, t in document["transfers"].items()}
        return SearchScope(
            **{
                **document,
                **lists,
                "fusions": tuple(document["fusions"]),
                "transfers": transfers,
                "too_slow": too_slow,
                "delays": tuple(document.get("delays", ())),
                "frame_counts": tuple(document.get("frame_counts", ())),
            }
        )


def _union(
    one: Mapping[str, tuple[str, ...]], other: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    sides = dict.fromkeys([*one, *other])
    return {s: tuple(dict.fromkeys([*one.get(s, ()), *other.get(s, ())])) for s in sides}


def scope_for(
    shape: ClipShape,
    only: tuple[str, ...] = (),
    epochs_scale: float = 1.0,
    *,
    epochs: int | None = None,
    all_recipes: bool = False,
    weights: Path | None = None,
    longest_delay: float = 0.0,
) -> SearchScope:
    """Adapts the space to what the clips hold, to `--only` and to the weights that are there.

    Args:
        shape: The clips.
        only: Architectures and early fusions to search; empty for all.
        epochs_scale: Factor on every schedule.
        epochs: Length of every schedule, where it is not searched.
        all_recipes: Search everything about training.
        weights: Folder of pretrained weights.
        longest_delay: Of labels, in seconds, that the shortest recording allows.

    Raises:
        ModelError: An unknown architecture in `only`, nothing is left, or weights that cannot be read.
    """
    for name in only:
        get_architecture(name)
    fitting, transfers, why_not = _sort_out(shape, only, weights)
    why_not = {name: why for name, why in why_not.items() if not only or name in only}
    single = {
        side: tuple(name for name in names if not only or name in only)
        for side, names in fitting.items()
    }
    # Early fusion alone, or with experts of one side: other parts may be anything that fits.
    parts = {side: single[side] or fitting[side] for side in fitting}
    fusions = [e.name for e in architectures("early") if not only or e.name in only]
    fusions = sorted(fusions, key=lambda name: name != PLAIN_FUSION) if all(parts.values()) else []
    if not fusions and not any(single.values()):
        reasons = "; ".join(f"{name}: {why}" for name, why in why_not.items())
        raise ModelError(
            f"No architecture is left to search. {reasons or 'The clips hold nothing that one reads.'}"
        )
    parts = parts if fusions else {}
    offered = {name for group in (single, parts) for side in group.values() for name in side}
    return SearchScope(
        single=single,
        fusions=tuple(fusions),
        parts=parts,
        transfers={name: start for name, start in transfers.items() if name in offered},
        epochs_scale=epochs_scale,
        epochs=epochs,
        saliency_maps=shape.saliency_maps,
        all_recipes=all_recipes,
        why_not=why_not,
        answers=shape.answers,
        delays=tuple(seconds for seconds in DELAYS if seconds <= longest_delay),
        frame_counts=_frame_counts(shape),
    )


def _frame_counts(shape: ClipShape) -> tuple[int, ...]:
    if shape.answers != "traces" or not shape.frames:
        return ()
    return tuple(sorted({max(4, shape.frames // share) for share in (6, 3, 1)}))


def _sort_out(
    shape: ClipShape, only: tuple[str, ...], weights: Path | None
) -> tuple[dict[str, tuple[str, ...]], dict[str, Transfer], dict[str, str]]:
    """Side → architectures that fit; how their backbones may start; why the others do not fit."""
    fitting: dict[str, tuple[str, ...]] = {}
    transfers: dict[str, Transfer] = {}
    why_not: dict[str, str] = {}
    for side in SIDES:
        names = []
        for entry in architectures(side):
            transfer = _transfer(entry, weights)
            if reason := _unfit(entry, shape, transfer, entry.name in only):
                why_not[entry.name] = reason
                continue
            names.append(entry.name)
            if transfer is not None:
                transfers[entry.name] = transfer
        fitting[side] = tuple(names)
    return fitting, transfers, why_not


def _transfer(entry: Architecture, weights: Path | None) -> Transfer | None:
    """None for an architecture without a backbone."""
    if not entry.checkpoints:
        return None
    found = tuple(find_checkpoints(entry, weights)) if weights else ()
    if not found:
        return Transfer(("scratch",))
    scratch = ("scratch",) if entry.from_scratch else ()
    return Transfer(("frozen", "finetune", *scratch), found)


def _unfit(
    entry: Architecture, shape: ClipShape, transfer: Transfer | None, asked: bool
) -> str | None:
    lacking = [kind for kind in entry.inputs if not shape.has(kind)]
    if lacking:
        return f"not every clip has {lacking[0].replace('_', ' ')}"
    if shape.answers == "traces" and not entry.over_time:
        return "has no time axis"
    if transfer and not transfer.checkpoints and not entry.from_scratch and not asked:
        return NEEDS_WEIGHTS
    return None


def missing_weights(scope: SearchScope, weights: Path | None) -> str | None:
    """One line on the pretrained weights that are not there; None if all are."""
    scratch = [name for name, start in scope.transfers.items() if not start.checkpoints]
    left_out = [name for name, why in scope.why_not.items() if why == NEEDS_WEIGHTS]
    names = (*scratch, *left_out)
    if not names:
        return None
    if weights is None:
        return (
            f"no pretrained weights for {len(names)} architectures: --weights DIR, with the files that "
            "python -m models.list names"
        )
    files = ", ".join(f"{get_architecture(n).checkpoints[0].files[0]} ({n})" for n in names)
    return (
        f"pretrained weights: not in '{weights}': {files}; python -m models.list --json names all"
    )
