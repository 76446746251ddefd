"""S1's CNN+RNN and CNN+LSTM on a spectrogram image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.audio.spectrogram_cnn import SpectrogramConvolutions, convolution_cost
from models.base import Encoder
from models.frontends.colour_maps import draw
from models.frontends.masks import frame_mask
from models.frontends.spectral import SpectrogramImage
from models.layers import Recurrence, fit_length, mean_over_time
from models.registry import ClipShape, ModelError, Settings, register


def _cost(settings: Settings, shape: ClipShape) -> float:
    seconds = float(settings.get("crop_seconds", 3.0)) or shape.seconds
    bins, filters = int(settings.get("num_bins", 200)), int(settings.get("last_filters", 24))
    steps = seconds * 100 / 8
    gates = 4 if settings.get("cell") == "lstm" else 1
    recurrent = steps * 2 * gates * 128 * (filters * bins / 8 + 128 + 256 + 128)
    return convolution_cost(settings, round(seconds * 100)) + recurrent


class _SpectrogramRecurrent(Encoder):
    """Base of CNN+RNN and CNN+LSTM (Singh & Fang, 2020, arXiv:2006.08129).

    Differs from the paper: as `SpectrogramCnn`; and the recurrence runs over time (37 steps
    of 3 s) and its outputs are averaged, where the released code feeds the whole flattened
    map as a single step, which makes it a plain layer. That variant is `one_step`.

    Args:
        shape: The corpus's clips.
        crop_seconds: Part of the clip that is seen; 0 for the whole clip, whatever its length.
        num_bins: Rows of the image.
        one_step: As in the released code; needs `crop_seconds` > 0.
        last_filters: Of the third convolution; 24 in the slides, 32 in the released code.
        colours: Three channels, by a fixed colour map, as in the released code.
    """

    kind = "audio"
    embedding_dim = 64
    cell: str
    cell_dropout: float

    def __init__(
        self,
        *,
        shape: ClipShape,
        crop_seconds: float = 3.0,
        num_bins: int = 200,
        one_step: bool = False,
        last_filters: int = 24,
        colours: bool = False,
    ) -> None:
        super().__init__()
        if one_step and crop_seconds <= 0:
            raise ModelError("one_step needs crop_seconds > 0: the flattened map has one size.")
        self.frontend = SpectrogramImage(sample_rate_hz=shape.sample_rate_hz, num_bins=num_bins)
        self.crop_frames = round(crop_seconds * 100)
        self.one_step = one_step
        self.colours = colours
        self.convolutions = SpectrogramConvolutions(last_filters=last_filters, colours=colours)
        after = self.convolutions.after
        width = last_filters * after(num_bins)
        if one_step:
            width *= after(self.crop_frames)
        self.recurrence = Recurrence(self.cell, width, 128, 2, self.cell_dropout)
        self.hidden = nn.Linear(self.recurrence.output_dim, 64)

    @property
    def steps_dim(self) -> int:
        """E, of the recurrence's outputs."""
        return self.embedding_dim if self.one_step else self.recurrence.output_dim

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, F) image → (B, 64)."""
        return torch.relu(self.hidden(mean_over_time(*self._recur(x, lengths))))

    def steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) image → (B, S, E), (B,): of the crop, if one is taken."""
        return super().steps(x, lengths) if self.one_step else self._recur(x, lengths)

    def _recur(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The recurrence's outputs, (B, S, 2·128), and (B,) steps."""
        seen = lengths
        if self.crop_frames:
            x = fit_length(x, lengths, self.crop_frames, random=self.training)
            seen = lengths.clamp(max=self.crop_frames)
            lengths = torch.full_like(lengths, self.crop_frames)
        maps = self._convolve(x, lengths, seen).permute(0, 3, 1, 2).flatten(2)  # (B, T', C·F')
        if self.one_step:
            maps = maps.flatten(1)[:, None]
        steps = torch.ones_like(lengths) if self.one_step else _steps(lengths)
        return self.recurrence(maps, steps), steps

    def _convolve(self, x: Tensor, lengths: Tensor, seen: Tensor) -> Tensor:
        """The convolutions, with what lies behind a clip's end kept at zero in between.

        Args:
            x: (B, T, F) image.
            lengths: (B,) frames, with the silence that a crop longer than the clip ends in.
            seen: (B,) frames without it.
        """
        # Three poolings need five frames; a shorter clip is followed by silence.
        x = nn.functional.pad(x, (0, 0, 0, max(0, 5 - x.shape[1])))
        maps = draw(x, seen, colours=self.colours)
        layers = self.convolutions.layers
        frames = lengths
        for start in range(0, len(layers), 3):
            convolution = layers[start]
            assert isinstance(convolution, nn.Conv2d)
            maps = torch.relu(convolution(maps))
            # An even kernel yields one frame more than it got.
            frames = frames + (1 if start < 6 else 0)
            maps = nn.functional.max_pool2d(_cut(maps, frames), 2)
            # An odd frame at a clip's end is dropped, as where the clip is alone.
            frames = (frames // 2).clamp(min=1)
            maps = _cut(maps, frames)
        return maps


def _cut(maps: Tensor, frames: Tensor) -> Tensor:
    """(B, C, F, T) maps with zeros behind each clip's end."""
    return maps * (~frame_mask(frames, maps.shape[3])).to(maps.dtype)[:, None, None]


def _steps(lengths: Tensor) -> Tensor:
    """Time steps that three poolings leave of `lengths` frames."""
    return (((lengths + 1) // 2 + 1) // 2 // 2).clamp(min=1)


_TRAINING = {"epochs": 50, "learning_rate": 3e-4, "weight_decay": 0.01, "dropout": 0.2}


@register(
    "spectrogram_cnn_rnn",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default={"crop_seconds": 3.0, "num_bins": 200, "one_step": False},
    training=_TRAINING,
    convolutional=True,
    paper="Singh & Fang 2020",
)
class SpectrogramCnnRnn(_SpectrogramRecurrent):
    """S1's CNN+RNN; see the base class, which holds for both."""

    cell, cell_dropout = "rnn", 0.1


@register(
    "spectrogram_cnn_lstm",
    modality="audio",
    inputs=("audio",),
    cost=lambda settings, shape: _cost({**settings, "cell": "lstm"}, shape),
    default={"crop_seconds": 3.0, "num_bins": 200, "one_step": False},
    training={**_TRAINING, "epochs": 20, "dropout": 0.5},
    convolutional=True,
    paper="Singh & Fang 2020",
)
class SpectrogramCnnLstm(_SpectrogramRecurrent):
    """S1's CNN+LSTM; see the base class, which holds for both."""

    cell, cell_dropout = "lstm", 0.3
