"""Keeps the backbone of a trained expert for other searches: `python -m ensembles.backbone RUN EXPERT --out DIR`.

What a search on one corpus has learnt of faces or voices, a search on another one can start
from (`--weights DIR`). The file says which settings it needs, and on whom it was trained: a
search that would be scored on any of those speakers refuses it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ensembles import EnsembleError
from ensembles.artifact.fold_networks import load_folded, read_plan
from ensembles.bank.posterior_bank import PosteriorBank
from models import BackboneEncoder, get_architecture
from models.pretrained import ORIGIN


def save_backbones(run: Path, name: str, fold: int, out: Path) -> list[Path]:
    """Writes `ARCHITECTURE.safetensors` for each backbone of an expert.

    Args:
        run: The run's folder.
        name: The expert.
        fold: Whose network.
        out: A folder for `--weights`.

    Raises:
        EnsembleError: No such expert or fold, or one without a backbone that has trained.
    """
    weights = run / "weights" / name
    if not weights.is_dir():
        raise EnsembleError(f"No expert's weights in '{weights}'.")
    trained_on = _trained_on(run)
    plan, expert = read_plan(weights / "plan.json"), load_folded(weights)
    if not 0 <= fold < len(expert.networks):
        raise EnsembleError(f"There is no fold {fold}; '{weights}' has {len(expert.networks)}.")
    network, written = expert.network(fold), []
    for kind in network.kinds:
        encoder = network.encoder(kind)
        side = "audio" if kind == "audio" else "video"
        name = plan["settings"].get(side, plan)["architecture"]
        state = encoder.backbone.state_dict() if isinstance(encoder, BackboneEncoder) else {}
        if not state:
            continue
        path = out / f"{name}.safetensors"
        if path.exists():
            raise EnsembleError(f"'{path}' is there already. Name another --out.")
        out.mkdir(parents=True, exist_ok=True)
        settings = plan["settings"].get(side, plan)["settings"]
        before = (settings.get("checkpoint") or {}).get("trained_on", [])
        entry = get_architecture(name)
        origin = {
            "settings": {k: v for k, v in settings.items() if k in entry.arguments},
            "trained_on": [*before, trained_on],
        }
        tensors = {key: x.contiguous() for key, x in state.items()}
        save_file(tensors, path, metadata={ORIGIN: json.dumps(origin)})
        written.append(path)
    if not written:
        raise EnsembleError(f"'{weights}' has no backbone that has trained.")
    return written


def _trained_on(run: Path) -> dict[str, Any]:
    """Corpus, its checksum, and every speaker of it: other folds' trained this one's network."""
    try:
        facts = json.loads((run / "run.json").read_bytes())
        table = PosteriorBank.open(run / "bank").table
        return {
            "corpus": facts["corpus"],
            "checksum": facts["data_checksum"],
            "speakers": sorted(set(table.speakers)),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnsembleError(f"'{run}' does not say what it was trained on: {error!r}.") from error


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: written; 2: in one line, why not."""
    parser = argparse.ArgumentParser(
        prog="python -m ensembles.backbone",
        description="Keeps the backbone of a trained expert, for --weights of a search on another corpus.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as runs/NAME")
    parser.add_argument("expert", metavar="EXPERT", help="a trial, such as video-0003")
    parser.add_argument("--fold", type=int, default=0, help="whose network (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="the weights' folder")
    given = parser.parse_args(arguments)
    try:
        written = save_backbones(given.run, given.expert, given.fold, given.out)
    except (EnsembleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
