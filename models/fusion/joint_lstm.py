"""Early fusion over time: both modalities' streams, side by side, into one LSTM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import Encoder, Fusion, Part
from models.frontends.masks import frame_mask
from models.fusion.parts import SMALLEST, cost_of_parts, steps_of
from models.layers import AttentionPooling, Recurrence
from models.registry import ClipShape, Settings, register


def _cost(settings: Settings, shape: ClipShape) -> float:
    units, steps = int(settings.get("units", 256)), shape.seconds * 25
    widest = 1280 + 2048  # the paper's; other parts hand over less
    return cost_of_parts(settings, shape) + steps * 4 * units * (widest + 3 * units)


@register(
    "joint_lstm",
    modality="early",
    inputs=(),
    cost=_cost,
    default={"units": 128},
    training={"learning_rate": 1e-3, "weight_decay": 0.05, "dropout": 0.3},
    paper="Tzirakis et al. 2017",
)
class JointLstm(Fusion):
    """Both streams → 2-layer LSTM (Tzirakis et al., 2017, arXiv:1704.08619).

    With `waveform_cnn_lstm` and `resnet_lstm` without recurrences of their own as parts, and
    `alone_share` in training, it is the paper's: each modality alone first, then both jointly,
    initialised from them. Differs from the paper: torch's LSTM has no peepholes; for a label of
    the whole clip its outputs are pooled by attention; streams of different rates are laid
    side by side on the finer one's clock. A missing modality's stream is zeros.

    Args:
        encoders: The parts; one without a time axis is held for the whole clip.
        units: Of each layer; 256 in the paper.
    """

    over_time = True

    def __init__(self, encoders: Sequence[Encoder], units: int = 256) -> None:
        super().__init__()
        width = sum(encoder.steps_dim for encoder in encoders)
        self.scales = nn.ModuleList(
            nn.LayerNorm(encoder.steps_dim, eps=SMALLEST) for encoder in encoders
        )
        self.recurrence = Recurrence("lstm", width, units, 2, bidirectional=False)
        self.pool = AttentionPooling(units)
        self.joined_dim = units

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Steps (B, S, E) each → (B, D')."""
        steps, lengths = self.streams(parts)
        pooled: Tensor = self.pool(self.recurrence(steps, lengths), lengths)
        return pooled

    def steps(self, parts: Sequence[Part]) -> list[tuple[Tensor, Tensor]]:
        """The LSTM's outputs, as the paper reads them."""
        steps, lengths = self.streams(parts)
        return [(self.recurrence(steps, lengths), lengths)]

    def streams(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """Side by side: (B, S, ΣE) on the finer clock of each clip, and (B,) steps."""
        scaled = [
            scale(x).masked_fill(~part.present[:, None, None], 0.0)
            for scale, x, part in zip(self.scales, steps_of(parts), parts, strict=True)
        ]
        lengths = torch.maximum(parts[0].lengths, parts[1].lengths)
        count = max(x.shape[1] for x in scaled)
        if torch.onnx.is_in_onnx_export():  # the same, without a number that the graph would keep
            count = sum(x.shape[1] for x in scaled)
        step = torch.arange(count, device=lengths.device)[None]
        aligned = []
        for x, part in zip(scaled, parts, strict=True):
            position = torch.div(
                step * part.lengths[:, None], lengths[:, None], rounding_mode="floor"
            )
            position = torch.minimum(position, (part.lengths - 1)[:, None])
            aligned.append(x.gather(1, position[:, :, None].expand(-1, -1, x.shape[2])))
        streams = torch.cat(aligned, dim=2)
        return streams.masked_fill(frame_mask(lengths, count)[:, :, None], 0.0), lengths
