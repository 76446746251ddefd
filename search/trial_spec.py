"""Specification of a trial, wherever it trains: its configuration, its run, and its corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ensembles.bank.training_variant import SEARCH, Variant
from search.trial_config import TrialConfig

ATTEMPTS = 3
"""How many processes a trial may take one after the other, where they or their hosts die."""

ACTOR_CPUS = 0.01
"""Share of a trial's CPUs for the actor that waits for the trial's task."""

_MAY_DIFFER: Mapping[str, Any] = {"changes_networks": False}
"""Marks what may be another when a trial goes on elsewhere: it does not change its networks."""


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """Settings that it takes to open the corpus.

    Attributes:
        place: Folder or URL of the shards.
        checksum: Of the index.
        classes: Classes to keep; empty for all.
        target: What is predicted.
        protocol: How speakers are split.
        test_speakers: Who is in no fold.
        folds: Fingerprint of the split.
        skip_corrupt: Whether what is intact of damaged shards is used.
        soft_labels: Whether clips are trained on with the raters' shares.
        cache_folder: Where decoded clips are cached; None for the user's cache folder.
        cache_gb: Bound on that folder, in GiB.
        weights: Folder or URL of pretrained weights.
    """

    place: str = field(metadata=_MAY_DIFFER)
    checksum: str
    classes: tuple[str, ...]
    target: str
    protocol: str
    test_speakers: tuple[str, ...]
    folds: str
    skip_corrupt: bool
    soft_labels: bool
    cache_folder: str | None = field(metadata=_MAY_DIFFER)
    cache_gb: float = field(metadata=_MAY_DIFFER)
    weights: str | None = field(metadata=_MAY_DIFFER)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Context that all trials of a run share.

    Attributes:
        corpus: What they train on.
        run: The run's folder, or its URL.
        metric: That trials are scored by.
        seed: Of weights, order and augmentation.
        device: cpu or cuda.
        precision: auto, float32 or bfloat16.
        runner: actor or train.
        workers_per_trial: Ray Train workers of one trial.
        gpu_share: Cost key → share of a GPU that such a trial takes.
        cpus_per_trial: Cores of one worker.
    """

    corpus: CorpusSpec
    run: str = field(metadata=_MAY_DIFFER)
    metric: str = field(metadata=_MAY_DIFFER)
    seed: int
    device: str = field(metadata=_MAY_DIFFER)
    precision: str
    runner: str = field(metadata=_MAY_DIFFER)
    workers_per_trial: int = field(metadata=_MAY_DIFFER)
    gpu_share: Mapping[str, float] = field(metadata=_MAY_DIFFER)
    cpus_per_trial: int = field(default=1, metadata=_MAY_DIFFER)

    @property
    def run_name(self) -> str:
        """The last part of the run's folder."""
        return self.run.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One trial.

    Attributes:
        trial: Its name, such as `audio-0003`.
        modality: audio, video or early.
        plan: Its configuration.
        context: What it shares with the run's other trials.
        variant: Which of the trial's trainings this is.
        keep_weights: Whether its networks are kept.
        enrolment: Numbers of unlabelled clips that normalise the inputs of held-out speakers.
        gpu_share_factor: Times the measured share of a GPU, after memory ran out.
    """

    trial: str
    modality: str
    plan: TrialConfig
    context: RunContext
    variant: Variant = field(default=SEARCH, metadata=_MAY_DIFFER)
    keep_weights: bool = field(default=True, metadata=_MAY_DIFFER)
    enrolment: tuple[int, ...] = ()
    gpu_share_factor: int = field(default=1, metadata=_MAY_DIFFER)

    @property
    def name(self) -> str:
        """The training's own name, which its files have."""
        return self.trial + self.variant.suffix

    @property
    def title(self) -> str:
        """Return the training's name on the dashboard."""
        return f"{self.name} {self.plan.title}"

    @property
    def gpus(self) -> float:
        """A share of a GPU where trials share one, one a worker, or 0 without."""
        if self.context.device == "cpu":
            return 0.0
        if self.context.workers_per_trial > 1:
            return 1.0  # NCCL does not let workers share one
        measured = self.context.gpu_share.get(self.plan.cost_key, 1.0)
        return min(1.0, measured * self.gpu_share_factor)

    @property
    def has_gpu_alone(self) -> bool:
        """Whether no other trial shares its GPU."""
        return self.gpus in (0.0, 1.0)

    def with_more_memory(self) -> TrialSpec | None:
        """The trial with twice the share of a GPU; None if it had all of one."""
        if self.has_gpu_alone:
            return None
        return replace(self, gpu_share_factor=2 * self.gpu_share_factor)

    def identity(self) -> dict[str, Any]:
        """Return all that the trial's networks depend on: a checkpoint of another is not continued."""
        return {
            "plan": self.plan.to_json(),
            "enrolment": list(self.enrolment),
            **_identity(self.context),
            **_identity(self.context.corpus),
        }


def _identity(record: RunContext | CorpusSpec) -> dict[str, Any]:
    """Everything that is not marked as `_MAY_DIFFER`: a field that is forgotten here counts."""
    own = [f.name for f in fields(record) if f.metadata.get("changes_networks", True)]
    return {name: getattr(record, name) for name in own if name != "corpus"}
