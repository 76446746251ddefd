"""`--reproduce PAPER`: train a paper's networks as it did, its figures beside ours on unknown speakers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from datasets.sharding.index import ShardIndex
from ensembles.bank.posterior_bank import Experts
from ensembles.bank.trace_table import TraceTable
from ensembles.evaluation.assessment import Scored, scored
from ensembles.fusion.logistic import LogisticFusion
from ensembles.metrics import CCC, Array, get_metric
from models import get_architecture
from search.config import ConfigError, SearchConfig, check_known
from search.data.training_data import TrainingData
from search.papers.published import PAPERS, Paper, PosteriorFusion, Setting
from search.space.eligibility import refuse_known_speakers
from search.space.scope import SIDES, SearchScope, scope_for
from search.trial_config import TrialConfig

OWN_CORPUS = "manifest"
"""Name of a corpus that has no loader of its own: it is taken for the paper's."""


@dataclass(frozen=True)
class Reproduced:
    """A paper's figure beside ours.

    Attributes:
        what: The network or fusion.
        published: Accuracy, a share of 1, or concordance; None where the paper has none for so many
            classes, or for that dimension.
        here: Ours, mean of the folds' as the papers count; None where it was not trained.
        interval: 95 %, over speakers.
        note: How ours differs from the paper's, or why it was not trained.
    """

    what: str
    published: float | None
    here: float | None
    interval: tuple[float, float] | None
    note: str


def completed(config: SearchConfig) -> SearchConfig:
    """Return the settings with the paper's classes and protocol, where the user gave none.

    Raises:
        ConfigError: An unknown paper, no data, or a setting that the paper settles.
    """
    if not config.reproduce:
        return config
    _check_settings(config)
    paper = PAPERS[config.reproduce]
    if not config.data:
        raise ConfigError(
            f"reproduce {config.reproduce} needs --data with shards of {paper.corpus}."
        )
    return replace(
        config,
        classes=config.classes or ",".join(paper.classes) or None,
        protocol=config.protocol or paper.protocol,
    )


def _check_settings(config: SearchConfig) -> None:
    """A paper says what is trained and how; what is left to say is on which data, and where."""
    assert config.reproduce
    check_known("paper", config.reproduce, tuple(PAPERS))
    settled = (
        "preset",
        "trials",
        "only",
        "target",
        "metric",
        "objective",
        "outer",
        "extend",
        "enrolment",
    )
    usual = {f.name: f.default for f in fields(SearchConfig)}
    if config.metric == PAPERS[config.reproduce].metric:
        usual["metric"] = config.metric
    if changed := [name for name in settled if getattr(config, name) != usual[name]]:
        raise ConfigError(f"reproduce trains what the paper trained: leave out {changed[0]}.")


def flaw_of(name: str) -> str:
    """Return what is wrong with the paper's own figures: printed before anything else."""
    return f"{PAPERS[name].authors}: {PAPERS[name].flaw}."


def check_corpus(name: str, index: ShardIndex, console: Console) -> None:
    """Raises ConfigError where the shards are of another corpus than the paper's."""
    paper = PAPERS[name]
    if index.corpus == OWN_CORPUS:
        console.print(f"the shards are of '{index.corpus}': taken for {paper.corpus}")
    elif index.corpus != paper.corpus:
        raise ConfigError(
            f"reproduce {name} needs shards of {paper.corpus}, these are of {index.corpus}. "
            "A corpus without a loader of its own is prepared with: python -m datasets.prepare manifest"
        )


def scope_of(config: SearchConfig, data: TrainingData) -> SearchScope:
    """The paper's networks that the clips and the weights at hand allow.

    Raises:
        ConfigError: None can be trained, or weights were trained on speakers of the corpus.
        ModelError: The clips hold nothing that one of them reads.
    """
    assert config.reproduce
    settings = PAPERS[config.reproduce].settings
    names = tuple(dict.fromkeys(n for one in settings.values() for n in _networks(one)))
    scope = scope_for(data.shape, names, epochs=config.epochs, weights=data.weights)
    refuse_known_speakers(scope, data.index)
    why_not = {label: why for label, one in settings.items() if (why := _lacks(one, scope))}
    given: dict[str, dict[str, dict[str, Any]]] = {}
    for label, one in settings.items():
        if label not in why_not:
            given.setdefault(one.modality, {})[label] = _plan(one, scope).to_json()
    if not given:
        reasons = "; ".join(f"{label}: {why}" for label, why in why_not.items())
        raise ConfigError(f"Nothing of {config.reproduce} can be trained here. {reasons}.")
    kept = [one for label, one in settings.items() if label not in why_not]
    single: dict[str, tuple[str, ...]] = {
        side: tuple(dict.fromkeys(one.architecture for one in kept if one.modality == side))
        for side in SIDES
    }
    joined = [one for one in kept if one.modality == "early"]
    parts: dict[str, tuple[str, ...]] = {
        side: tuple(str(one.settings[side]["architecture"]) for one in joined) for side in SIDES
    }
    used = {n for one in kept for n in _networks(one)}
    return replace(
        scope,
        single=single,
        fusions=tuple(dict.fromkeys(one.architecture for one in joined)),
        parts=parts if joined else {},
        transfers={name: found for name, found in scope.transfers.items() if name in used},
        why_not=why_not,
        given=given,
    )


def _networks(one: Setting) -> tuple[str, ...]:
    """The architecture, and early fusion's parts."""
    parts = [one.settings[side]["architecture"] for side in SIDES if one.modality == "early"]
    return (one.architecture, *parts)


def _lacks(one: Setting, scope: SearchScope) -> str | None:
    """Why a network cannot be trained here; None if it can."""
    for name in _networks(one):
        if name in scope.why_not:
            return scope.why_not[name]
    start = scope.transfers.get(one.architecture)
    if one.transfer and one.needs_weights and not (start and start.checkpoints):
        entry = get_architecture(one.architecture)
        return f"its pretrained weights are not here, such as {entry.checkpoints[0].files[0]}"
    return None


def _plan(one: Setting, scope: SearchScope) -> TrialConfig:
    settings, training = dict(one.settings), dict(one.training)
    start = scope.transfers.get(one.architecture)
    if start and start.checkpoints and one.transfer:
        named = [found for found in start.checkpoints if one.weights in found.file.lower()]
        chosen = (named or list(start.checkpoints))[0]
        settings |= {"transfer": one.transfer, "checkpoint": chosen.to_json()}
    elif start:
        settings["transfer"] = "scratch"
    if scope.epochs is not None:
        training["epochs"] = scope.epochs
    return TrialConfig.of(one.architecture, settings, training)


def reproduced(
    config: SearchConfig, scope: SearchScope, experts: Experts, labels: Mapping[str, str]
) -> list[Reproduced]:
    """The paper's rows, ours beside them.

    Args:
        config: The run's.
        scope: What it trained.
        experts: Out-of-fold posteriors of what has finished.
        labels: Trial → label of its setting.
    """
    assert config.reproduce
    paper, classes = PAPERS[config.reproduce], len(experts.table.classes)
    if paper.metric == CCC:
        return _by_dimension(paper, config, scope, experts, labels)
    row_of = {labels[name]: row for row, name in enumerate(experts.names) if name in labels}
    ours = {label: experts.log_posteriors[row] for label, row in row_of.items()}
    found = []
    for label, one in paper.settings.items():
        why = scope.why_not.get(label, "not finished")
        found.append(_row(label, one, classes, experts, ours.get(label), _note(one, config), why))
    for label, fusion in paper.fusions.items():
        lacking = [member for member in fusion.members if member not in ours]
        members = [ours[member] for member in fusion.members if member in ours]
        fused = None if lacking else _cross_fitted(fusion, np.stack(members), experts)
        why = f"needs {', '.join(lacking)}"
        found.append(_row(label, fusion, classes, experts, fused, fusion.differs, why))
    return found


def _by_dimension(
    paper: Paper,
    config: SearchConfig,
    scope: SearchScope,
    experts: Experts,
    labels: Mapping[str, str],
) -> list[Reproduced]:
    """Return a row for each network and dimension, of traces."""
    row_of = {labels[name]: row for row, name in enumerate(experts.names) if name in labels}
    table, found = experts.table, []
    assert isinstance(table, TraceTable)
    for label, one in paper.settings.items():
        for d, dimension in enumerate(table.classes):
            what, published = f"{label}, {dimension}", one.published.get(dimension)
            if label not in row_of:
                why = scope.why_not.get(label, "not finished")
                found.append(Reproduced(what, published, None, None, why))
                continue
            of_one = replace(table, classes=(dimension,), labels=table.labels[:, d : d + 1])
            said = experts.log_posteriors[row_of[label]][:, d : d + 1]
            score = scored("", of_one, CCC, said, None, (), ())
            interval = (score.interval.low, score.interval.high)
            note = _note(one, config)
            found.append(Reproduced(what, published, score.honest_score, interval, note))
    return found


def _row(
    label: str,
    one: Setting | PosteriorFusion,
    classes: int,
    experts: Experts,
    log_posteriors: Array | None,
    note: str,
    why_not: str,
) -> Reproduced:
    published = one.published.get(classes)
    if log_posteriors is None:
        return Reproduced(label, published, None, None, why_not)
    score = _score(experts, log_posteriors)
    interval = (score.interval.low, score.interval.high)
    return Reproduced(label, published, score.honest_score, interval, note)


def _note(one: Setting, config: SearchConfig) -> str:
    epochs = f"{config.epochs} epochs as asked" if config.epochs else ""
    return "; ".join(filter(None, (epochs, one.differs)))


def _score(experts: Experts, log_posteriors: Array) -> Scored:
    """Nothing was chosen by these posteriors, so that their score is an honest one."""
    return scored("", experts.table, "accuracy", log_posteriors, None, (), ())


def _cross_fitted(fusion: PosteriorFusion, members: Array, experts: Experts) -> Array:
    """(M, N, K) → (N, K): each fold by a regression that was fitted on the others."""
    table = experts.table
    fused: Array = np.empty(members.shape[1:])
    for fold in np.unique(table.folds):
        inside, outside = table.folds != fold, table.folds == fold
        regression = LogisticFusion("probabilities", penalties=(1.0,), scaling=fusion.scaling)
        regression.fit(members[:, inside], table.labels[inside], table.folds[inside])
        fused[outside] = regression.rule().apply(members[:, outside])
    return fused


def to_json(name: str, rows: list[Reproduced]) -> dict[str, Any]:
    """For `summary.json`."""
    paper = PAPERS[name]
    return {
        "paper": name,
        "authors": paper.authors,
        "held_out": paper.held_out,
        "flaw": paper.flaw,
        "metric": paper.metric,
        "rows": [asdict(row) for row in rows],
    }


def print_reproduced(console: Console, document: Mapping[str, Any], protocol: str) -> None:
    """The paper's figures beside ours; its flaw first."""
    flaw = flaw_of(document["paper"])
    console.print(flaw, highlight=False, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    metric = get_metric(document.get("metric", "accuracy"))
    table.title = f"{metric.label}: published ({document['held_out']}) and here ({protocol})"
    table.add_column("")
    for heading in ("published", "here", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["rows"]:
        interval = metric.format_interval(*row["interval"]) if row["interval"] else ""
        published = _or_dash(metric.format_published, row["published"])
        table.add_row(row["what"], published, _or_dash(metric.format, row["here"]), interval)
    console.print(table)
    for row in document["rows"]:
        if row["note"]:
            told = f"{row['what']}: {row['note']}"
            console.print(told, style="dim", highlight=False, markup=False)


def _or_dash(form: Callable[[float], str], value: float | None) -> str:
    return "–" if value is None else form(value)
