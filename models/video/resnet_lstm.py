"""S2's video network: a ResNet on every face, and an LSTM over time."""

from __future__ import annotations

from torch import Tensor, nn

from models.base import BackboneEncoder
from models.frontends.frames import Frames
from models.layers import AttentionPooling, Recurrence, mean_over_time
from models.registry import Checkpoint, ClipShape, ModelError, Settings, register
from models.video.torchvision_backbones import (
    RESIDUAL_STAGES,
    StagedBackbone,
    convolutional_network,
)

# Millions of multiply-accumulates of the stem and the four stages for 96×96 pixels, as counted.
_COST = {
    18: (21.7, 84.9, 75.5, 75.5, 75.5),
    34: (21.7, 127.4, 160.4, 245.4, 118.0),
    50: (21.7, 122.7, 188.7, 269.0, 148.6),
}


def _channels(depth: int, stages: int) -> int:
    return (256 if depth == 50 else 64) << (stages - 1)


def _cost(settings: Settings, shape: ClipShape) -> float:
    depth, stages = int(settings.get("depth", 18)), int(settings.get("stages", 4))
    units, width = int(settings.get("recurrent_units", 256)), _channels(depth, stages)
    ways = 2 if settings.get("bidirectional") else 1
    layers = ways * 4 * units * (width + units + ways * units + units)
    frame = 1e6 * sum(_COST[depth][: stages + 1]) * (int(settings.get("size", 96)) / 96) ** 2
    return float(int(settings.get("frames", 8)) * (frame + layers + max(width, ways * units)))


class FrameResNet(StagedBackbone):
    """A ResNet over frames: (B, V, 3, H, W) → (B, V, C), the mean of the last map.

    Args:
        depth: 18, 34 or 50 layers.
        stages: How many of its four stages are kept.
    """

    def __init__(self, *, depth: int, stages: int) -> None:
        if depth not in _COST:
            raise ModelError(f"Unknown depth {depth}. Known: {', '.join(map(str, _COST))}.")
        from torchvision.models import resnet  # takes seconds

        table = (("conv1", "bn1", "relu", "maxpool"), *RESIDUAL_STAGES)
        network = convolutional_network(getattr(resnet, f"resnet{depth}"), table, stages)
        super().__init__(network, table, stages, "fc")

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        values = self.maps(x.flatten(0, 1)).mean(dim=(2, 3))
        return values.unflatten(0, (-1, x.shape[1])), lengths


def _checkpoint(depth: int, *files: str) -> Checkpoint:
    return Checkpoint(
        files=files,
        source=f"torchvision, resnet{depth} on ImageNet",
        settings={"depth": depth},
    )


@register(
    "resnet_lstm",
    modality="video",
    inputs=("video",),
    cost=_cost,
    default={
        "frames": 8,
        "size": 96,
        "depth": 18,
        "stages": 4,
        "scaling": "unit",
        "recurrent_units": 256,
        "bidirectional": False,
        "pooling": "attention",
    },
    training={
        "epochs": 20,
        "learning_rate": 5e-4,
        "weight_decay": 0.05,
        "dropout": 0.3,
        "batch_size": 16,
        "label_smoothing": 0.1,
    },
    convolutional=True,
    paper="Tzirakis et al. 2017",
    checkpoints=(
        _checkpoint(18, "resnet18-f37072fd.pth"),
        _checkpoint(34, "resnet34-b627a593.pth"),
        _checkpoint(50, "resnet50-11ad3fa6.pth"),
        _checkpoint(50, "resnet50-0676ba61.pth"),
    ),
    from_scratch=False,
)
class ResNetLstm(BackboneEncoder):
    """ResNet on 96×96 faces and a 2-layer LSTM of 256 (Tzirakis et al., 2017, arXiv:1704.08619).

    Differs from the paper: 18 layers by default (50 there); the LSTM has neither peepholes
    nor a cell clip; some frames of a clip instead of all 25 a second; a clip's label is read
    from a weighted mean of the LSTM's outputs, where the paper labels every frame (`steps`).

    Args:
        shape: The corpus's clips.
        frames: V, taken evenly from the clip.
        size: Pixels of a frame's sides.
        depth: Layers of the ResNet: 18, 34 or 50.
        stages: How many of its four stages are kept; fewer cost less, and know less of ImageNet.
        scaling: See `Frames`: `unit` as in the paper, `imagenet`, `clip`.
        recurrent_units: Of the LSTM, a direction; 0 for the frames' own values.
        bidirectional: The LSTM runs in both directions.
        pooling: How the steps become a vector: `attention` or `mean`.
    """

    kind = "video"

    def __init__(
        self,
        *,
        shape: ClipShape,
        frames: int = 8,
        size: int = 96,
        depth: int = 18,
        stages: int = 4,
        scaling: str = "unit",
        recurrent_units: int = 256,
        bidirectional: bool = False,
        pooling: str = "attention",
    ) -> None:
        super().__init__()
        if pooling not in ("attention", "mean"):
            raise ModelError(f"Unknown pooling '{pooling}'. Known: attention, mean.")
        self.frontend = Frames(count=frames, height=size, width=size, scaling=scaling)
        self.backbone = FrameResNet(depth=depth, stages=stages)
        self.embedding_dim = _channels(depth, stages)
        self.recurrence: Recurrence | None = None
        if recurrent_units:
            self.recurrence = Recurrence(
                "lstm", self.embedding_dim, recurrent_units, 2, bidirectional=bidirectional
            )
            self.embedding_dim = self.recurrence.output_dim
        self.pool: nn.Module | None = None
        if pooling == "attention":
            self.pool = AttentionPooling(self.embedding_dim)

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, V, C) frames' values → (B, D)."""
        steps, lengths = self.head_steps(x, lengths)
        pool = mean_over_time if self.pool is None else self.pool
        vector: Tensor = pool(steps, lengths)
        return vector

    def head_steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, C) frames' values → (B, V, D), (B,)."""
        return (x if self.recurrence is None else self.recurrence(x, lengths)), lengths
