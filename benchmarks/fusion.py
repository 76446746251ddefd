"""How fast fusion is searched: greedy selection and stackers, against what else one would use.

`python -m benchmarks.fusion [--experts 50] [--clips 1440] [--classes 8] [--autogluon PYTHON]`

Greedy selection: candidate evaluations a second, of this project's, of a plain loop (one argmax a
candidate, vectorised over clips), and of AutoGluon's `EnsembleSelection`, where it is installed: here, or in
the environment of another interpreter (`--autogluon /path/to/python`). All get the same posteriors and
as many steps; the accuracy on the rows fitted on is printed beside, and whether the choices are
those of the plain loop. Stackers: fits a second of each kind of fusion on ten experts, and of a plain
scikit-learn loop for logistic regression. The whole fusion search: seconds, recipes and fits of `assess`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.common import machine, seconds
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.evaluation.assessment import assess
from ensembles.fusion.base import Fusion
from ensembles.fusion.calibration import CalibratedFusion
from ensembles.fusion.greedy import GreedySelection
from ensembles.fusion.late import AverageFusion, WeightedFusion
from ensembles.fusion.logistic import PENALTIES, LogisticFusion
from ensembles.fusion.rules import Pooling, Space, posterior_table
from ensembles.fusion.stacking import StackedFusion
from ensembles.metrics import Array, Labels, get_metric, log_softmax

_STEPS = 50

# Run by the interpreter that has AutoGluon; it reads posteriors and prints what came out.
_AUTOGLUON = """
import json, sys, time
import numpy as np
from autogluon.core.metrics import accuracy
from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection
found = np.load(sys.argv[1])
values, labels = list(found["posteriors"]), found["labels"]
times = []
for _ in range(2):
    selection = EnsembleSelection(
        ensemble_size=int(sys.argv[2]), problem_type="multiclass", metric=accuracy
    )
    started = time.perf_counter()
    selection.fit(values, labels)
    times.append(time.perf_counter() - started)
print(json.dumps({"seconds": min(times), "weights": [float(w) for w in selection.weights_]}))
"""


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=50)
    parser.add_argument("--clips", type=int, default=1440)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--autogluon", default=sys.executable, help="an interpreter that has it")
    given = parser.parse_args()
    experts = make(given.experts, given.clips, given.classes)
    print(
        f"{machine()}; {given.experts} experts × {given.clips} clips × {given.classes} classes, "
        "one thread"
    )
    with threadpool_limits(1):
        _greedy(experts, given.repeats, given.autogluon)
        _stackers(experts, given.repeats)
        _search(experts)


def make(count: int, clips: int, classes: int) -> Experts:
    """Experts that err together, as those of one corpus do; about 60 % right."""
    generator = np.random.default_rng(0)
    speaker = np.arange(clips) * 24 // clips
    labels = generator.integers(classes, size=clips)
    shape = (count, clips, classes)
    logits = generator.normal(size=shape) + 1.5 * generator.normal(size=shape[1:])
    logits[:, np.arange(clips), labels] += generator.uniform(1.5, 2.5, size=(count, 1))
    table = ClipTable(
        clips=tuple(f"clip{n}" for n in range(clips)),
        speakers=tuple(f"s{s:02d}" for s in speaker),
        folds=(speaker % 5).astype(np.int64),
        labels=labels.astype(np.int64),
        classes=tuple(f"class{k}" for k in range(classes)),
    )
    modalities = [("audio", "video", "early")[m % 3] for m in range(count)]
    names = tuple(f"e{m:03d}" for m in range(count))
    return Experts(table, names, tuple(modalities), log_softmax(logits))


def plain_greedy(values: Array, labels: Labels, steps: int) -> Labels:
    """Every candidate in turn, vectorised over clips → how often each is in the best prefix."""
    total = np.zeros(values.shape[1:])
    rows = np.arange(len(labels))
    taken: list[int] = []
    length, reached = 0, (-1, -np.inf)
    for step in range(1, steps + 1):
        merits = []
        for candidate in values:
            pooled = total + candidate
            hits = int(np.count_nonzero(pooled.argmax(axis=1) == labels))
            merits.append((hits, float(np.log(pooled[rows, labels] / step + 1e-12).mean())))
        best = max(range(len(merits)), key=merits.__getitem__)
        total += values[best]
        taken.append(best)
        if merits[best] > reached:
            reached, length = merits[best], step
    return np.bincount(taken[:length], minlength=len(values)).astype(np.int64)


def _greedy(experts: Experts, repeats: int, interpreter: str) -> None:
    labels, log_posteriors = experts.table.labels, experts.log_posteriors
    posteriors = np.exp(np.maximum(log_posteriors, -30.0))
    candidates = _STEPS * len(posteriors)
    print(f"\n{'greedy selection, 50 steps':38}{'evaluations/s':>14}{'accuracy':>10}{'fit ms':>9}")

    def show(name: str, taken: float, weights: Array) -> None:
        right = get_metric("accuracy").score(
            labels, Pooling(weights, "arithmetic").apply(log_posteriors)
        )
        print(f"{name:38}{candidates / taken:14,.0f}{100 * right:10.2f}{1000 * taken:9.1f}")

    spaces: tuple[Space, ...] = ("arithmetic", "log")
    for space in spaces:
        for metric in ("accuracy", "uar", "log_loss"):
            fusion = GreedySelection(space, size=_STEPS, metric=metric)
            taken = seconds(lambda: fusion.fit(log_posteriors, labels, labels), repeats)  # noqa: B023
            show(f"ours, {space}, {metric}", taken, fusion.counts_.astype(np.float64))
    ours = GreedySelection("arithmetic", size=_STEPS).fit(log_posteriors, labels, labels)
    counts: list[Labels] = []
    taken = seconds(lambda: counts.append(plain_greedy(posteriors, labels, _STEPS)), 1)
    show("plain loop, arithmetic, accuracy", taken, counts[-1].astype(np.float64))
    same = counts[-1].tolist() == ours.counts_.tolist()
    print(f"  our members are {'' if same else 'NOT '}the plain loop's")
    found = _autogluon(posteriors, labels, interpreter)
    if isinstance(found, str):
        print(f"AutoGluon: not measured ({found})")
    else:
        show("AutoGluon's EnsembleSelection", found[0], found[1])


def _autogluon(posteriors: Array, labels: Labels, interpreter: str) -> tuple[float, Array] | str:
    """Seconds and weights, or why there are none."""
    if interpreter == sys.executable and importlib.util.find_spec("autogluon") is None:
        return "not installed here; --autogluon names an interpreter that has it"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posteriors.npz"
        np.savez(path, posteriors=posteriors, labels=labels)
        done = subprocess.run(
            [interpreter, "-c", _AUTOGLUON, str(path), str(_STEPS)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["killed"])[-1]
    result = json.loads(done.stdout.splitlines()[-1])
    return float(result["seconds"]), np.asarray(result["weights"])


def _stackers(experts: Experts, repeats: int) -> None:
    ten = experts.log_posteriors[:10]
    labels, folds = experts.table.labels, experts.table.folds
    print(f"\n{'fits of ten experts':38}{'fits/s':>14}")
    kinds: dict[str, Callable[[], Fusion]] = {
        "average": AverageFusion,
        "weighted average": lambda: WeightedFusion("arithmetic"),
        "weighted product": WeightedFusion,
        "weighted product + vector": lambda: CalibratedFusion(WeightedFusion, "vector"),
        f"logistic, C among {len(PENALTIES)}": lambda: LogisticFusion("logits"),
        "stacked": lambda: StackedFusion(
            [WeightedFusion, lambda: LogisticFusion("logits", (0.03,))], WeightedFusion
        ),
    }
    for name, build in kinds.items():
        taken = seconds(lambda: build().fit(ten, labels, folds), repeats)  # noqa: B023
        print(f"{name:38}{1 / taken:14.1f}")
    columns = posterior_table(ten, "logits")
    model = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": PENALTIES},
        scoring="neg_log_loss",
        cv=LeaveOneGroupOut(),
    )
    taken = seconds(lambda: model.fit(columns, labels, groups=folds), 1)
    print(f"{'scikit-learn: grid of C, groups out':38}{1 / taken:14.1f}")


def _search(experts: Experts) -> None:
    started = time.perf_counter()
    found = assess(experts, "accuracy")
    took = time.perf_counter() - started
    folds = len(set(experts.table.folds.tolist()))
    fits = len(found.recipes) * (1 + folds + folds * (folds - 1) // 2)
    print(
        f"\nthe whole fusion search: {took:.1f} s, {len(found.recipes)} recipes, {fits} fits "
        "(each recipe on all folds, without each, and without each two)"
    )


if __name__ == "__main__":
    main()
