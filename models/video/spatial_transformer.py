"""Guided spatial transformer: a saliency map says where in the face the network looks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.base import Backbone, BackboneEncoder
from models.frontends.frames import Frames
from models.layers import Recurrence, TanhAttention
from models.pretrained import OWN_SUFFIXES, read_tensors
from models.registry import Checkpoint, ClipShape, ModelError, Settings, register

GUIDES = ("none", "spectral", "maps")
_SIZE = 48
_VALUES = (50, 810)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def _cost(settings: Settings, shape: ClipShape) -> float:
    units, values = int(settings.get("units", 50)), int(settings.get("frame_values", 50))
    localisation = 42**2 * 8 * 49 + 17**2 * 10 * 8 * 25 + 640 * 32 + 32 * 6
    convolutions = 10 * 9 * (46**2 + 10 * (44**2 + 20**2 + 18**2)) + 810 * 50
    # The transform there and back, and the two filters: products of 48×48 matrices.
    saliency = 18 * _SIZE**3 if settings.get("guide") == "spectral" else 0
    frame = float(localisation + convolutions + saliency + 3 * 2 * _SIZE**2)
    head = 8 * units * (values + 4 * units) + 2 * units * (2 * units + 1) + 16 * units
    return int(settings.get("frames", 16)) * (frame + head)


class SpectralSaliency(nn.Module):
    """Spectral residual (Hou & Zhang, 2007): (n, 48, 48) grey → (n, 48, 48) saliency in 0…1.

    What is left of the log amplitude spectrum less its 3×3 mean, with the phases that it had,
    back in space, squared, smoothed (σ 2.5) and scaled. The transforms are matrix products, so
    that they export. Differs from the paper: 48 pixels instead of 64; the spectrum's mean
    wraps around, as a spectrum does; amplitudes have a floor and the constant part takes no
    part, so that of an even picture nothing is salient rather than its rounding errors.
    """

    _FLOOR, _SIGMA, _RADIUS = 1e-2, 2.5, 5
    _LEAST_CONTRAST = 1e-2  # of the smoothed map, whose mean is about 1

    def __init__(self, size: int = _SIZE) -> None:
        super().__init__()
        places = torch.arange(size, dtype=torch.float64)
        angle = (places[:, None] * places[None] % size) * (2.0 * math.pi / size)
        apart = (places[:, None] - places[None]).abs()
        around = torch.minimum(apart, size - apart)
        bell = torch.exp(-0.5 * (apart / self._SIGMA).square()) * (apart <= self._RADIUS)
        weight = torch.exp(
            -0.5 * (torch.arange(-self._RADIUS, self._RADIUS + 1) / self._SIGMA) ** 2
        )
        fixed = {
            "cosines": angle.cos() / math.sqrt(size),
            "sines": angle.sin() / math.sqrt(size),
            "neighbours": (around <= 1) / 3.0,
            "bell": bell / weight.sum(),
            "varying": torch.ones(size, size).index_put(
                (torch.tensor(0), torch.tensor(0)), torch.tensor(0.0)
            ),
        }
        for name, value in fixed.items():
            self.register_buffer(name, value.to(torch.float32), persistent=False)
        self.cosines: Tensor
        self.sines: Tensor
        self.neighbours: Tensor
        self.bell: Tensor
        self.varying: Tensor

    def forward(self, grey: Tensor) -> Tensor:
        """See the class; in float32 always."""
        with torch.no_grad(), torch.autocast(grey.device.type, enabled=False):
            grey = grey.float()
            across_cos, across_sin = grey @ self.cosines, grey @ self.sines
            real = self.cosines @ across_cos - self.sines @ across_sin
            imaginary = -(self.cosines @ across_sin + self.sines @ across_cos)
            amplitude = (real.square() + imaginary.square()).sqrt() + self._FLOOR
            logarithm = amplitude.log()
            residual = logarithm - self.neighbours @ logarithm @ self.neighbours
            gain = residual.exp() / amplitude * self.varying
            real, imaginary = real * gain, imaginary * gain
            # The spectrum stays that of a real picture, so only its real part comes back.
            back = self.cosines @ (real @ self.cosines - imaginary @ self.sines)
            back = back - self.sines @ (real @ self.sines + imaginary @ self.cosines)
            smooth = self.bell @ back.square() @ self.bell
            low, high = smooth.amin(dim=(1, 2), keepdim=True), smooth.amax(dim=(1, 2), keepdim=True)
            return (smooth - low) / (high - low + self._LEAST_CONTRAST)


class GuidedFrames(Backbone):
    """The network over frames: (B, V, C, 48, 48) → (B, V, 810), or (B, V, 50).

    Args:
        guide: What the localisation looks at: `none` (the face), `spectral`, `maps` (the
            fourth channel).
        frame_values: 50, or the 810 in front of that layer.
    """

    def __init__(self, *, guide: str, frame_values: int) -> None:
        super().__init__()
        if guide not in GUIDES:
            raise ModelError(f"Unknown guide '{guide}'. Known: {', '.join(GUIDES)}.")
        if frame_values not in _VALUES:
            raise ModelError(f"frame_values must be 50 or 810, got {frame_values}.")
        self.guide, self.variant = guide, f"{guide} {frame_values}"
        self.saliency = SpectralSaliency() if guide == "spectral" else None
        last = nn.Linear(32, 6)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        self.localisation = nn.Sequential(
            nn.Conv2d(1, 8, 7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(640, 32),
            nn.ReLU(),
            last,
        )
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 10, 3),
            nn.ReLU(),
            nn.Conv2d(10, 10, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 10, 3),
            nn.ReLU(),
            nn.Conv2d(10, 10, 3, bias=False),  # the normalisation would take it off again
            nn.BatchNorm2d(10),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.project: nn.Module | None = None
        if frame_values == 50:
            self.project = nn.Sequential(nn.Linear(810, 50), nn.ReLU())
        middle = (2.0 * torch.arange(_SIZE) + 1.0) / _SIZE - 1.0
        rows, columns = torch.meshgrid(middle, middle, indexing="ij")
        places = torch.stack([columns, rows, torch.ones_like(rows)], dim=2).flatten(0, 1)
        self.register_buffer("places", places, persistent=False)
        self.places: Tensor

    def stages(self) -> list[nn.Module]:
        """Where it looks, what it sees, and what it makes of that."""
        parts: list[nn.Module] = [self.localisation, self.convolutions]
        return [*parts, self.project] if self.project is not None else parts

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This project's own names; drops the layer of 50 where the 810 in front are asked for."""
        return {
            key: x
            for key, x in state.items()
            if self.project is not None or not key.startswith("project.")
        }

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        values = self.convolutions(self.warp(*self.look(x.flatten(0, 1))))
        if self.project is not None:
            values = self.project(values)
        return values.unflatten(0, (-1, x.shape[1])), lengths

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(n, C, 48, 48) → faces and what guides the localisation, each (n, 1, 48, 48)."""
        weights = torch.tensor(_GREY, device=images.device)[:, None, None]
        faces = (images[:, :3] * weights).sum(dim=1, keepdim=True)
        if self.saliency is not None:
            return faces, self.saliency(faces[:, 0])[:, None]
        return faces, (images[:, 3:4] if self.guide == "maps" else faces)

    def warp(self, faces: Tensor, guides: Tensor) -> Tensor:
        """Faces as the localisation moves, turns and scales them; all (n, 1, 48, 48)."""
        theta = self.localisation(guides).unflatten(1, (2, 3))
        # bfloat16 would place pixels to a fifth of one.
        with torch.autocast(faces.device.type, enabled=False):
            grid = (self.places @ theta.float().transpose(1, 2)).unflatten(1, (_SIZE, _SIZE))
            return functional.grid_sample(faces.float(), grid, align_corners=False)


def _settings_of(path: Path) -> Settings:
    """Weights without the layer of 50 fit a network without it."""
    has_layer = any(name.startswith("project.") for name in read_tensors(path))
    return {} if has_layer else {"frame_values": 810}


@register(
    "spatial_transformer",
    modality="video",
    inputs=("video",),
    cost=_cost,
    default={
        "frames": 16,
        "guide": "spectral",
        "scaling": "clip",
        "frame_values": 50,
        "units": 50,
        "recurrent_dropout": 0.3,
    },
    training={
        "epochs": 40,
        "learning_rate": 1e-3,
        "weight_decay": 0.02,
        "dropout": 0.3,
        "batch_size": 32,
    },
    convolutional=True,
    paper="Luna-Jiménez et al. 2021",
    checkpoints=(
        Checkpoint(
            files=tuple(f"spatial_transformer{suffix}" for suffix in OWN_SUFFIXES),
            source="this project: the backbone of a network trained on other faces",
            settings={},
            read=_settings_of,
        ),
    ),
)
class GuidedSpatialTransformer(BackboneEncoder):
    """Guided-ST and a bi-LSTM (Luna-Jiménez et al., 2021, Sensors 21(22):7665).

    A spatial transformer (Jaderberg et al., 2015, arXiv:1506.02025) whose localisation looks
    at a saliency map warps 48×48 grey faces; a small CNN makes 50 values of each.
    Differs from the paper: the map is a spectral residual by default, where theirs is what a
    trained network predicts (`maps` takes any that were made beforehand); faces are scaled by
    each clip's mean and deviation by default; some frames of a clip instead of all; nothing
    is trained on other data first unless a checkpoint is given.

    Args:
        shape: The corpus's clips.
        frames: V, taken evenly from the clip.
        guide: What the localisation looks at: `none` (the face itself), `spectral`
            (`SpectralSaliency`), `maps` (the clips' own saliency maps).
        scaling: Of the faces, see `Frames`: `clip` or `unit`.
        frame_values: What the LSTM reads of a frame: 50, or the 810 in front of that layer.
        units: Of the LSTM's two layers, a direction.
        recurrent_dropout: Between the LSTM's layers, and behind the attention's.
    """

    kind = "video"

    def __init__(
        self,
        *,
        shape: ClipShape,
        frames: int = 16,
        guide: str = "spectral",
        scaling: str = "clip",
        frame_values: int = 50,
        units: int = 50,
        recurrent_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if guide == "maps" and not shape.saliency_maps:
            raise ModelError(
                "guide 'maps' needs clips with precomputed saliency maps, which these have not; "
                "'spectral' computes its own."
            )
        self.frontend = Frames(
            count=frames, height=_SIZE, width=_SIZE, scaling=scaling, maps=guide == "maps"
        )
        self.backbone = GuidedFrames(guide=guide, frame_values=frame_values)
        self.recurrence = Recurrence("lstm", frame_values, units, 2, recurrent_dropout)
        self.embedding_dim = self.recurrence.output_dim
        self.pool = TanhAttention(self.embedding_dim, recurrent_dropout)

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, V, values) → (B, D)."""
        vector: Tensor = self.pool(*self.head_steps(x, lengths))
        return vector

    def head_steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, values) → (B, V, D), (B,)."""
        return self.recurrence(x, lengths), lengths
