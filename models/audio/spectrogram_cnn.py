"""S1's CNN on a spectrogram image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import Encoder
from models.frontends.colour_maps import draw
from models.frontends.spectral import SpectrogramImage
from models.layers import fit_length
from models.registry import ClipShape, ModelError, Settings, register


class SpectrogramConvolutions(nn.Module):
    """The three convolutions that S1's audio networks share: (B, C, F, T) → (B, 24, F', T').

    16 filters 12×16, 24 filters 8×12, 24 filters 5×7 (frequency × time), each with ReLU and
    a 2×2 maximum. F' and T' follow from `after`.
    """

    def __init__(self, *, last_filters: int = 24, colours: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3 if colours else 1, 16, (12, 16), padding=(6, 8)),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 24, (8, 12), padding=(4, 6)),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, last_filters, (5, 7), padding=(2, 3)),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    @staticmethod
    def after(size: int) -> int:
        """Bins or frames that are left of `size`."""
        return ((size + 1) // 2 + 1) // 2 // 2

    def forward(self, x: Tensor) -> Tensor:
        """Channels-last pays for such kernels, see docs/performance.md."""
        maps: Tensor = self.layers(x)
        return maps


def convolution_cost(settings: Settings, frames: int) -> float:
    """Multiply-accumulates of `SpectrogramConvolutions`."""
    bins, filters = int(settings.get("num_bins", 200)), int(settings.get("last_filters", 24))
    first = (bins + 1) * (frames + 1) * 16 * 12 * 16 * (3 if settings.get("colours") else 1)
    second = ((bins + 1) // 2 + 1) * ((frames + 1) // 2 + 1) * 24 * 16 * 8 * 12
    third = (bins // 4) * (frames // 4) * filters * 24 * 5 * 7
    return float(first + second + third)


def _cost(settings: Settings, shape: ClipShape) -> float:
    frames = int(float(settings.get("crop_seconds", 3.0)) * 100)
    return convolution_cost(settings, frames)


@register(
    "spectrogram_cnn",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default={"crop_seconds": 3.0, "num_bins": 200},
    training={"epochs": 50, "learning_rate": 3e-4, "weight_decay": 0.01, "dropout": 0.2},
    convolutional=True,
    paper="Singh & Fang 2020",
)
class SpectrogramCnn(Encoder):
    """CNN on a spectrogram image (Singh & Fang, 2020, arXiv:2006.08129).

    Differs from the paper: the spectrogram is taken at the corpus's rate (16 kHz by default,
    so up to 8 kHz instead of 20), has one channel instead of a colour-mapped picture unless
    `colours` asks for one, and is scaled by its own mean and deviation; training cuts at random
    instead of at the start.

    Args:
        shape: The corpus's clips.
        crop_seconds: Part of the clip that is seen; shorter clips are followed by silence.
        num_bins: Rows of the image.
        last_filters: Of the third convolution; 24 in the slides, 32 in the released code.
        colours: Three channels, by a fixed colour map, as in the released code.
    """

    kind = "audio"
    embedding_dim = 64

    def __init__(
        self,
        *,
        shape: ClipShape,
        crop_seconds: float = 3.0,
        num_bins: int = 200,
        last_filters: int = 24,
        colours: bool = False,
    ) -> None:
        super().__init__()
        if crop_seconds <= 0:
            raise ModelError(
                f"crop_seconds must be positive, got {crop_seconds}: the flattened map has one size."
            )
        self.frontend = SpectrogramImage(sample_rate_hz=shape.sample_rate_hz, num_bins=num_bins)
        self.crop_frames = round(crop_seconds * 100)
        self.colours = colours
        self.convolutions = SpectrogramConvolutions(last_filters=last_filters, colours=colours)
        after = self.convolutions.after
        self.hidden = nn.Linear(last_filters * after(num_bins) * after(self.crop_frames), 64)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, F) image → (B, 64)."""
        x = fit_length(x, lengths, self.crop_frames, random=self.training)
        image = draw(x, lengths.clamp(max=self.crop_frames), colours=self.colours)
        return torch.relu(self.hidden(self.convolutions(image).flatten(1)))
