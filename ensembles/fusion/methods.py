"""The fusion methods that the search tries; `logistic` is logistic regression on posteriors.

A method that registers itself needs no more than its import here.
"""

from __future__ import annotations

from ensembles.fusion.base import REGISTERED, Build
from ensembles.fusion.calibration import CalibratedFusion, TemperedFusion
from ensembles.fusion.greedy import GreedySelection
from ensembles.fusion.late import AverageFusion, WeightedFusion
from ensembles.fusion.logistic import LogisticFusion
from ensembles.fusion.stacking import StackedFusion
from ensembles.fusion.trace_fusion import TraceAverage, TraceRidge, TraceWeights

TRACE_METHODS: dict[str, Build] = {
    "average": lambda _: TraceAverage(),
    "weighted average": lambda _: TraceWeights(),
    "ridge": lambda _: TraceRidge(),
    **REGISTERED["traces"],
}

METHODS: dict[str, Build] = {
    "average": lambda _: AverageFusion("arithmetic"),
    "product": lambda _: AverageFusion("log"),
    "tempered average": lambda _: TemperedFusion(AverageFusion),
    "weighted average": lambda _: WeightedFusion("arithmetic"),
    "weighted product": lambda _: WeightedFusion("log"),
    "weighted product + vector": lambda _: CalibratedFusion(WeightedFusion, "vector"),
    "logistic (probabilities)": lambda _: LogisticFusion("probabilities"),
    "logistic (logits)": lambda _: LogisticFusion("logits"),
    "logistic + temperature": lambda _: CalibratedFusion(lambda: LogisticFusion("logits", (0.03,))),
    "stacked": lambda _: StackedFusion(
        [
            WeightedFusion,
            lambda: LogisticFusion("logits", (0.03,)),
            lambda: GreedySelection("log", metric="log_loss"),
        ],
        WeightedFusion,
    ),
    **REGISTERED["classes"],
}
"""From plain to elaborate."""

PUBLISHED_METHODS: dict[str, Build] = {
    "logistic (min-max)": lambda _: LogisticFusion("probabilities", scaling="minmax"),
    "logistic (raw)": lambda _: LogisticFusion("probabilities", scaling="none"),
}
"""Further ones of published work, for few experts."""
