"""How far each number is from the truth, in worlds where the truth is known.

`python -m benchmarks.honesty [--worlds N] [--draws N]`

A world has a few speakers, some harder than others, and many candidates whose true accuracy on
new speakers is known; candidates differ by luck with the speakers at hand more than by skill. The
best one on all speakers is taken. Its score in the search (naive), leave-one-fold-out selection (plain CV,
this project's honest score) and the bias-corrected score are compared with what that candidate
is worth on new speakers. Also: how often each 95 % interval holds the truth.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.bias_correction import Candidates
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.evaluation.intervals import speaker_interval
from ensembles.fusion.candidates import recipes_for
from ensembles.metrics import Array, get_metric

_CLASSES = 4


@dataclass(frozen=True)
class World:
    """Speakers and candidates; shares of 1.

    Attributes:
        speakers: How many.
        clips: Of each.
        candidates: How many are compared.
        accuracy: True, on average.
        skill: Deviation of the candidates' true accuracies; 0: all are worth the same.
        hardness: Deviation of the speakers, the same for all candidates.
        taste: Deviation of a candidate's luck with a speaker.
    """

    speakers: int
    clips: int
    candidates: int
    accuracy: float = 0.5
    skill: float = 0.0
    hardness: float = 0.1
    taste: float = 0.05


WORLDS = (
    World(24, 60, 20),
    World(24, 60, 200),
    World(24, 60, 1000),
    World(24, 20, 1000),
    World(24, 20, 1000, skill=0.02),
    World(12, 20, 300),
    World(24, 60, 1000, accuracy=0.25, hardness=0.0, taste=0.0),
)


def main() -> None:
    """Prints a row a kind of world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=40, help="of each kind")
    parser.add_argument("--draws", type=int, default=500, help="of the correction")
    given = parser.parse_args()
    print(f"{given.worlds} worlds of each kind, {given.draws} draws; errors in points")
    print(
        f"{'speakers × clips':>17}{'candidates':>11}{'true':>6}{'skill ±':>8}"
        f"{'naive':>8}{'plain CV':>16}{'corrected':>16}{'in 95 %: plain':>16}{'corrected':>11}{'s':>7}"
    )
    for world in WORLDS:
        started = time.perf_counter()
        rows = np.asarray([_compare(world, seed, given.draws) for seed in range(given.worlds)])
        took = time.perf_counter() - started
        naive, plain, corrected, in_plain, in_corrected = rows.T
        show = [f"{100 * x.mean():+.1f} ± {100 * x.std():.1f}" for x in (plain, corrected)]
        print(
            f"{f'{world.speakers} × {world.clips}':>17}{world.candidates:11}{world.accuracy:6.2f}"
            f"{world.skill:8.2f}{100 * naive.mean():+8.1f}{show[0]:>16}{show[1]:>16}"
            f"{in_plain.mean():16.0%}{in_corrected.mean():11.0%}{took / len(rows):7.1f}",
            flush=True,
        )


def _compare(world: World, seed: int, draws: int) -> tuple[float, float, float, bool, bool]:
    """Errors of the three scores, and whether the intervals hold the truth."""
    experts, truth = make(world, np.random.default_rng(seed))
    table = experts.table
    scores = [
        get_metric("accuracy").fold_mean(table.labels, one, table.folds)
        for one in experts.log_posteriors
    ]
    best = int(np.argmax(scores))
    (single,) = (recipe for recipe in recipes_for(experts) if recipe.single)
    honest = CrossFitter(experts, "accuracy").honest(single)
    plain = get_metric("accuracy").fold_mean(table.labels, honest, table.folds)
    around = speaker_interval(table, "accuracy", honest)
    candidates = Candidates("accuracy", table)
    candidates.add(experts.log_posteriors)
    corrected = candidates.corrected(draws=draws, seed=seed)
    assert corrected is not None
    worth = float(truth[best])
    return (
        scores[best] - worth,
        plain - worth,
        corrected.score - worth,
        around.low <= worth <= around.high,
        corrected.low <= worth <= corrected.high,
    )


def make(world: World, generator: np.random.Generator) -> tuple[Experts, Array]:
    """A world's out-of-fold posteriors, and the (M,) accuracies on new speakers."""
    speaker = np.repeat(np.arange(world.speakers), world.clips)
    count, shape = len(speaker), (world.candidates, world.speakers)
    true = world.accuracy + world.skill * generator.standard_normal(world.candidates)
    hard = world.hardness * generator.standard_normal(world.speakers)
    chance = true[:, None] + hard + world.taste * generator.standard_normal(shape)
    hit = generator.random((world.candidates, count)) < np.clip(chance, 0, 1)[:, speaker]
    labels = np.arange(count) % _CLASSES
    others = (labels + generator.integers(1, _CLASSES, (world.candidates, count))) % _CLASSES
    said = np.where(hit, labels, others)
    posteriors = np.full((world.candidates, count, _CLASSES), 0.4 / (_CLASSES - 1))
    np.put_along_axis(posteriors, said[..., None], 0.6, axis=2)
    table = ClipTable(
        clips=tuple(map(str, range(count))),
        speakers=tuple(f"{s:02d}" for s in speaker),
        folds=(speaker % 5).astype(np.int64),
        labels=labels.astype(np.int64),
        classes=tuple("abcd"),
    )
    names = tuple(f"e{m}" for m in range(world.candidates))
    return Experts(table, names, ("audio",) * world.candidates, np.log(posteriors)), true


if __name__ == "__main__":
    main()
