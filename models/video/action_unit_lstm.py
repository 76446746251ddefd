"""Recurrent network over features of every frame, such as facial action units."""

from __future__ import annotations

from torch import Tensor

from models.base import Encoder
from models.frontends.frames import Features
from models.frontends.masks import frame_mask
from models.layers import Recurrence, Standardise, TanhAttention
from models.registry import ClipShape, Settings, register


def _cost(settings: Settings, shape: ClipShape) -> float:
    units = int(settings.get("units", 50))
    first = 8 * units * (shape.num_features + units)
    second = 8 * units * (2 * units + units)
    attention = 2 * units * (2 * units + 1)
    # Four biases' worth a step for what lies outside the products.
    return float(max(shape.feature_steps, 1) * (first + second + attention + 16 * units))


@register(
    "action_unit_lstm",
    modality="video",
    inputs=("feature_sequence",),
    cost=_cost,
    default={"units": 50, "recurrent_dropout": 0.3},
    training={
        "epochs": 60,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "dropout": 0.3,
        "batch_size": 64,
    },
    paper="Luna-Jiménez et al. 2022",
)
class ActionUnitLstm(Encoder):
    """Bi-LSTM and attention over frames' action units (Luna-Jiménez et al., 2022, Applied Sciences 12(1):327).

    Two bidirectional layers of 50, then additive attention of two layers with a tanh each.
    Differs from the paper: features are standardised by the training clips' frames; AdamW.

    Args:
        shape: The corpus's clips.
        units: Of the LSTM, a direction; the paper also has 150, 200 and 300.
        recurrent_dropout: Between the LSTM's layers, and behind the attention's.
    """

    kind = "feature_sequence"
    counts_statistics = True

    def __init__(
        self, *, shape: ClipShape, units: int = 50, recurrent_dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.frontend = Features()
        self.scale = Standardise(shape.num_features)
        self.recurrence = Recurrence("lstm", shape.num_features, units, 2, recurrent_dropout)
        self.embedding_dim = self.recurrence.output_dim
        self.pool = TanhAttention(self.embedding_dim, recurrent_dropout)

    def fit_statistics(self, x: Tensor, lengths: Tensor) -> None:
        """Mean and deviation of each feature over the training clips' own frames."""
        self.scale.fit(x[~frame_mask(lengths, x.shape[1])])

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, F) → (B, D)."""
        vector: Tensor = self.pool(*self.steps(x, lengths))
        return vector

    def steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, F) → (B, S, D), (B,)."""
        return self.recurrence(self.scale(x), lengths), lengths
