"""Networks for video that torchvision has weights for, trained on the actions of Kinetics-400."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.base import BackboneEncoder
from models.frontends.frames import Frames
from models.layers import mean_over_time, peak_over_time
from models.registry import Checkpoint, ClipShape, ModelError, Settings, register
from models.video.torchvision_backbones import (
    RESIDUAL_STAGES,
    StagedBackbone,
    convolutional_network,
)
from models.video.windows import WindowAttention

# Giga multiply-accumulates of the stem and the four stages for 16 frames of 112×112, as counted.
_COST = {
    "r3d_18": (1.416, 22.196, 9.762, 4.881, 2.441),
    "mc3_18": (1.416, 22.196, 6.577, 6.577, 6.577),
    "r2plus1d_18": (0.765, 22.196, 10.032, 5.016, 2.509),
    "s3d": (1.191, 1.413, 1.073, 0.739, 0.078),
    "swin3d_t": (0.058, 2.331, 1.975, 4.986, 2.013),
}
_CHANNELS = {
    "r3d_18": (64, 128, 256, 512),
    "mc3_18": (64, 128, 256, 512),
    "r2plus1d_18": (64, 128, 256, 512),
    "s3d": (192, 480, 832, 1024),
    "swin3d_t": (96, 192, 384, 768),
}
_RESIDUAL = (("stem",), *RESIDUAL_STAGES)
_S3D = (
    ("features.0",),
    ("features.1", "features.2", "features.3"),
    ("features.4", "features.5", "features.6"),
    tuple(f"features.{number}" for number in range(7, 13)),
    ("features.13", "features.14", "features.15"),
)
_SWIN = (
    ("patch_embed",),
    ("features.0",),
    ("features.1", "features.2"),
    ("features.3", "features.4"),
    ("features.5", "features.6", "norm"),
)


def _cost(name: str) -> Callable[[Settings, ClipShape], float]:
    def cost(settings: Settings, shape: ClipShape) -> float:
        frames, stages = int(settings.get("frames", 8)), int(settings.get("stages", 4))
        head = frames * _CHANNELS[name][stages - 1]
        pixels = frames * int(settings.get("size", 112)) ** 2
        return head + 1e9 * sum(_COST[name][: stages + 1]) * pixels / (16 * 112**2)

    return cost


class _Convolutions(StagedBackbone):
    """A 3D CNN over a clip: (B, V, 3, H, W) → (B, S, C), the last map's mean over space."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; S is as many for every clip."""
        values = self.maps(x.transpose(1, 2)).mean(dim=(3, 4)).transpose(1, 2)
        return values, torch.full_like(lengths, values.shape[1])


class _Windows(StagedBackbone):
    """A Swin transformer over a clip: (B, V, 3, H, W) → (B, S, C), means over space.

    Torchvision normalises behind the last stage only; where it is left out, the values are
    normalised without weights of their own.
    """

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; S is half of V."""
        maps = self.maps(x.transpose(1, 2))
        if (kept := len(self.parts) - 1) < 4:
            maps = functional.layer_norm(maps, (_CHANNELS["swin3d_t"][kept - 1],))
        values = maps.mean(dim=(2, 3))
        return values, torch.full_like(lengths, values.shape[1])


class _KineticsNetwork(BackboneEncoder):
    """Base of torchvision's networks for video, without their output layer.

    Differs from the paper: some frames of a clip, evenly taken, instead of 16 or 32 at a
    fixed rate; a face is resized to a square whatever its shape; the last map is averaged
    over space, and its steps over time by the head.

    Args:
        shape: The corpus's clips.
        frames: V, taken evenly from the clip.
        size: Pixels of a frame's sides.
        stages: How many of its four stages are kept; fewer cost less, and know less of actions.
        scaling: See `Frames`; the pretrained weights expect the default.
        pooling: How the steps become a vector: `mean`, or `mean_max` for both.
    """

    kind = "video"
    name: str
    smallest = (1, 1)  # frames and pixels that its four stages leave something of

    def __init__(
        self,
        *,
        shape: ClipShape,
        frames: int = 8,
        size: int = 112,
        stages: int = 4,
        scaling: str = "kinetics",
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "mean_max"):
            raise ModelError(f"Unknown pooling '{pooling}'. Known: mean, mean_max.")
        if stages == 4 and (frames < self.smallest[0] or size < self.smallest[1]):
            least = "{} frames of {} pixels".format(*self.smallest)
            raise ModelError(f"{self.name} needs {least} or more, got {frames} of {size}.")
        self.frontend = Frames(count=frames, height=size, width=size, scaling=scaling)
        self.backbone = self._build(stages, frames, size)
        self.pooling, self.channels = pooling, _CHANNELS[self.name][stages - 1]
        self.embedding_dim = self.channels * (2 if pooling == "mean_max" else 1)

    def _build(self, stages: int, frames: int, size: int) -> StagedBackbone:
        from torchvision.models import video  # takes seconds

        network = convolutional_network(getattr(video, self.name), _RESIDUAL, stages)
        return _Convolutions(network, _RESIDUAL, stages, "fc")

    @property
    def steps_dim(self) -> int:
        """E, channels of the last map."""
        return self.channels

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, C) → (B, D)."""
        mean = mean_over_time(x, lengths)
        if self.pooling == "mean":
            return mean
        return torch.cat([mean, peak_over_time(x, lengths)], dim=1)

    def head_steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C) as it is."""
        return x, lengths


_TRAINING = {
    "epochs": 20,
    "learning_rate": 3e-4,
    "weight_decay": 0.05,
    "dropout": 0.3,
    "batch_size": 16,
    "label_smoothing": 0.1,
}
Network = type[_KineticsNetwork]


def _register(name: str, file: str, paper: str, scaling: str) -> Callable[[Network], Network]:
    """Register a network with what all of them share."""
    return register(
        name,
        modality="video",
        inputs=("video",),
        cost=_cost(name),
        default={"frames": 8, "size": 112, "stages": 4, "scaling": scaling, "pooling": "mean"},
        training=_TRAINING,
        convolutional=True,
        paper=paper,
        checkpoints=(
            Checkpoint(files=(file,), source=f"torchvision, {name} on Kinetics-400", settings={}),
        ),
        from_scratch=False,
    )


@_register("r3d_18", "r3d_18-b3b3357e.pth", "Tran et al. 2018", "kinetics")
class R3d18(_KineticsNetwork):
    """ResNet of 18 layers with 3×3×3 convolutions (Tran et al., 2018, arXiv:1711.11248).

    A step is eight frames.
    """

    name = "r3d_18"


@_register("mc3_18", "mc3_18-a90a0ba3.pth", "Tran et al. 2018", "kinetics")
class Mc318(_KineticsNetwork):
    """ResNet of 18 layers, 3D in its first stage and 2D behind (Tran et al., 2018, arXiv:1711.11248).

    A step is a frame.
    """

    name = "mc3_18"


@_register("r2plus1d_18", "r2plus1d_18-91a641e6.pth", "Tran et al. 2018", "kinetics")
class R2plus1d18(_KineticsNetwork):
    """ResNet of 18 layers, each convolution in space, then in time (Tran et al., 2018, arXiv:1711.11248).

    A step is eight frames.
    """

    name = "r2plus1d_18"


@_register("s3d", "s3d-d76dad2f.pth", "Xie et al. 2018", "kinetics")
class S3d(_KineticsNetwork):
    """Inception with convolutions in space, then in time (Xie et al., 2018, arXiv:1712.04851).

    A step is eight frames. Differs from the paper, besides what the base class says: the last
    map is averaged as it is, where the original averages means over 2×7×7 of it; the
    statistics of its normalisations move a tenth of the way with every batch, not a thousandth,
    which are for trainings that take a hundred times as long.
    """

    name = "s3d"
    smallest = (5, 17)

    def _build(self, stages: int, frames: int, size: int) -> StagedBackbone:
        from torchvision.models import video  # takes seconds

        def build() -> nn.Module:
            network: nn.Module = video.s3d(norm_layer=partial(nn.BatchNorm3d, eps=0.001))
            return network

        return _Convolutions(convolutional_network(build, _S3D, stages), _S3D, stages, "classifier")


@_register("swin3d_t", "swin3d_t-7615ae03.pth", "Liu et al. 2022", "imagenet")
class Swin3dT(_KineticsNetwork):
    """Transformer with shifted windows in space and time, tiny (Liu et al., 2022, arXiv:2106.13230).

    A step is two frames.
    """

    name = "swin3d_t"

    def _build(self, stages: int, frames: int, size: int) -> StagedBackbone:
        from torchvision.models import video  # takes seconds

        # What is not kept is not made: drawing the weights of all four takes seconds.
        network = video.SwinTransformer3d(
            patch_size=[2, 4, 4],
            embed_dim=_CHANNELS["swin3d_t"][0],
            depths=[2, 2, 6, 2][:stages],
            num_heads=[3, 6, 12, 24][:stages],
            window_size=[8, 7, 7],
            num_classes=1,
        )
        steps, side = -(-frames // 2), -(-size // 4)
        for stage in range(stages):
            for block in network.features[2 * stage]:
                block.attn = WindowAttention(block.attn, (steps, side, side))
            side = -(-side // 2)
        return _Windows(network, _SWIN, stages, "head")
