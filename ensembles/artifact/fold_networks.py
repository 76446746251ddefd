"""The fold networks of one expert, side by side."""

from __future__ import annotations

import copy
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
from models.base import Batch
from models.frontends.frames import Frames
from models.registry import Answers, ModelError

_FOLD_FILE = re.compile(r"fold-(\d+)\.safetensors")
_FROZEN_FILE = re.compile(r"frozen-[0-9A-Za-z]+\.safetensors")


class FoldedExpert(nn.Module):
    """Every fold's network of one expert, from plain clips to each fold's posteriors, or numbers.

    Args:
        networks: One a fold, of one plan; nothing in their front ends is trained, so that the
            first one's serves all.
    """

    def __init__(self, networks: Sequence[Expert]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.eval()

    @property
    def kinds(self) -> list[str]:
        """Inputs that it reads, such as audio."""
        return self.network(0).kinds

    @property
    def answers(self) -> Answers:
        """Kind of its output, see `ClipShape`."""
        return self.network(0).answers

    @property
    def reads_saliency(self) -> bool:
        """Whether it takes frames with a fourth channel, a precomputed saliency map."""
        return any(isinstance(part, Frames) and part.maps for part in self.network(0).modules())

    def network(self, fold: int) -> Expert:
        """The network of one fold."""
        network = self.networks[fold]
        assert isinstance(network, Expert)
        return network

    def forward(self, batch: Batch) -> Tensor:
        """Plain clips, see `Expert` → (folds, B, K) log-posteriors or values, (folds, B, S, K) traces."""
        return self.answer(self.network(0).preprocess(batch))

    def answer(self, fixed: Batch) -> Tensor:
        """Map what `Expert.preprocess` returned to outputs, like `forward`."""
        said = torch.stack([self.network(k).answer(fixed) for k in range(len(self.networks))])
        return said.log_softmax(dim=2) if self.answers == "classes" else said


def average_folds(by_fold: Tensor, answers: str = "classes") -> Tensor:
    """(folds, B, K) log-posteriors → (B, K): their geometric mean; of numbers the plain one.

    As sharp as a fold's own posteriors, which the fusion's weights were fitted on.
    """
    mean = by_fold.mean(dim=0)
    return mean.log_softmax(dim=1) if answers == "classes" else mean


def read_plan(path: Path) -> dict[str, Any]:
    """A trial's `plan.json`: architecture, settings, training, shape, frozen (a file, or None).

    Raises:
        EnsembleError: If it is missing or damaged.
    """
    try:
        plan = json.loads(path.read_bytes())
        known = {key: plan[key] for key in ("architecture", "settings", "training", "shape")}
        frozen = plan.get("frozen")
        if frozen is not None and not _FROZEN_FILE.fullmatch(frozen):
            raise ValueError(f"frozen {frozen!r}")  # another folder's, perhaps
        return {**known, "frozen": frozen}
    except FileNotFoundError:
        raise EnsembleError(f"No such file: '{path}'.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnsembleError(f"'{path}' is damaged: {error!r}.") from error


def shape_of(plan: Mapping[str, Any]) -> ClipShape:
    """The clips that a plan was made for."""
    return ClipShape(**{**plan["shape"], "frame_size": tuple(plan["shape"]["frame_size"])})


def frozen_file(folder: Path, plan: Mapping[str, Any]) -> Path | None:
    """The tensors of an expert's frozen backbones: in its folder, or beside it for all experts."""
    if plan["frozen"] is None:
        return None
    own: Path = folder / plan["frozen"]
    return own if own.is_file() else folder.parent / plan["frozen"]


def load_folded(folder: Path) -> FoldedExpert:
    """Rebuilds an expert from its folder: `plan.json` and `fold-K.safetensors`, nothing pickled.

    The tensors of a frozen backbone, which all folds share, are in a file of their own.

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
    first = _build(folder, plan)
    return FoldedExpert([_of_fold(first, path) for _, path in files])


def _build(folder: Path, plan: Mapping[str, Any]) -> Expert:
    """The network of a plan, with its frozen part as it was and the rest random."""
    try:
        network = build_expert(plan["architecture"], plan["settings"], shape_of(plan))
    except (ModelError, TypeError, KeyError, RuntimeError) as error:
        raise _unfit(folder / "plan.json", error) from error
    file, wanted = frozen_file(folder, plan), network.frozen_state()
    if file is None:
        if wanted:
            raise EnsembleError(
                f"'{folder / 'plan.json'}' names no file of its frozen backbone's weights."
            )
        return network
    try:
        state = load_file(file)
        if state.keys() != wanted.keys():
            odd = sorted(state.keys() ^ wanted.keys())
            raise RuntimeError(f"{odd[0]} is not in both")
        network.load_state_dict(state, strict=False)
    except FileNotFoundError:
        raise EnsembleError(f"No such file: '{file}'.") from None
    except (SafetensorError, OSError) as error:
        raise EnsembleError(f"'{file}' is damaged: {error}.") from error
    except RuntimeError as error:
        raise _unfit(file, error) from error
    return network


def _of_fold(first: Expert, path: Path) -> Expert:
    """A network like the first, with a fold's weights, around the same front ends."""
    shared = [first.encoder(kind).frontend for kind in first.kinds]
    network = copy.deepcopy(first, {id(frontend): frontend for frontend in shared})
    try:
        network.load_learned_state(load_file(path))
    except (SafetensorError, OSError) as error:
        raise EnsembleError(f"'{path}' is damaged: {error}.") from error
    except RuntimeError as error:
        raise _unfit(path, error) from error
    return network


def _unfit(path: Path, error: Exception) -> EnsembleError:
    first = str(error).splitlines()[0] if str(error) else repr(error)
    return EnsembleError(f"'{path}' does not fit its plan: {first}")
