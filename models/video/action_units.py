"""Linear or MLP head over clip-level features such as the mean facial action units."""

from __future__ import annotations

from torch import Tensor, nn

from models.base import Encoder
from models.frontends.frames import Features
from models.layers import Standardise
from models.registry import ClipShape, register


@register(
    "action_units",
    modality="video",
    inputs=("features",),
    cost=lambda settings, shape: float(
        shape.num_features * max(int(settings.get("hidden_units", 80)), shape.num_classes)
    ),
    default={"hidden_units": 256},
    training={
        "epochs": 60,
        "learning_rate": 3e-3,
        "weight_decay": 0.3,
        "dropout": 0.5,
        "mixup": 0.4,
    },
    paper="Luna-Jiménez et al. 2022",
)
class ActionUnits(Encoder):
    """MLP(80) on mean action units (Luna-Jiménez et al., 2022, Applied Sciences 12(1):327).

    Differs from the paper: features are standardised by the training clips; AdamW. With
    `hidden_units` 0 it is the paper's logistic regression, trained by gradient descent.

    Args:
        shape: The corpus's clips.
        hidden_units: D; 0 for a linear classifier.
    """

    kind = "features"
    counts_statistics = True

    def __init__(self, *, shape: ClipShape, hidden_units: int = 80) -> None:
        super().__init__()
        self.frontend = Features()
        self.scale = Standardise(shape.num_features)
        self.hidden: nn.Module = nn.Identity()
        self.embedding_dim = shape.num_features
        if hidden_units:
            self.hidden = nn.Sequential(nn.Linear(shape.num_features, hidden_units), nn.ReLU())
            self.embedding_dim = hidden_units

    def fit_statistics(self, x: Tensor, lengths: Tensor) -> None:
        """Mean and deviation of each feature over the training clips."""
        self.scale.fit(x)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, F) → (B, D)."""
        vector: Tensor = self.hidden(self.scale(x))
        return vector
