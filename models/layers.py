"""Layers that several architectures share; all of them respect a clip's length."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.frontends.masks import frame_mask


class AttentionPooling(nn.Module):
    """Weighted mean over time, one learned query: (B, T, D) → (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Padding gets no weight."""
        scores = self.score(x)[:, :, 0].masked_fill(frame_mask(lengths, x.shape[1]), float("-inf"))
        pooled: Tensor = (scores.softmax(dim=1)[:, :, None] * x).sum(dim=1)
        return pooled


class TanhAttention(nn.Module):
    """Additive attention of two layers, each with a tanh: (B, T, D) → (B, D).

    As in Baziotis et al. (2018, arXiv:1804.06658). The tanh around the score bounds how
    much more one step can weigh than another (e² times).

    Args:
        dim: D.
        dropout: Behind each layer.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Padding gets no weight."""
        hidden = self.dropout(torch.tanh(self.hidden(x)))
        scores = self.dropout(torch.tanh(self.score(hidden)))[:, :, 0]
        scores = scores.masked_fill(frame_mask(lengths, x.shape[1]), float("-inf"))
        pooled: Tensor = (scores.softmax(dim=1)[:, :, None] * x).sum(dim=1)
        return pooled


class Recurrence(nn.Module):
    """A recurrent network over a clip's own frames: (B, T, F) → (B, T, D), zero behind its end.

    D is `output_dim`: hidden, or twice as many in both directions.

    Args:
        kind: rnn, gru or lstm.
        input_dim: F.
        hidden: Units a direction.
        layers: Stacked layers.
        dropout: Between layers.
        bidirectional: Or forward in time only.
    """

    def __init__(
        self,
        kind: str,
        input_dim: int,
        hidden: int,
        layers: int,
        dropout: float = 0.0,
        *,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        cells = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        self.cell = cells[kind](
            input_dim,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.output_dim = 2 * hidden if bidirectional else hidden

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Packed, so that the backward direction starts at each clip's own end.

        In float32 always: bfloat16 recurrences are slower on a CPU and lose long memories.
        """
        with torch.autocast(x.device.type, enabled=False):
            packed = nn.utils.rnn.pack_padded_sequence(
                x.float(), lengths.cpu().clamp(min=1), batch_first=True, enforce_sorted=False
            )
            output, _ = nn.utils.rnn.pad_packed_sequence(
                self.cell(packed)[0], batch_first=True, total_length=x.shape[1]
            )
        return output


class Standardise(nn.Module):
    """(x - mean) / deviation per feature, counted on training clips: (B, F) → (B, F)."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.mean: Tensor
        self.deviation: Tensor

    def fit(self, x: Tensor) -> None:
        """Counts over (N, F) training clips; a constant feature stays as it is."""
        self.mean.copy_(x.mean(dim=0))
        deviation = x.std(dim=0, correction=0)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        """Clipped at ±8 deviations, so that one wild feature cannot decide."""
        return ((x - self.mean) / self.deviation).clamp(-8.0, 8.0)


def mean_over_time(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean of each clip's own steps: (B, S, E), (B,) → (B, E)."""
    keep = (~frame_mask(lengths, x.shape[1])).to(x.dtype)[:, :, None]
    return (x * keep).sum(dim=1) / keep.sum(dim=1)


def peak_over_time(x: Tensor, lengths: Tensor) -> Tensor:
    """Maximum of each clip's own steps: (B, S, E), (B,) → (B, E)."""
    behind = frame_mask(lengths, x.shape[1])[:, :, None]
    return x.masked_fill(behind, float("-inf")).amax(dim=1)


def fit_length(x: Tensor, lengths: Tensor, count: int, *, random: bool) -> Tensor:
    """Cuts or pads every clip to `count` frames: (B, T, F) → (B, count, F).

    Args:
        x: Zero behind each clip's end.
        lengths: (B,) frames.
        count: Frames wanted; a shorter clip is followed by zeros.
        random: Start of the cut: drawn (training) or the middle.
    """
    spare = (lengths - count).clamp(min=0)
    if random:
        drawn = torch.rand(len(lengths), device=x.device) * (spare + 1)
        start = torch.minimum(drawn.to(torch.int64), spare)
    else:
        start = torch.div(spare + 1, 2, rounding_mode="floor").minimum(spare)
    position = start[:, None] + torch.arange(count, device=x.device)[None]
    inside = position < lengths[:, None]
    position = position.clamp(max=x.shape[1] - 1)
    taken = x.gather(1, position[:, :, None].expand(-1, -1, x.shape[2]))
    return taken * inside[:, :, None].to(x.dtype)


class FramewiseConv3d(nn.Conv3d):
    """A 3D convolution that does not look across time, computed as a 2D one of every frame.

    The same numbers, and the same weight of (out, in, 1, height, width); see `flatten_convolutions`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, V, H, W) → (B, C', V, H', W')."""
        if torch.onnx.is_in_onnx_export():  # no gradient, and sizes that must stay free
            plain: Tensor = super().forward(x)
            return plain
        frames = x.transpose(1, 2).flatten(0, 1)
        padding = [int(size) for size in self.padding[1:]]
        y = functional.conv2d(frames, self.weight[:, :, 0], self.bias, self.stride[1:], padding)
        back: Tensor = y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        return back


class PixelwiseConv3d(nn.Conv3d):
    """A 3D convolution that looks across time alone, computed as a 2D one over time and pixels.

    The same numbers, and the same weight of (out, in, time, 1, 1); see `flatten_convolutions`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, V, H, W) → (B, C', V', H, W)."""
        if torch.onnx.is_in_onnx_export():
            plain: Tensor = super().forward(x)
            return plain
        padding, stride = [int(self.padding[0]), 0], [self.stride[0], 1]
        y = functional.conv2d(x.flatten(3), self.weight[..., 0], self.bias, stride, padding)
        back: Tensor = y.unflatten(3, x.shape[3:])
        return back


def flatten_convolutions(network: nn.Module) -> None:
    """Replaces a network's 3D convolutions of single frames or single pixels, weights and all.

    Torch 2.14's own leaves what was in memory in parts of the weight's gradient, in bfloat16 and
    channels-last on a processor with AMX: not numbers, or any numbers. Seen with kernels of 1×3×3
    (128 channels in, 288 out, 28×28 pixels) and of 7×1×1 (64 in and out, a step of 2).
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            kind = _flat_kind(child)
            if kind is not None:
                own = kind.__new__(kind)
                own.__dict__.update(child.__dict__)
                setattr(parent, name, own)


def _flat_kind(layer: nn.Module) -> type[nn.Conv3d] | None:
    """Return the layer that computes it in two dimensions; None for one that is no such convolution."""
    if not isinstance(layer, nn.Conv3d) or layer.padding_mode != "zeros":
        return None
    if layer.groups != 1 or layer.dilation != (1, 1, 1) or isinstance(layer.padding, str):
        return None
    steps = list(zip(layer.kernel_size, layer.stride, layer.padding, strict=True))
    if steps[0] == (1, 1, 0):
        return FramewiseConv3d
    return PixelwiseConv3d if steps[1:] == [(1, 1, 0), (1, 1, 0)] else None
