"""One search, end to end: `python -m search.run [--data DIR] [--preset quick|standard|thorough] …`.

Reads top to bottom: parse → load → offer → search → confirm → fuse → report.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from datasets.clips import DataError
from ensembles import EnsembleError
from ensembles.bank import ClipTable, PosteriorBank
from ensembles.honesty import Assessment, Scored, assess, replay
from models.registry import ModelError
from search.config import ConfigError, SearchConfig, parse_arguments
from search.corpus import load_corpus
from search.cost import drop_expensive, predict_seconds
from search.folder import RunFolder, new_run, provenance, resumed_run
from search.progress import ProgressLine, chatter_to
from search.report import print_report, write_reports
from search.space import Offer, offer_for
from search.train import TrainingData


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 2: a user's mistake, in one line; 130: interrupted, resumable."""
    console = Console(stderr=True)
    run: RunFolder | None = None
    try:
        config, given = parse_arguments(arguments)
        run = resumed_run(config, given) if config.resume else None
        config = run.config if run else config
        data = load_corpus(config, console)
        facts = run.facts() if run else {}
        facts = facts or _find_out(config, data, console)
        _check_same_data(facts, data, run)
        if config.dry_run:
            _print_offer(config, data, facts, console)
            return 0
        run = run or new_run(config, data.cache.index.corpus)
        with run.locked():
            run.record(facts)
            return _search_and_report(run, data, facts, console)
    except (ConfigError, DataError, ModelError, EnsembleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        name = run.path.name if run else None
        print(
            "\nInterrupted."
            + (f" Continue with: python -m search.run --resume {name}" if name else ""),
            file=sys.stderr,
        )
        return 130


def _find_out(config: SearchConfig, data: TrainingData, console: Console) -> dict[str, Any]:
    """What the search may try here; recorded once, so that a resumed run offers the same."""
    device = _device(config)
    offer = offer_for(data.shape, config.architectures, config.plan.epochs_scale)
    seconds: dict[str, float] = {}
    with console.status("timing one training step of each architecture"):
        seconds = predict_seconds(offer, data, device, config.precision)
    if not config.architectures:
        offer = drop_expensive(offer, seconds, config.plan.share * config.plan.minutes * 60)
    index = data.cache.index
    return {
        "corpus": index.corpus,
        "data_checksum": index.checksum,
        "protocol": data.folds.protocol,
        "folds_fingerprint": data.folds.fingerprint,
        "seed": config.seed,
        "preset": config.preset,
        "device": device,
        "offer": {
            "single": {k: list(v) for k, v in offer.single.items()},
            "pairs": list(offer.pairs),
            "epochs_scale": offer.epochs_scale,
            "why_not": dict(offer.why_not),
        },
        "predicted_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds_before": 0.0,
    }


def _offer_of(facts: dict[str, Any]) -> Offer:
    stored = facts["offer"]
    return Offer(
        {k: tuple(v) for k, v in stored["single"].items()},
        tuple(stored["pairs"]),
        stored["epochs_scale"],
        stored["why_not"],
    )


def _check_same_data(facts: dict[str, Any], data: TrainingData, run: RunFolder | None) -> None:
    if (
        facts["data_checksum"] != data.cache.index.checksum
        or facts["folds_fingerprint"] != data.folds.fingerprint
    ):
        assert run is not None
        raise ConfigError(
            f"The data of the run '{run.path.name}' changed since it was started. Start a new run."
        )


def _device(config: SearchConfig) -> str:
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU here. Take --device cpu or auto.")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _print_offer(
    config: SearchConfig, data: TrainingData, facts: dict[str, Any], console: Console
) -> None:
    offer = _offer_of(facts)
    plan = config.plan
    console.print(
        f"{facts['corpus']}: {len(data.cache.index.clips)} clips, {facts['protocol']}, {data.folds.count} folds; "
        f"{plan.trials} trials, at most {plan.minutes:g} min, {plan.confirm_seeds} fresh seeds",
        highlight=False,
    )
    for modality in offer.modalities:
        for name in offer.choices(modality):
            console.print(
                f"  {modality:5}  {name}: about {facts['predicted_seconds'][name]:.0f} s a trial",
                highlight=False,
            )
    for why in dict.fromkeys(offer.why_not.values()):
        names = [name for name, reason in offer.why_not.items() if reason == why]
        console.print(f"  left out ({why}): {', '.join(names)}", highlight=False)


def _search_and_report(
    run: RunFolder, data: TrainingData, facts: dict[str, Any], console: Console
) -> int:
    from search import tuning
    from search.sampler import DealtSearch, open_journal

    config, offer = run.config, _offer_of(facts)
    started = time.monotonic()
    _print_offer(config, data, facts, console)
    bank = PosteriorBank.create(run.path / "bank", _clip_table(data))
    seconds = config.plan.minutes * 60
    with chatter_to(run.path / "search.log") as screen:
        dashboard = tuning.start_ray(config.workers, dashboard=config.dashboard)
        try:
            workers = config.workers or tuning.default_workers(facts["device"])
            context = _context(run, data, facts, workers)
            search = DealtSearch(
                offer,
                open_journal(run.journal),
                seed=config.seed,
                trials=config.plan.trials,
                deadline=time.monotonic() + seconds,
            )
            line = ProgressLine(screen, lambda: _state(search))
            search.on_change = line.changed
            if dashboard:
                screen.print(
                    f"dashboard: {dashboard} (the token: ray get-auth-token)",
                    highlight=False,
                    soft_wrap=True,
                )
            with line.showing():
                if search.left():
                    tuning.run_search(search, context, run.path, workers=workers, seconds=seconds)
                searched = time.monotonic() - started
                screen.print("fusing", style="dim") if screen.is_terminal else None
                experts = bank.experts(
                    e for e in bank.read() if e.percent == 100 and e.trial in _finished(search)
                )
                assessment = assess(experts, config.metric)
                confirmed = _confirm(assessment, bank, search, context, workers, config, screen)
        finally:
            tuning.stop_ray()
    for damaged in bank.damaged:
        console.print(f"warning: bank entry left out: {damaged}", highlight=False)
    total = facts["seconds_before"] + time.monotonic() - started
    run.record({**facts, "seconds_before": total})
    report = {
        **facts,
        **provenance(),
        "run": run.path.name,
        "trials": _counts(search),
        "failures": _failures(search),
        "seconds": {"search": round(searched, 1), "total": round(total, 1)},
    }
    write_reports(run.path, assessment, confirmed, report)
    print_report(Console(), run.path, assessment, confirmed, report)
    return 0


def _context(
    run: RunFolder, data: TrainingData, facts: dict[str, Any], workers: int
) -> dict[str, Any]:
    """What a trial needs to know, wherever it runs."""
    config, index = run.config, data.cache.index
    gpu = facts["device"] == "cuda"
    return {
        "run": str(run.path.resolve()),
        "data": index.root if "://" in index.root else str(Path(index.root).resolve()),
        "checksum": index.checksum,
        "classes": list(config.class_names),
        "protocol": data.folds.protocol,
        "folds": data.folds.fingerprint,
        "metric": config.metric,
        "seed": config.seed,
        "device": facts["device"],
        "precision": config.precision,
        "cache_folder": str(Path(config.cache_dir).resolve()) if config.cache_dir else None,
        "cache_gb": config.cache_gb,
        "skip_corrupt": config.skip_corrupt,
        "workers": workers,
        "cpus_per_trial": 1,
        "gpus_per_trial": 1.0 if gpu else 0.0,
    }


def _clip_table(data: TrainingData) -> ClipTable:
    index = data.cache.index
    return ClipTable(
        clips=tuple(entry.clip for entry in index.clips),
        speakers=tuple(entry.speaker for entry in index.clips),
        folds=data.folds.fold_of_clip,
        labels=data.cache.targets,
        classes=index.labels,
    )


def _all_trials(search: Any) -> list[tuple[str, Any]]:
    return [(f"{m}-{t.number:04d}", t) for m, part in search.parts.items() for t in part.asked()]


def _finished(search: Any) -> set[str]:
    return {name for name, trial in _all_trials(search) if trial.state.name == "COMPLETE"}


def _counts(search: Any) -> dict[str, int]:
    states = [trial.state.name for _, trial in _all_trials(search)]
    return {
        "complete": states.count("COMPLETE"),
        "pruned": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "unfinished": states.count("RUNNING"),
    }


def _failures(search: Any) -> dict[str, str]:
    return {
        name: t.user_attrs.get("failed", "")
        for name, t in _all_trials(search)
        if t.state.name == "FAIL"
    }


def _state(search: Any) -> str:
    """The live line."""
    counts = _counts(search)
    best = []
    for modality, part in search.parts.items():
        values = [t.value for t in part.asked() if t.state.name == "COMPLETE"]
        best.append(f"{modality} {max(values):.3f}" if values else f"{modality} –")
    ended = counts["complete"] + counts["pruned"] + counts["failed"]
    running = ", ".join(sorted(search.running.values()))
    return (
        f"{ended}/{search.trials} trials ({counts['pruned']} stopped early, {counts['failed']} failed)  "
        f"best so far: {', '.join(best)}  running: {running or 'none'}"
    )


def _confirm(
    assessment: Assessment,
    bank: PosteriorBank,
    search: Any,
    context: dict[str, Any],
    workers: int,
    config: SearchConfig,
    screen: Console,
) -> dict[int, dict[str, Scored]]:
    """Trains the experts behind the headline again with fresh seeds, and scores the same choices."""
    from search import tuning
    from search.space import suggest_plan

    seeds = [config.seed + 1000 + n for n in range(config.plan.confirm_seeds)]
    rows = {
        "fused": assessment.fused,
        **{m: r for m in ("audio", "video", "early") if (r := assessment.row(f"best {m}"))},
    }
    names = sorted(
        {name for row in rows.values() for _, experts in row.per_fold for name in experts}
    )
    have = {entry.trial for entry in bank.read() if entry.percent == 100}
    trials = dict(_all_trials(search))
    specs = []
    for seed in seeds:
        for name in names:
            if f"{name}+seed{seed}" not in have:
                modality = name.rpartition("-")[0]
                part = search.parts[modality]
                frozen = trials[name]
                plan = suggest_plan(_Replayed(frozen.params), modality, part.offer)  # type: ignore[arg-type]
                specs.append(
                    {
                        "trial": f"{name}+seed{seed}",
                        "modality": modality,
                        "plan": plan.to_json(),
                        "context": {**context, "seed": seed},
                    }
                )
    if specs:
        screen.print(
            f"training {len(names)} experts of the headline again with {len(seeds)} fresh seeds",
            highlight=False,
        )
        tuning.run_seeds(
            specs,
            context,
            workers=workers,
            on_done=lambda name, why: (
                screen.print(f"{name}: {why}", highlight=False) if why else None
            ),
        )
    fresh = {entry.trial: entry for entry in bank.read() if entry.percent == 100}
    confirmed: dict[int, dict[str, Scored]] = {}
    everyone = bank.experts(e for e in fresh.values() if e.trial in _finished(search))
    for seed in seeds:
        again = {name: fresh.get(f"{name}+seed{seed}") for name in names}
        if all(again.values()):
            logits = bank.experts([entry for entry in again.values() if entry]).log_posteriors
            swapped = everyone.replace(dict(zip(again, logits, strict=True)))
            confirmed[seed] = {
                name: replay(swapped, row, config.metric, name) for name, row in rows.items()
            }
    return confirmed


class _Replayed:
    """Stands in for an Optuna trial whose parameters are known."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.params[name]

    suggest_int = suggest_float = lambda self, name, low, high, log=False: self.params[name]


if __name__ == "__main__":
    sys.exit(main())
