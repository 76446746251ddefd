"""The fusion search: which experts, fused how. Every candidate is cross-fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from ensembles.bank.posterior_bank import MODALITIES, Experts
from ensembles.fusion.base import Build, Fusion
from ensembles.fusion.greedy import GreedySelection
from ensembles.fusion.late import AverageFusion, GroupedFusion, WeightedFusion
from ensembles.fusion.methods import METHODS, PUBLISHED_METHODS, TRACE_METHODS
from ensembles.fusion.rules import Rule
from ensembles.fusion.trace_fusion import TraceAverage, TraceGreedy
from ensembles.metrics import CCC, Array

Selection = Callable[[Experts, Array], list[int]]
"""(experts, (M,) merit of each on the rows that may choose) → indices of those taken."""


def single_name(modality: str) -> str:
    """Return what leaderboards call a modality's best expert."""
    return f"best {modality}"


def best_of(*modalities: str, count: int = 1) -> Selection:
    """The `count` best experts of each modality; modalities without any are left out."""

    def select(experts: Experts, merit: Array) -> list[int]:
        taken: list[int] = []
        for modality in modalities:
            members = [m for m, name in enumerate(experts.modalities) if name == modality]
            taken += sorted(members, key=lambda m: -merit[m])[:count]
        return taken

    return select


def all_of(modality: str) -> Selection:
    """Every expert of a modality, best first."""

    def select(experts: Experts, merit: Array) -> list[int]:
        order = everything(experts, merit)
        return [m for m in order if experts.modalities[m] == modality]

    return select


def everything(experts: Experts, merit: Array) -> list[int]:
    """All experts, best first."""
    return [int(m) for m in np.argsort(-merit, kind="stable")]


class Fitted(NamedTuple):
    """Indices of the experts that weigh something, and their fusion."""

    members: list[int]
    rule: Rule

    @classmethod
    def from_taken(cls, taken: Sequence[int], rule: Rule) -> Fitted:
        """Leave out those of the experts taken that the rule does not use."""
        return cls([int(taken[m]) for m in rule.used], rule.of_used())


class Fitter(Protocol):
    """Experts, and what is known of them without some folds."""

    experts: Experts

    def merits(self, excluded: frozenset[int]) -> Array:
        """(M,) merit of each expert outside the excluded folds, higher is better."""

    def fit(self, candidate: Candidate, excluded: frozenset[int]) -> Fitted:
        """Fit a candidate outside the excluded folds, or return what was fitted before."""

    def fit_rule(self, candidate: Candidate, taken: list[int], excluded: frozenset[int]) -> Rule:
        """Fit a candidate's fusion of given experts outside the excluded folds."""


class Candidate(Protocol):
    """A way to an ensemble: a choice of experts, and their fusion."""

    @property
    def name(self) -> str:
        """Return what the leaderboard calls it."""

    def build(self, modalities: Sequence[str], /) -> Fusion:
        """Make the fusion of experts of these modalities."""

    def fit(self, fitter: Fitter, excluded: frozenset[int]) -> Fitted:
        """Choose experts and fuse them, with no look at the excluded folds."""


@dataclass(frozen=True)
class Recipe:
    """The experts that a selection takes, fused.

    Attributes:
        name: What the leaderboard calls it.
        select: Which experts.
        build: Makes the fusion of experts of these modalities.
        single: One expert as it is; nothing is fused.
        within: The modality that all its experts are of, or None.
    """

    name: str
    select: Selection
    build: Build
    single: bool = False
    within: str | None = None

    def fit(self, fitter: Fitter, excluded: frozenset[int]) -> Fitted:
        """See `Candidate`."""
        taken = self.select(fitter.experts, fitter.merits(excluded))
        return Fitted.from_taken(taken, fitter.fit_rule(self, taken, excluded))


_PAIR = ("audio", "video")
_BAGS = 10


def recipes_for(experts: Experts, metric: str = "accuracy") -> list[Recipe]:
    """The recipes that these experts allow: single experts first, then from plain to elaborate."""
    if metric == CCC:
        return _of_traces(experts)
    present = [m for m in MODALITIES if m in experts.modalities]
    strangers = sorted(set(experts.modalities) - set(MODALITIES))
    singles = [
        Recipe(single_name(m), best_of(m), lambda _: AverageFusion(), single=True, within=m)
        for m in [*present, *strangers]
    ]
    if len(experts.names) < 2:
        return singles
    recipes = list(singles)
    for modality in present:
        if experts.modalities.count(modality) > 1:
            recipes += _within(modality, experts, metric)
    if strangers:
        recipes += _combinations("all", everything, {**METHODS, **PUBLISHED_METHODS})
    if set(_PAIR) <= set(present):
        recipes += _combinations("a+v", best_of(*_PAIR), {**METHODS, **PUBLISHED_METHODS})
    if present == list(MODALITIES):
        recipes += _combinations("a+v+e", best_of(*MODALITIES), METHODS)
    for count, least in ((3, 1), (5, 3)):
        if len(present) > 1 and not strangers and _more_than(least, experts, present):
            select, name = best_of(*MODALITIES, count=count), f"top {count} each"
            recipes += [*_combinations(name, select, METHODS), *_grouped(name, select)]
    if len(present) > 1 or strangers:
        recipes += _greedy("greedy", everything, metric)
    return recipes


def _of_traces(experts: Experts) -> list[Recipe]:
    """Recipes for traces."""
    present = [m for m in MODALITIES if m in experts.modalities]
    recipes = [
        Recipe(single_name(m), best_of(m), lambda _: TraceAverage(), single=True, within=m)
        for m in present
    ]
    for modality in present:
        if experts.modalities.count(modality) > 1:
            within = _combinations(f"{modality} top 3", best_of(modality, count=3), TRACE_METHODS)
            recipes += [replace(recipe, within=modality) for recipe in within]
    if set(_PAIR) <= set(present):
        recipes += _combinations("a+v", best_of(*_PAIR), TRACE_METHODS)
    if len(present) > 1 and _more_than(1, experts, present):
        recipes += _combinations("top 3 each", best_of(*MODALITIES, count=3), TRACE_METHODS)
        recipes.append(Recipe("greedy", everything, lambda _: TraceGreedy()))
    return recipes


def _more_than(count: int, experts: Experts, present: list[str]) -> bool:
    return any(experts.modalities.count(modality) > count for modality in present)


def _within(modality: str, experts: Experts, metric: str) -> list[Recipe]:
    """Ensembles of one modality; by every method where there is no other modality."""
    recipes = []
    for count in (3, 5):
        select, name = best_of(modality, count=count), f"{modality} top {count}"
        if set(experts.modalities) == {modality}:
            recipes += _combinations(name, select, METHODS)
        else:
            recipes += [
                Recipe(f"{name}: product", select, lambda _: AverageFusion("log")),
                Recipe(f"{name}: weighted product", select, lambda _: WeightedFusion("log")),
            ]
        if experts.modalities.count(modality) <= count:
            break
    recipes += _greedy(f"{modality} greedy", all_of(modality), metric)
    return [replace(recipe, within=modality) for recipe in recipes]


def _greedy(name: str, select: Selection, metric: str) -> list[Recipe]:
    return [
        Recipe(f"{name}: average", select, lambda _: GreedySelection("arithmetic", metric=metric)),
        Recipe(f"{name}: product", select, lambda _: GreedySelection("log", metric=metric)),
        Recipe(f"{name}: by log-loss", select, lambda _: GreedySelection("log", metric="log_loss")),
        Recipe(
            f"{name}: bagged",
            select,
            lambda _: GreedySelection("log", metric="log_loss", bags=_BAGS),
        ),
    ]


def _combinations(name: str, select: Selection, methods: Mapping[str, Build]) -> list[Recipe]:
    """Every method on one selection."""
    return [Recipe(f"{name}: {method}", select, build) for method, build in methods.items()]


def _grouped(name: str, select: Selection) -> list[Recipe]:
    """Where a modality has several experts: one weight for all of them."""
    return [Recipe(f"{name}: grouped product", select, GroupedFusion)]
