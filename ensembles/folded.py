"""The fold networks of one expert, side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ensembles import EnsembleError
from models import ClipShape, Expert, build_expert
from models.expert import Batch
from models.registry import ModelError

_FOLD_FILE = re.compile(r"fold-(\d+)\.safetensors")


class FoldedExpert(nn.Module):
    """Every fold's network of one expert, from plain clips to each fold's posteriors.

    Args:
        networks: One a fold, of one plan; their front ends have no parameters, so that the
            first one's serves all.
    """

    def __init__(self, networks: Sequence[Expert]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.eval()

    @property
    def kinds(self) -> list[str]:
        """Which inputs it reads: audio, video, features."""
        return self.network(0).kinds

    def network(self, fold: int) -> Expert:
        """The network of one fold."""
        network = self.networks[fold]
        assert isinstance(network, Expert)
        return network

    def forward(self, batch: Batch) -> Tensor:
        """Plain clips, see `Expert` → (folds, B, K) log-posteriors."""
        return self.classify(self.network(0).preprocess(batch))

    def classify(self, fixed: Batch) -> Tensor:
        """What `Expert.preprocess` returned → (folds, B, K) log-posteriors."""
        folds = range(len(self.networks))
        return torch.stack([self.network(k).classify(fixed).log_softmax(dim=1) for k in folds])


def average_folds(by_fold: Tensor) -> Tensor:
    """(folds, B, K) log-posteriors → (B, K): their geometric mean.

    As sharp as a fold's own posteriors, which the fusion's weights were fitted on.
    """
    return by_fold.mean(dim=0).log_softmax(dim=1)


def read_plan(path: Path) -> dict[str, Any]:
    """A trial's `plan.json`: architecture, settings, training, shape.

    Raises:
        EnsembleError: If it is missing or damaged.
    """
    try:
        plan = json.loads(path.read_bytes())
        return {key: plan[key] for key in ("architecture", "settings", "training", "shape")}
    except FileNotFoundError:
        raise EnsembleError(f"No such file: '{path}'.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnsembleError(f"'{path}' is damaged: {error!r}.") from error


def load_folded(folder: Path) -> FoldedExpert:
    """Rebuilds an expert from its folder: `plan.json` and `fold-K.safetensors`, nothing pickled.

    Raises:
        EnsembleError: Names the file that is missing, damaged or of another network.
    """
    plan = read_plan(folder / "plan.json")
    files = sorted(
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := _FOLD_FILE.fullmatch(path.name))
    )
    if [fold for fold, _ in files] != list(range(len(files))) or not files:
        raise EnsembleError(f"'{folder}' lacks the weights of a fold.")
    return FoldedExpert([_load_network(plan, path) for _, path in files])


def _load_network(plan: Mapping[str, Any], path: Path) -> Expert:
    try:
        shape = ClipShape(**{**plan["shape"], "frame_size": tuple(plan["shape"]["frame_size"])})
        network = build_expert(plan["architecture"], plan["settings"], shape)
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise EnsembleError(f"'{path}' is damaged: {error}.") from error
    except (ModelError, TypeError, KeyError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise EnsembleError(f"'{path}' does not fit its plan: {first}") from error
    return network
