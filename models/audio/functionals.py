"""Acoustic functionals with a linear or MLP head: statistics of a clip, seconds to train."""

from __future__ import annotations

from torch import Tensor, nn

from models.base import Encoder
from models.frontends.functionals import Functionals
from models.layers import Standardise
from models.registry import ClipShape, Settings, register


def _cost(settings: Settings, shape: ClipShape) -> float:
    # The functionals are computed once a corpus; what trains is the head.
    return 1105.0 * max(int(settings.get("hidden_units", 64)), shape.num_classes)


@register(
    "functionals",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default={"hidden_units": 256, "trim_db": 20.0},
    training={
        "epochs": 60,
        "learning_rate": 2e-3,
        "weight_decay": 2.0,
        "dropout": 0.6,
        "mixup": 0.4,
    },
    paper="Eyben et al. 2016",
    costly_front_end=True,
)
class FunctionalsEncoder(Encoder):
    """Statistics of mel bands, MFCC, energy, pitch, spectral shape and their deltas.

    In the manner of the ComParE and eGeMAPS functionals (Eyben et al., 2016). Differs from
    those sets: fewer contours, no jitter, shimmer or formants.

    Args:
        shape: The corpus's clips.
        hidden_units: D, one ReLU layer; 0 for a linear classifier on the functionals.
        trim_db: Silence at both ends is cut off, see `LogMel`; 0 keeps it.
    """

    kind = "audio"
    counts_statistics = True

    def __init__(self, *, shape: ClipShape, hidden_units: int = 0, trim_db: float = 0.0) -> None:
        super().__init__()
        frontend = Functionals(sample_rate_hz=shape.sample_rate_hz, trim_db=trim_db)
        self.frontend = frontend
        self.scale = Standardise(frontend.num_functionals)
        self.hidden: nn.Module = nn.Identity()
        self.embedding_dim = frontend.num_functionals
        if hidden_units:
            self.hidden = nn.Sequential(nn.Linear(self.embedding_dim, hidden_units), nn.ReLU())
            self.embedding_dim = hidden_units

    def fit_statistics(self, x: Tensor, lengths: Tensor) -> None:
        """Mean and deviation of each functional over the training clips."""
        self.scale.fit(x)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, F) functionals → (B, D)."""
        vector: Tensor = self.hidden(self.scale(x))
        return vector
