"""Torchvision's networks as backbones: cut into stages, without their output layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.base import Backbone
from models.layers import flatten_convolutions
from models.registry import ModelError

Stages = Sequence[Sequence[str]]
"""For the stem and each stage, the names of its modules in torchvision's network, in order."""

RESIDUAL_STAGES = (("layer1",), ("layer2",), ("layer3",), ("layer4",))


class StagedBackbone(Backbone):
    """The stem and the first stages of a torchvision network.

    Args:
        network: Torchvision's; its parts are taken over.
        table: All that the network has, but its output layer.
        kept: Stages kept behind the stem, 1 or more.
        output: Name of the output layer.
    """

    def __init__(self, network: nn.Module, table: Stages, kept: int, output: str) -> None:
        super().__init__()
        if not 1 <= kept < len(table):
            raise ModelError(f"stages must be 1 to {len(table) - 1}, got {kept}.")
        own, rest = table[: kept + 1], table[kept + 1 :]
        self.parts = nn.ModuleList(
            nn.Sequential(*(network.get_submodule(name) for name in names)) for names in own
        )
        self.names = {
            f"{name}.": f"parts.{part}.{place}."
            for part, names in enumerate(own)
            for place, name in enumerate(names)
        }
        self.left_out = (f"{output}.", *(f"{name}." for names in rest for name in names))
        self.variant = f"{kept} stages"

    def maps(self, x: Tensor) -> Tensor:
        """Return the last stage's output for the first one's input."""
        for part in self.parts:
            x = part(x)
        return x

    def stages(self) -> list[nn.Module]:
        """The stem, and the stages that are kept."""
        return list(self.parts)

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Torchvision's names to its own; drops the output layer and the stages not kept."""
        return {self._own(key): x for key, x in state.items() if not key.startswith(self.left_out)}

    def _own(self, key: str) -> str:
        for name, own in self.names.items():
            if key.startswith(name):
                return own + key.removeprefix(name)
        return key


def convolutional_network(build: Callable[[], nn.Module], table: Stages, kept: int) -> nn.Module:
    """One of torchvision's networks of convolutions and batch normalisation, weights at random.

    It is described first, and of what is kept alone are weights made: all of a 3D network
    takes seconds. They are drawn by He et al. (2015, arXiv:1502.01852), which keeps the maps'
    scale before any normalisation has seen a clip.
    """
    with torch.device("meta"):
        network = build()
    flatten_convolutions(network)
    for name in (name for names in table[: kept + 1] for name in names):
        network.get_submodule(name).to_empty(device="cpu").apply(_draw)
    return network


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        assert module.bias is None, "convolutions in front of a normalisation have none"
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        module.reset_parameters()
