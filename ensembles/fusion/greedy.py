"""Greedy ensemble selection with replacement (Caruana et al., 2004, ICML), fast.

A candidate is judged by how many clips the pooled posteriors then get right. Instead of an
argmax over classes, each expert is kept as its margins, rival class less true class: margins add
up as posteriors do, and a clip is right while its largest margin is negative. One pass in
float32 over blocks that stay in the processor's cache tells for every candidate how many clips
are right for certain and how many may be; only candidates that may still be the best are then
judged exactly, in float64, with ties broken by log-loss. So the choices are those of a plain loop
([how fast](../docs/performance.md)), which metrics other than accuracy, UAR, macro-F1 and log-loss get.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ensembles.fusion.rules import Pooling, Space
from ensembles.metrics import Array, Labels, get_metric, log_softmax

_FLOOR = -30.0
_OF_HITS = ("accuracy", "uar", "macro_f1")
"""Metrics that are chosen for by sums of hits."""
_STEPS_A_LOOK = 16
"""So many members, and one step more is looked ahead."""
_BLOCK_BYTES = 2**18
"""Size of a block's margins: a good part of a core's second-level cache, with room for what is added."""


class GreedySelection:
    """Adds, one at a time and with replacement, the expert that helps the pooled posteriors most.

    Differs from the paper: starts from the single best expert instead of a sorted few, and
    also works in log space, where posteriors multiply.

    Args:
        space: `arithmetic` or `log`.
        size: Most members, counted with repetition.
        metric: What members are chosen for. Macro-F1 is stood in for by UAR, which like
            accuracy is a sum over clips.
        bags: Selections that are averaged, each from a random half of the experts as in the
            paper's bagging; 1 selects once, from all of them.
        seed: Of the bags.
        costs: (M, C) what each expert costs, however often it is taken; None: nothing.
        limits: (C,) what those taken may cost together.

    Attributes:
        counts_: (M,) how often each expert was taken, over all bags.
    """

    def __init__(
        self,
        space: Space = "arithmetic",
        size: int = 15,
        metric: str = "accuracy",
        bags: int = 1,
        seed: int = 0,
        *,
        costs: Array | None = None,
        limits: Array | None = None,
    ) -> None:
        self.space, self.size, self.metric = space, size, metric
        self.bags, self.seed = bags, seed
        self.costs, self.limits = costs, limits

    def fit(self, log_posteriors: Array, labels: Labels, groups: Labels) -> Self:
        """Selects by the metric, ties by log-loss; keeps the best prefix.

        So one bag is never worse than its best single expert on the rows it is fitted on.
        """
        values = _Values(log_posteriors, self.space)
        screen = self._screen(values, labels)
        self.counts_: Labels = np.zeros(len(values), np.int64)
        for bag in self._bags(len(values)):
            taken = self._select(values, labels, screen, bag)
            self.counts_ += np.bincount(taken, minlength=len(values)).astype(np.int64)
        return self

    def rule(self) -> Pooling:
        """Return what was selected; the floor is the same as in fitting."""
        return Pooling(self.counts_ / self.counts_.sum(), self.space, _FLOOR)

    def _bags(self, count: int) -> list[Labels]:
        """The experts that each selection may take from."""
        if self.bags == 1:
            return [np.arange(count)]
        generator = np.random.default_rng(self.seed)
        half = (count + 1) // 2
        return [np.sort(generator.choice(count, half, replace=False)) for _ in range(self.bags)]

    def _screen(self, values: _Values, labels: Labels) -> _Screen | None:
        """Return what spares most exact scores; None where there is none, or none is needed.

        Log-loss of an average of probabilities needs the true class's alone: quick as it is.
        """
        if self.metric in _OF_HITS or (self.metric == "log_loss" and self.space == "log"):
            return _Screen(values, labels, _clip_weights(self.metric, labels))
        return None

    def _select(
        self, values: _Values, labels: Labels, screen: _Screen | None, bag: Labels
    ) -> list[int]:
        """Members in the order in which they were taken."""
        pooled = np.zeros(values.shape)
        if screen:
            screen.clear()
        taken: list[int] = []
        best_length, best = 0, (-np.inf, -np.inf)
        for length in range(1, self.size + 1):
            near = affordable = self._affordable(bag, taken)
            if screen and self.metric == "log_loss":
                near = screen.likeliest(affordable, length)
            elif screen:
                near = screen.most_right(affordable)
            sums = {int(m): pooled + values[m] for m in near}
            merits = {m: self._merit(sums[m], labels, length, screen) for m in sums}
            chosen = max(merits, key=lambda m: merits[m])
            pooled = sums[chosen]
            if screen:
                screen.add(chosen)
            taken.append(chosen)
            if merits[chosen] > best:
                best, best_length = merits[chosen], length
        return taken[:best_length]

    def _affordable(self, bag: Labels, taken: list[int]) -> Labels:
        """Those of a bag that, with what is taken, cost no more than the limits."""
        if self.costs is None or self.limits is None:
            return bag
        have = sorted(set(taken))
        more = self.costs[bag] * ~np.isin(bag, have)[:, None]
        within: Labels = bag[(self.costs[have].sum(axis=0) + more <= self.limits).all(axis=1)]
        assert len(within), "no expert alone costs less than the limits"
        return within

    def _merit(
        self, pooled: Array, labels: Labels, count: int, screen: _Screen | None
    ) -> tuple[float, float]:
        """(score by the metric, log-likelihood) of the sum of `count` experts' posteriors."""
        likelihood = self._log_likelihood(pooled, labels, count)
        if self.metric == "log_loss":
            return likelihood, likelihood
        if screen is None:
            fused = self._log_posteriors(pooled, count)
            return get_metric(self.metric).utility(labels, fused), likelihood
        right = np.flatnonzero(screen.right(pooled))
        if self.metric == "accuracy":  # counted, so that ties are ties
            return len(right) / len(labels), likelihood
        counts = np.bincount(labels)
        recall = np.bincount(labels[right], minlength=len(counts))[counts > 0] / counts[counts > 0]
        return float(recall.mean()), likelihood

    def _log_likelihood(self, pooled: Array, labels: Labels, count: int) -> float:
        rows = np.arange(len(labels))
        if self.space == "arithmetic":
            return float(np.log(pooled[rows, labels] / count + 1e-12).mean())
        return float(self._log_posteriors(pooled, count)[rows, labels].mean())

    def _log_posteriors(self, pooled: Array, count: int) -> Array:
        """(N, K), of the sum of `count` experts' posteriors."""
        mean = pooled / count
        return log_softmax(mean) if self.space == "log" else np.log(mean + 1e-12)


class _Values:
    """Values that are pooled: (M, N, K) posteriors, or in log space their logarithms, raised to a floor.

    An expert's are made in float64 when they are asked for, which is of a few; `rough` are
    everybody's in float32.
    """

    def __init__(self, log_posteriors: Array, space: Space) -> None:
        self._log_posteriors, self._space = log_posteriors, space
        self._made: dict[int, Array] = {}
        self.shape = log_posteriors.shape[1:]

    def __len__(self) -> int:
        return len(self._log_posteriors)

    def __getitem__(self, expert: int) -> Array:
        if expert not in self._made:
            self._made[expert] = self._pooled(self._log_posteriors[expert])
        return self._made[expert]

    def rough(self) -> NDArray[np.float32]:
        """(M, N, K)."""
        return np.asarray(self._pooled(self._log_posteriors.astype(np.float32)))

    def _pooled(self, values: Any) -> Any:
        floored = np.maximum(values, values.dtype.type(_FLOOR))
        return floored if self._space == "log" else np.exp(floored, out=floored)


def _margins(values: NDArray[np.float32], labels: Labels) -> NDArray[np.float32]:
    """(M, N, K) → (M, K-1, N): each rival class less the true one."""
    experts, clips, classes = values.shape
    first = classes * np.arange(clips)
    rivals = first + (labels + np.arange(1, classes)[:, None]) % classes
    flat = values.reshape(experts, -1)
    apart = flat.take(rivals.ravel(), axis=1, mode="clip").reshape(experts, classes - 1, clips)
    apart -= flat.take(first + labels, axis=1, mode="clip")[:, None]
    return np.asarray(apart)


def _clip_weights(metric: str, labels: Labels) -> Array:
    """Return the worth of a clip's hit: the same for each, or for each class."""
    if metric in {"accuracy", "log_loss"}:
        return np.full(len(labels), 1.0 / len(labels))
    counts = np.bincount(labels)
    return np.asarray(1.0 / (counts[labels] * (counts > 0).sum()))


class _Screen:
    """Finds the few candidates of which one is the best.

    Args:
        values: Of the candidates.
        labels: (N,) true classes.
        weights: (N,) what each clip's hit is worth.
    """

    def __init__(self, values: _Values, labels: Labels, weights: Array) -> None:
        self._values, self._labels, self._weights = values, labels, weights
        rough = values.rough()
        self._margins = _margins(rough, labels)
        self._largest = float(max(rough.max(initial=0.0), -rough.min(initial=0.0)))
        self._lowest, self._highest = self._margins.min(axis=0), self._margins.max(axis=0)
        self._sums = np.empty(max(_BLOCK_BYTES // 4, self._lowest.size), np.float32)
        self.clear()

    def clear(self) -> None:
        """Nothing is taken yet."""
        self._total = np.zeros(self._margins.shape[1:])
        self._taken = self._settled_for = 0

    def add(self, taken: int) -> None:
        """An expert is taken."""
        self._total += self._margins[taken]
        self._taken += 1
        self._settled_for -= 1

    def _doubt(self, experts: int) -> np.float32:
        """How far a sum of the margins of so many may be from the exact one.

        Seven roundings of half a unit in the last place for each (an exponential's are three).
        """
        return np.float32(5e-7 * experts * self._largest)

    def _settle(self) -> None:
        """Finds the clips that some of the next experts may still make right or wrong, and their rivals.

        For a few steps at once, as their margins have to be brought together; the more is
        pooled, for the more steps. A clip's first rival lies in the first columns, its second in
        those behind, and so on; clips with more come first.
        """
        steps = self._settled_for = 1 + self._taken // _STEPS_A_LOOK
        start, doubt = self._total.astype(np.float32), self._doubt(self._taken + steps)
        further = np.float32(steps - 1)
        least = start + self._lowest + further * np.minimum(self._lowest, 0)
        wrong = least.max(axis=0) > doubt
        most = start + self._highest + further * np.maximum(self._highest, 0)
        rivals = (most >= -doubt) & ~wrong
        count = rivals.sum(axis=0)
        self._right = ~wrong & (count == 0)
        unsettled = np.flatnonzero(count)
        self._unsettled = unsettled[np.argsort(-count[unsettled], kind="stable")]
        owned = count[self._unsettled]
        clip, rival = np.nonzero(rivals.T[self._unsettled])
        rank = np.arange(len(clip)) - np.repeat(np.cumsum(owned) - owned, owned)
        order = np.argsort(rank, kind="stable")
        self._columns = (rival * rivals.shape[1] + self._unsettled[clip])[order]
        self._with_rank = np.bincount(rank).tolist()
        flat = self._margins.reshape(len(self._margins), -1)
        self._open = flat.take(self._columns, axis=1, mode="clip")

    def most_right(self, bag: Labels) -> Labels:
        """Those of a bag whose most possible hits reach the most certain hits of any in it."""
        if self._settled_for < 1:
            self._settle()
        start = self._total.ravel()[self._columns].astype(np.float32)
        worst = np.empty((len(bag), len(self._unsettled)), np.float32)
        for sums, rows in self._pooled(self._open, start, bag):
            first = 0
            for number, clips in enumerate(self._with_rank):
                level, mine = sums[:, first : first + clips], worst[rows, :clips]
                np.maximum(mine, level, out=mine) if number else np.copyto(mine, level)
                first += clips
        weights, doubt = self._weights[self._unsettled], self._doubt(self._taken + 1)
        certain, possible = _worth(worst < -doubt, weights), _worth(worst <= doubt, weights)
        # Sums of the same weights in another order may differ in the last digits.
        return np.asarray(bag[possible >= certain.max(initial=0.0) - 1e-9])

    def right(self, pooled: Array) -> NDArray[np.bool_]:
        """(N, K) exact sums of what is taken and one of `most_right` → (N,) clips that are right."""
        right: NDArray[np.bool_] = self._right.copy()
        rows = self._unsettled
        right[rows] = pooled[rows].argmax(axis=1) == self._labels[rows]
        return right

    def likeliest(self, bag: Labels, count: int) -> Labels:
        """Those of a bag whose mean log-likelihood, of posteriors in log space, may be the best."""
        means = np.empty(len(bag))
        for sums, rows in self._pooled(self._margins, self._total.astype(np.float32), bag):
            np.multiply(sums, np.float32(1 / count), out=sums)
            # exp of anything above would overflow; such a candidate is far from the best.
            odds = np.exp(np.minimum(sums, 80.0, out=sums), out=sums).sum(axis=1)
            means[rows] = -np.log1p(odds).mean(axis=1, dtype=np.float64)
        return np.asarray(bag[means >= means.max() - 1e-5])

    def _pooled(
        self, margins: NDArray[np.float32], start: NDArray[np.float32], bag: Labels
    ) -> Iterator[tuple[NDArray[np.float32], slice]]:
        """Blocks of a bag's (M, …) margins added to (…) of what is taken, and their places in it."""
        block = len(self._sums) // max(1, start.size)
        for first in range(0, len(bag), block):
            rows = slice(first, min(first + block, len(bag)))
            taken = margins[rows if len(bag) == len(margins) else bag[rows]]
            sums = self._sums[: taken.size].reshape(taken.shape)
            yield np.add(taken, start, out=sums), rows


def _worth(hits: NDArray[np.bool_], weights: Array) -> Array:
    """(M, N) clips that are right → (M,) what they are worth, of (N,) each."""
    if len(weights) and (weights == weights[0]).all():
        return np.asarray(np.count_nonzero(hits, axis=1) * weights[0])
    return np.asarray(hits @ weights)
