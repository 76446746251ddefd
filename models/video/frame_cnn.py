"""A small CNN over single frames, pooled over time: learns from a few hundred clips."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import Encoder
from models.frontends.frames import Frames
from models.registry import ClipShape, Settings, register

_MULTIPLES = (1, 2, 3, 4)


def _cost(settings: Settings, shape: ClipShape) -> float:
    width = int(settings.get("width", 16))
    height, across = int(settings.get("height", 48)), int(settings.get("frame_width", 80))
    inside, total = 3, 0.0
    for multiple in _MULTIPLES:
        height, across = (height + 1) // 2, (across + 1) // 2
        total += height * across * 9 * inside * width * multiple
        inside = width * multiple
    return total * int(settings.get("frames", 8))


@register(
    "frame_cnn",
    modality="video",
    inputs=("video",),
    cost=_cost,
    default={"frames": 8, "height": 48, "frame_width": 80, "width": 16, "grey": True},
    training={
        "epochs": 24,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "dropout": 0.3,
        "batch_size": 16,
    },
    convolutional=True,
    paper="Simonyan & Zisserman 2015",
)
class FrameCnn(Encoder):
    """Four strided 3×3 convolutions on every frame, then mean, maximum and motion over time.

    No paper: the plain parts of VGG-like frame encoders (Simonyan & Zisserman, 2015,
    arXiv:1409.1556) with batch normalisation, made small (about 110 000 parameters). A
    frame keeps a 3×5 map, so that it matters where in the face something happens.

    Args:
        shape: The corpus's clips.
        frames: V, taken evenly from the clip.
        height: H in pixels.
        frame_width: W in pixels.
        width: Channels of the first convolution; then 2, 3 and 4 times as many.
        grey: Drop the colours, which tell speakers apart rather than emotions.
    """

    kind = "video"
    steps_dim = 64

    def __init__(
        self,
        *,
        shape: ClipShape,
        frames: int = 8,
        height: int = 48,
        frame_width: int = 80,
        width: int = 16,
        grey: bool = True,
    ) -> None:
        super().__init__()
        self.frontend = Frames(count=frames, height=height, width=frame_width)
        layers: list[nn.Module] = []
        self.grey = grey
        inside = 1 if grey else 3
        for multiple in _MULTIPLES:
            outside = width * multiple
            layers += [
                nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outside),
                nn.ReLU(),
            ]
            inside = outside
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((3, 5)))
        self.project = nn.Linear(inside * 15, 64)
        self.embedding_dim = 3 * 64

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, V, 3, H, W) frames → (B, 192)."""
        steps, _ = self.steps(x, lengths)
        motion = (steps[:, 1:] - steps[:, :-1]).abs().mean(dim=1)
        return torch.cat([steps.mean(dim=1), steps.amax(dim=1), motion], dim=1)

    def steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, 3, H, W) frames → (B, V, 64), (B,)."""
        images = x.flatten(0, 1)
        if self.grey:
            images = images.mean(dim=1, keepdim=True)
        maps = self.convolutions(images).flatten(1)
        return torch.relu(self.project(maps)).unflatten(0, (-1, x.shape[1])), lengths
