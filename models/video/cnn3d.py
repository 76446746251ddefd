"""S1's 3DCNN on video frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import Encoder
from models.frontends.frames import Frames
from models.registry import ClipShape, ModelError, Settings, register

_CHANNELS = (3, 16, 32, 64, 128)


def _sizes(frames: int, height: int, width: int) -> list[tuple[int, int, int]]:
    """Output of each convolution, before its pooling."""
    sizes = []
    for step in range(4):
        frames, height, width = frames - 2, height - 2, width - 2
        sizes.append((frames, height, width))
        if step < 3:
            height, width = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    return sizes


def _cost(settings: Settings, shape: ClipShape) -> float:
    sizes = _sizes(
        int(settings.get("frames", 20)),
        int(settings.get("height", 60)),
        int(settings.get("width", 100)),
    )
    return float(
        sum(
            v * h * w * 27 * _CHANNELS[step] * _CHANNELS[step + 1]
            for step, (v, h, w) in enumerate(sizes)
        )
    )


@register(
    "cnn3d",
    modality="video",
    inputs=("video",),
    cost=_cost,
    default={"frames": 10, "height": 46, "width": 76},
    training={
        "epochs": 16,
        "learning_rate": 5e-4,
        "weight_decay": 0.02,
        "dropout": 0.2,
        "batch_size": 32,
    },
    convolutional=True,
    paper="Singh & Fang 2020",
)
class Cnn3d(Encoder):
    """3DCNN (Singh & Fang, 2020, arXiv:2006.08129); 20 frames of 60×100 in the paper.

    Four unpadded 3×3×3 convolutions of 16, 32, 64 and 128 filters, the first three followed
    by a spatial maximum, then 256 and 64 units. Differs from the paper: frames are scaled by
    each clip's mean and deviation; a ReLU also follows the fourth convolution and the 64
    units; the known-good default sees fewer and smaller frames. Time is flattened with the
    rest of the map, so a clip is one step.

    Args:
        shape: The corpus's clips.
        frames: V, taken evenly from the clip.
        height: H in pixels.
        width: W in pixels.
    """

    kind = "video"
    embedding_dim = 64

    def __init__(
        self, *, shape: ClipShape, frames: int = 20, height: int = 60, width: int = 100
    ) -> None:
        super().__init__()
        v, h, w = _sizes(frames, height, width)[-1]
        if min(v, h, w) < 1:
            raise ModelError(
                f"cnn3d needs 9 frames of 45×45 pixels or more, got {frames} of {height}×{width}."
            )
        self.frontend = Frames(count=frames, height=height, width=width)
        layers: list[nn.Module] = []
        for step in range(4):
            layers += [nn.Conv3d(_CHANNELS[step], _CHANNELS[step + 1], 3), nn.ReLU()]
            if step < 3:
                layers.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2)))
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(128 * v * h * w, 256)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(256, 64)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, V, 3, H, W) frames → (B, 64)."""
        maps = self.convolutions(x.transpose(1, 2)).flatten(1)
        return torch.relu(self.output(self.dropout(torch.relu(self.hidden(maps)))))
