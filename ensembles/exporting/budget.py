"""The best ensemble that a budget of time and space allows, chosen over the posterior bank.

Candidates are the run's recipes as it assessed them, each expert alone, the chosen recipes cut down
to their best few experts, and greedy selections whose experts together stay within a limit. Nothing
is trained; every candidate's score is cross-fitted. Which one wins is a choice on the very folds
that are scored, so that the winner's score is a search score; the honest score makes the same
choice, under the same budget, for each fold on the other folds (docs/honesty.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensembles import EnsembleError
from ensembles.evaluation.assessment import Scored, scored
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.fusion.base import Fusion
from ensembles.fusion.candidates import Candidate, Fitted, Fitter, Recipe
from ensembles.fusion.greedy import GreedySelection
from ensembles.fusion.late import AverageFusion
from ensembles.fusion.rules import Space
from ensembles.metrics import Array, get_metric

PAPERS_MB = 0.3
"""Size of what a folder holds beside its experts: manifest, card, front, program."""
_LEVELS = 6
_MOST_BEST = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cost:
    """Cost of an expert.

    Attributes:
        latency_ms: For one clip of typical length.
        mb: Of its files, 10⁶ bytes.
    """

    latency_ms: float
    mb: float


@dataclass(frozen=True)
class Budget:
    """Limits of an ensemble's cost; None: no limit."""

    max_latency_ms: float | None = None
    max_mb: float | None = None

    def __post_init__(self) -> None:
        """Raises EnsembleError for what is no amount."""
        for name, value in (
            ("--max-latency-ms", self.max_latency_ms),
            ("--max-mb", self.max_mb),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise EnsembleError(f"{name} must be a number above 0, got {value}.")

    @property
    def limits(self) -> Array:
        """(2,) milliseconds and MB that experts may cost together."""
        space = math.inf if self.max_mb is None else self.max_mb - PAPERS_MB
        return np.asarray([self.max_latency_ms or math.inf, space])

    @property
    def axis(self) -> int:
        """Return the axis that the front is drawn over: 0, latency, or 1, size."""
        return 1 if self.max_latency_ms is None and self.max_mb is not None else 0

    def __str__(self) -> str:
        """Return the budget as it was asked for."""
        asked = {"--max-latency-ms": self.max_latency_ms, "--max-mb": self.max_mb}
        return " ".join(f"{name} {value:g}" for name, value in asked.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class BestFew:
    """The best `count` of another recipe's experts, fused anew in its way."""

    name: str
    of: Recipe
    count: int

    def build(self, modalities: Sequence[str]) -> Fusion:
        """See `Candidate`."""
        return self.of.build(modalities)

    def fit(self, fitter: Fitter, excluded: frozenset[int]) -> Fitted:
        """See `Candidate`."""
        members, _ = fitter.fit(self.of, excluded)
        merits = fitter.merits(excluded)
        taken = sorted(members, key=lambda m: -merits[m])[: self.count]
        return Fitted.from_taken(taken, fitter.fit_rule(self.of, taken, excluded))


@dataclass(frozen=True, kw_only=True)
class WithinLimits:
    """Greedy selection of experts that together cost no more than limits, (2,); costs are (M, 2)."""

    name: str
    costs: Array
    limits: Array
    space: Space
    metric: str

    def build(self, modalities: Sequence[str]) -> Fusion:
        """See `Candidate`; these experts take over from others and cost less."""
        return GreedySelection(self.space, metric=self.metric)

    def fit(self, fitter: Fitter, excluded: frozenset[int]) -> Fitted:
        """See `Candidate`."""
        able = np.flatnonzero((self.costs <= self.limits).all(axis=1))
        table = fitter.experts.table
        rows = ~np.isin(table.folds, list(excluded))
        selection = GreedySelection(
            self.space, metric=self.metric, costs=self.costs[able], limits=self.limits
        )
        values = fitter.experts.log_posteriors[able][:, rows]
        rule = selection.fit(values, table.labels[rows], table.folds[rows]).rule()
        return Fitted.from_taken(able.tolist(), rule)


@dataclass(frozen=True)
class Assessed:
    """One ensemble that could be exported.

    Attributes:
        candidate: How its experts are chosen and fused.
        score: Cross-fitted, mean of the folds.
        experts: Those that all folds choose.
        per_fold: Those chosen without each fold.
        cost: (2,) milliseconds and MB of its experts.
        fold_costs: (folds, 2) of those chosen without each fold.
    """

    candidate: Candidate
    score: float
    experts: tuple[str, ...]
    per_fold: tuple[tuple[str, ...], ...]
    cost: Array
    fold_costs: Array


@dataclass(frozen=True)
class Choice:
    """Choice made under a budget.

    Attributes:
        budget: What was asked.
        metric: What is scored.
        candidates: All of them.
        chosen: The best that fits.
        fitting: How many fit.
        row: The choice made for each fold on the other folds: the honest score. Its search score
            is that of `chosen`.
    """

    budget: Budget
    metric: str
    candidates: tuple[Assessed, ...]
    chosen: Assessed
    fitting: int
    row: Scored

    @property
    def front(self) -> list[Assessed]:
        """Candidates that no cheaper one equals, cheapest first."""
        axis, front = self.budget.axis, list[Assessed]()
        able = [c for c in self.candidates if np.isfinite(c.cost).all()]
        for candidate in sorted(able, key=lambda c: (c.cost[axis], -_merit(self.metric, c))):
            if not front or _merit(self.metric, candidate) > _merit(self.metric, front[-1]):
                front.append(candidate)
        return front


def _merit(metric: str, candidate: Assessed) -> float:
    return candidate.score * get_metric(metric).sign


class Candidates:
    """Makes the candidates and chooses among them.

    Args:
        fitter: Over the run's finished experts.
        recipes: The run's, by name.
        costs: Expert → what it costs; who is not named cannot be exported.
    """

    def __init__(
        self, fitter: CrossFitter, recipes: Mapping[str, Recipe], costs: Mapping[str, Cost]
    ) -> None:
        self.fitter, self.recipes = fitter, recipes
        never = Cost(math.inf, math.inf)
        each = [costs.get(name, never) for name in fitter.experts.names]
        self.costs: Array = np.asarray([[cost.latency_ms, cost.mb] for cost in each])

    def choose(
        self,
        rows: Iterable[Mapping[str, object]],
        start: str,
        start_by_fold: Sequence[str],
        budget: Budget,
        on_progress: Progress | None = None,
    ) -> Choice:
        """The best candidate within a budget.

        Args:
            rows: The run's recipes as it assessed them (`fusions` of summary.json).
            start: The recipe that all folds chose, whose best few experts are candidates too.
            start_by_fold: The same, as it was chosen without each fold: what that fold's honest
                choice may cut down.
            budget: What it may cost.
            on_progress: Told how many candidates of how many are assessed.

        Raises:
            EnsembleError: If nothing fits; names what the cheapest costs.
        """
        self._check_possible(budget)
        candidates = [self._as_assessed(row) for row in rows]
        reductions: list[Candidate] = [
            *self._alone(),
            *self._few([start, *start_by_fold]),
            *self._within(candidates, budget),
        ]
        for done, reduction in enumerate(reductions, start=1):
            candidates.append(self._assess(reduction))
            if on_progress:
                on_progress(done, len(reductions))
        fitting = [c for c in candidates if (c.cost <= budget.limits).all()]
        metric = self.fitter.metric
        chosen = max(fitting, key=lambda c: (_merit(metric, c), *(-c.cost)))
        row = self._fold_by_fold(candidates, chosen, start_by_fold, budget)
        return Choice(budget, metric, tuple(candidates), chosen, len(fitting), row)

    def _check_possible(self, budget: Budget) -> None:
        able = np.flatnonzero(np.isfinite(self.costs).all(axis=1))
        if not len(able):
            raise EnsembleError("The run kept no expert's weights that could be exported.")
        if (self.costs <= budget.limits).all(axis=1).any():
            return
        cheapest = []
        for axis in dict.fromkeys((budget.axis, int(np.isfinite(budget.limits[1])))):
            one = min(able, key=lambda m: self.costs[m, axis])
            latency, mb = self.costs[one]
            cheapest.append(
                f"'{self.fitter.experts.names[one]}' alone takes {latency:.3g} ms and "
                f"{mb + PAPERS_MB:.3g} MB"
            )
        raise EnsembleError(
            f"Nothing fits {budget}: the cheapest, {', or '.join(dict.fromkeys(cheapest))}."
        )

    def cost(self, names: Iterable[str]) -> Array:
        """(2,) milliseconds and MB of some experts."""
        members = [self.fitter.experts.names.index(name) for name in set(names)]
        return np.asarray(self.costs[members].sum(axis=0))

    def _assessed(
        self,
        candidate: Candidate,
        score: float,
        experts: Iterable[str],
        per_fold: Iterable[Iterable[str]],
    ) -> Assessed:
        by_fold = tuple(tuple(names) for names in per_fold)
        fold_costs = np.stack([self.cost(names) for names in by_fold])
        names = tuple(experts)
        return Assessed(candidate, score, names, by_fold, self.cost(names), fold_costs)

    def _as_assessed(self, row: Mapping[str, object]) -> Assessed:
        try:
            recipe = self.recipes[str(row["name"])]
            per_fold = [choice["experts"] for choice in row["per_fold"]]  # type: ignore[attr-defined]
            if len(per_fold) != len(self.fitter.folds):
                raise ValueError(f"{len(per_fold)} of {len(self.fitter.folds)} folds")
            score = float(row["honest_score"])  # type: ignore[arg-type]
            return self._assessed(recipe, score, row["experts"], per_fold)  # type: ignore[arg-type]
        except (KeyError, ValueError, TypeError) as error:
            raise EnsembleError(
                f"The run's fusions (summary.json) do not fit its bank: {error!r}. "
                "Continue the run with --resume to assess it again."
            ) from error

    def _assess(self, candidate: Candidate) -> Assessed:
        fitter, names = self.fitter, self.fitter.experts.names
        table = fitter.experts.table
        metric = get_metric(fitter.metric)
        score = metric.fold_mean(table.labels, fitter.honest(candidate), table.folds)
        taken = [
            fitter.fit(candidate, frozenset(some)).members
            for some in [(), *((k,) for k in fitter.folds)]
        ]
        experts, *per_fold = [tuple(names[m] for m in members) for members in taken]
        return self._assessed(candidate, score, experts, per_fold)

    def _alone(self) -> list[Recipe]:
        def only(member: int) -> Recipe:
            name = f"{self.fitter.experts.names[member]} alone"
            return Recipe(name, lambda *_: [member], lambda _: AverageFusion(), single=True)

        return [only(int(m)) for m in np.flatnonzero(np.isfinite(self.costs).all(axis=1))]

    def _few(self, start: Sequence[str]) -> list[BestFew]:
        few: list[BestFew] = []
        for name in dict.fromkeys(start):
            recipe = self.recipes.get(name)
            if recipe is None or recipe.single:
                continue
            members, _ = self.fitter.fit(recipe, frozenset())
            few += [
                BestFew(name=f"{name}, best {count}", of=recipe, count=count)
                for count in range(1, min(len(members), _MOST_BEST + 1))
            ]
        return few

    def _within(self, candidates: Iterable[Assessed], budget: Budget) -> list[WithinLimits]:
        """Greedy selections within the budget, and within limits along the front."""
        axis, unit = budget.axis, ("ms", "MB")[budget.axis]
        able = self.costs[np.isfinite(self.costs).all(axis=1)]
        dearest = max((c.cost[axis] for c in candidates if np.isfinite(c.cost).all()), default=0.0)
        cheapest = float(able[:, axis].min())
        levels = np.geomspace(cheapest, max(float(dearest), 2 * cheapest), _LEVELS + 1)[1:]
        named: dict[str, Array] = {"within the budget": budget.limits}
        for level in levels:
            limits = np.full(2, math.inf)
            limits[axis] = level
            named[f"within {level:.4g} {unit}"] = limits
        ways: dict[str, tuple[Space, str]] = {
            "average": ("arithmetic", self.fitter.metric),
            "product by log-loss": ("log", "log_loss"),
        }
        return [
            WithinLimits(
                name=f"greedy {name}: {way}",
                costs=self.costs,
                limits=limits,
                space=space,
                metric=metric,
            )
            for name, limits in named.items()
            for way, (space, metric) in ways.items()
        ]

    def _fold_by_fold(
        self,
        candidates: Sequence[Assessed],
        chosen: Assessed,
        start_by_fold: Sequence[str],
        budget: Budget,
    ) -> Scored:
        """The choice for each fold among what fits without it, made on the other folds."""
        fitter, table = self.fitter, self.fitter.experts.table
        out = np.empty(fitter.experts.log_posteriors.shape[1:])
        per_fold = []
        for number, fold in enumerate(fitter.folds):
            among = [
                c
                for c in candidates
                if (c.fold_costs[number] <= budget.limits).all()
                # Other recipes are cut down because folds chose them that saw this one.
                and not (
                    isinstance(c.candidate, BestFew)
                    and c.candidate.of.name != start_by_fold[number]
                )
            ]
            best = fitter.choose([c.candidate for c in among], fold)
            out[table.folds == fold] = fitter.predict(best, frozenset({fold}), fold)
            members, _ = fitter.fit(best, frozenset({fold}))
            per_fold.append((best.name, tuple(fitter.experts.names[m] for m in members)))
        return scored(
            "fused", table, fitter.metric, out, chosen.score, chosen.experts, tuple(per_fold)
        )
