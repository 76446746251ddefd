"""Pretrained weights: which files an architecture takes, reading them safely, and transfer modes.

Files come from a folder that the user names; nothing is ever downloaded. Reading one can
execute nothing: safetensors, or torch's own format with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from models.base import Backbone, BackboneEncoder, FrontEnd
from models.expert import Expert
from models.registry import Architecture, Checkpoint, ModelError

TRANSFERS = ("scratch", "frozen", "finetune")
"""`scratch`: random weights. `frozen`: pretrained, and only the head trains on what the backbone
made of each clip once. `finetune`: pretrained, and all of it trains."""


OWN_SUFFIXES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Found:
    """A checkpoint that is there, as a run records it.

    Attributes:
        file: Its name under the weights' folder.
        sha256: Of the file that holds the tensors.
        settings: Constructor settings that it needs.
        trained_on: `corpus`, `checksum` and `speakers` of every search of ours that has trained
            it, one after the other; empty of anyone else's.
    """

    file: str
    sha256: str
    settings: dict[str, Any]
    trained_on: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For a plan's settings, and the run's record."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Found:
        """The inverse of `to_json`."""
        return Found(**document)


def find_checkpoints(entry: Architecture, folder: Path) -> list[Found]:
    """An architecture's checkpoints in a folder: one a kind of weights, the first name that is there.

    Besides the original files, `ARCHITECTURE.safetensors`, `.pt` or `.pth` holds this
    project's own backbone under its own names.

    Raises:
        ModelError: A folder without tensors, or a configuration that cannot be read.
    """
    own = Checkpoint(
        files=tuple(f"{entry.name}{suffix}" for suffix in OWN_SUFFIXES), source="", settings={}
    )
    found: list[Found] = []
    for checkpoint in (*entry.checkpoints, own):
        for name in checkpoint.files:
            if any(name == earlier.file for earlier in found):
                break
            path = folder / name
            if path.exists():
                settings = {**checkpoint.settings}
                if checkpoint.read:
                    settings |= checkpoint.read(path)
                origin = _origin(path)
                settings |= origin.get("settings", {})
                digest = sha256(tensor_file(path))
                found.append(Found(name, digest, settings, origin.get("trained_on", [])))
                break
    return found


ORIGIN = "emotion_search"
"""Key of what a backbone of ours says of itself, as JSON in its safetensors' metadata."""


def _origin(path: Path) -> dict[str, Any]:
    """The settings of a backbone of ours, and what it was trained on; empty of anyone else's."""
    file = tensor_file(path)
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, framework="pt") as content:
            told = (content.metadata() or {}).get(ORIGIN)
        return dict(json.loads(told)) if told else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"'{file}' cannot be read as weights: {error}") from error


def tensor_file(path: Path) -> Path:
    """The file with the tensors: the path itself, or of a folder in the Hugging Face layout.

    Raises:
        ModelError: The folder holds none that can be read safely and whole.
    """
    if path.is_file():
        return path
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise ModelError(
        f"'{path}' holds neither model.safetensors nor pytorch_model.bin"
        + (" (in several parts: save it as one file)." if any(path.glob("*.index.json")) else ".")
    )


def sha256(path: Path) -> str:
    """Return the checksum of a file; remembered while the file does not change."""
    state = path.stat()
    return _sha256(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _sha256(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; unpacks `model` and `state_dict`.

    Raises:
        ModelError: Unreadable, or not tensors alone.
    """
    file = tensor_file(path)
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise ModelError(f"'{file}' cannot be read as weights: {first}") from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(x, Tensor) for name, x in content.items()
    ):
        raise ModelError(f"'{file}' holds no table of tensors.")
    return dict(content)


def load_backbone(backbone: Backbone, path: Path) -> None:
    """Fills a backbone from an original checkpoint, or from its own tensors.

    Raises:
        ModelError: Of another architecture; names the first tensors that do not fit.
    """
    state = read_tensors(path)
    own = backbone.state_dict()
    given = state if state.keys() == own.keys() else backbone.translate(state)
    problems = [f"{key} is missing" for key in own if key not in given]
    problems += [f"{key} is unknown" for key in given if key not in own]
    problems += [
        f"{key} is {tuple(given[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    if problems:
        listed = "; ".join(problems[:3])
        raise ModelError(
            f"'{path}' is a checkpoint of another architecture: {listed}"
            + (f"; and {len(problems) - 3} more." if len(problems) > 3 else ".")
        )
    backbone.load_state_dict(given)


class FrozenBackbone(FrontEnd):
    """A pretrained backbone as part of the front end: computed once a clip, and cached."""

    worth_caching = True
    has_mean = False
    storage = "float16"

    def __init__(self, frontend: FrontEnd, backbone: Backbone, name: str) -> None:
        super().__init__()
        self.first, self.backbone = frontend, backbone
        self.name = f"{frontend.name} | {name}"
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in evaluation mode: no dropout, and no statistic that moves."""
        super().train(False)
        return self

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the backbone's output, in the precision of the cache."""
        with torch.no_grad():
            values, steps = self.backbone(*self.first(x, lengths))
        return values.to(torch.float16).to(torch.float32), steps


class _Applied(Backbone):
    """Where a backbone was that is now part of the front end."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input unchanged."""
        return x, lengths

    def stages(self) -> list[nn.Module]:
        """None are left to thaw."""
        return []


def apply_transfer(
    encoder: BackboneEncoder, transfer: str, checkpoint: Found | None, weights: Path | None
) -> None:
    """Makes an encoder start from pretrained weights.

    Args:
        encoder: As built, with random weights.
        transfer: One of TRANSFERS.
        checkpoint: Which; None from scratch.
        weights: The folder that it lies in; None leaves random weights, for who loads a
            trained network into it.

    Raises:
        ModelError: An unknown transfer, a file that is missing, changed, or of another
            architecture.
    """
    if transfer not in TRANSFERS:
        raise ModelError(f"Unknown transfer '{transfer}'. Known: {', '.join(TRANSFERS)}.")
    if transfer == "scratch":
        return
    if checkpoint is None:
        raise ModelError(f"transfer '{transfer}' needs a checkpoint (--weights).")
    if weights is not None:
        path = weights / checkpoint.file
        if not path.exists():
            raise ModelError(f"No '{checkpoint.file}' in '{weights}' (--weights) on this machine.")
        if sha256(tensor_file(path)) != checkpoint.sha256:
            raise ModelError(f"'{path}' is not the file that this run began with.")
        load_backbone(encoder.backbone, path)
    encoder.finetuned = transfer == "finetune"
    if transfer == "frozen":
        name = f"{type(encoder).__name__} {checkpoint.sha256[:24]}"
        if encoder.backbone.variant:
            name += f" {encoder.backbone.variant}"
        encoder.frontend = FrozenBackbone(encoder.frontend, encoder.backbone, name)
        encoder.backbone = _Applied()


def share_frozen(source: Expert, target: Expert) -> None:
    """Lets a network use another one's frozen backbones, of the same plan, instead of its own."""
    for kind in source.kinds:
        frontend = source.encoder(kind).frontend
        if isinstance(frontend, FrozenBackbone):
            assert frontend.name == target.encoder(kind).frontend.name, "of another plan"
            target.encoder(kind).frontend = frontend


@cache
def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a folder in the Hugging Face layout; raises ModelError."""
    try:
        document = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path / 'config.json'}' cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"'{path / 'config.json'}' holds no settings.")
    return document
