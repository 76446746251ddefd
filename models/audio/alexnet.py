"""AlexNet on a picture of a clip's log-mel spectrogram."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.base import Backbone, BackboneEncoder
from models.frontends.colour_maps import colour_map, picture
from models.frontends.spectral import LogMel
from models.registry import Checkpoint, ClipShape, Settings, register

_SIZE = 224
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's (torchvision)


class AlexNetBackbone(Backbone):
    """AlexNet as torchvision has it, without its last layer: (B, T, F) log-mel → (B, 1, D).

    The picture is 224×224: every clip is stretched to it from its own first to its own last
    frame. Brightness is scaled as torchvision's weights expect.

    Args:
        num_mels: F.
        colours: A colour map instead of three equal channels.
        width: Channels of the first convolution; 64 in torchvision's.
    """

    def __init__(self, *, num_mels: int, colours: bool, width: int) -> None:
        super().__init__()
        self.colours, self.dim = colours, 64 * width
        self.variant = "colours" if colours else ""
        rows = functional.interpolate(torch.eye(num_mels)[None], _SIZE, mode="linear")[0]
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)
        self.rows: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        # The order and numbers are torchvision's, for its checkpoint's keys.
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(width, 3 * width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(3 * width, 6 * width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(4 * width * 6 * 6, self.dim),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(self.dim, self.dim),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) → (B, 1, D), (B,) ones."""
        return self.describe(self.draw(x, lengths))[:, None], torch.ones_like(lengths)

    def draw(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, F), (B,) → (B, 3, 224, 224), low frequencies on top, scaled for `describe`."""
        brightness = picture(_stretch(x, lengths, _SIZE) @ self.rows).transpose(1, 2)
        grey = brightness[:, None].expand(-1, 3, -1, -1)
        image = colour_map(brightness) if self.colours else grey
        return (image - self.mean) / self.deviation

    def describe(self, image: Tensor) -> Tensor:
        """(B, 3, 224, 224) → (B, D)."""
        # Of such a picture 6×6 is left, which torchvision's adaptive pooling passes on.
        y: Tensor = self.classifier(self.features(image).flatten(1))
        return y

    def stages(self) -> list[nn.Module]:
        """Five convolutions and two dense layers."""
        layers = [*self.features, *self.classifier]
        return [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The keys are torchvision's, without the layer of ImageNet's classes."""
        return {key: x for key, x in state.items() if not key.startswith("classifier.6.")}


def _stretch(x: Tensor, lengths: Tensor, count: int) -> Tensor:
    """(B, T, F) → (B, count, F): each clip's own frames, linearly interpolated along time."""
    last = (lengths - 1).to(x.dtype)[:, None]
    centre = (torch.arange(count, device=x.device, dtype=x.dtype) + 0.5)[None]
    position = (centre * lengths[:, None].to(x.dtype) / count - 0.5).clamp(min=0.0)
    position = torch.minimum(position, last)
    before = position.floor()
    share = (position - before)[:, :, None]
    after = torch.minimum(before + 1.0, last)

    def frames(at: Tensor) -> Tensor:
        return x.gather(1, at.to(torch.int64)[:, :, None].expand(-1, -1, x.shape[2]))

    return frames(before) * (1.0 - share) + frames(after) * share


def _cost(settings: Settings, shape: ClipShape) -> float:
    width = int(settings.get("width", 64))
    pair = width * width
    convolutions = (
        55**2 * 3 * 121 * width + 27**2 * 25 * 3 * pair + 13**2 * 9 * (18 + 24 + 16) * pair
    )
    dense = 4 * 36 * 64 * pair + 64 * 64 * pair
    return float(convolutions + dense + 64 * width * int(settings.get("hidden_units", 0)))


@register(
    "alexnet",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default={"width": 64, "num_mels": 128, "colours": False, "trim_db": 45.0, "hidden_units": 0},
    training={
        "epochs": 20,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "dropout": 0.5,
        "label_smoothing": 0.1,
        "spec_augment": 0.1,
    },
    convolutional=True,
    paper="Krizhevsky et al. 2012",
    checkpoints=(
        Checkpoint(
            files=("alexnet-owt-7be5be79.pth",),
            source="torchvision, alexnet on ImageNet",
            settings={"width": 64},
        ),
    ),
    from_scratch=False,
)
class AlexNetEncoder(BackboneEncoder):
    """AlexNet on pictures of spectrograms (Krizhevsky et al., 2012, Advances in NIPS 25).

    As Luna-Jiménez et al. (2021, Sensors 21(22):7665) fine-tune it. Differs from the original:
    torchvision's single-column network (Krizhevsky, 2014, arXiv:1404.5997), without local
    response normalisation. The picture is a log-mel over ±3 deviations around the clip's mean.

    Args:
        shape: The corpus's clips.
        width: Channels of the first convolution; 64 in torchvision's, and so in its weights.
        num_mels: Mel bands, which are stretched to the picture's 224 rows.
        colours: A fixed colour map instead of three equal channels.
        trim_db: Of the log-mel: silence at both ends is cut off.
        hidden_units: Of a layer behind AlexNet's 4096 values; 0 for none.
    """

    kind = "audio"

    def __init__(
        self,
        *,
        shape: ClipShape,
        width: int = 64,
        num_mels: int = 128,
        colours: bool = False,
        trim_db: float = 0.0,
        hidden_units: int = 0,
    ) -> None:
        super().__init__()
        self.frontend = LogMel(
            sample_rate_hz=shape.sample_rate_hz, num_mels=num_mels, trim_db=trim_db
        )
        backbone = AlexNetBackbone(num_mels=num_mels, colours=colours, width=width)
        self.backbone = backbone
        self.hidden = nn.Linear(backbone.dim, hidden_units) if hidden_units else None
        self.dropout = nn.Dropout(0.5)
        self.embedding_dim = hidden_units or backbone.dim

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, 1, D) → (B, D')."""
        vector = x[:, 0]
        # Without a hidden layer, the classifier's own dropout is the one in front of it.
        return vector if self.hidden is None else torch.relu(self.hidden(self.dropout(vector)))
