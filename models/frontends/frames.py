"""Video frames and feature vectors: resizing, normalisation, grey levels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.base import FrontEnd
from models.registry import ModelError

_STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
}
"""Mean and deviation of the colours (torchvision's)."""


class Frames(FrontEnd):
    """Video frames, evenly spread and scaled: (B, V, H, W, 3) uint8 → (B, V', 3, H', W').

    A fourth channel of the clips, a saliency map, is dropped unless it is asked for.

    Args:
        count: V', frames taken.
        height: H' in pixels.
        width: W' in pixels.
        scaling: `clip`: 0…1, minus one mean and over one deviation a clip (looks and light
            differ more between speakers than between emotions); `unit`: 0…1; `imagenet` and
            `kinetics`: 0…1, by the statistics that networks pretrained there expect.
        maps: Keep the saliency map, 0…1, as a fourth channel.
    """

    has_mean = False
    worth_caching = True

    def __init__(
        self, *, count: int, height: int, width: int, scaling: str = "clip", maps: bool = False
    ) -> None:
        super().__init__()
        if scaling not in ("clip", "unit", *_STATISTICS):
            known = ", ".join(("clip", "unit", *_STATISTICS))
            raise ModelError(f"Unknown scaling '{scaling}'. Known: {known}.")
        self.count, self.size, self.scaling, self.maps = count, (height, width), scaling, maps
        self.name = f"frames {count} {height} {width}"
        if scaling != "clip" or maps:
            self.name += f" {scaling} {maps}"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; the returned lengths are all V'."""
        steps = (torch.arange(self.count, device=x.device) + 0.5) / self.count
        rows = (steps[None] * lengths[:, None].to(steps.dtype)).to(torch.int64)
        rows = torch.minimum(rows, (lengths - 1).clamp(min=0)[:, None])
        taken = x[torch.arange(x.shape[0], device=x.device)[:, None], rows]
        taken = taken[..., : 4 if self.maps else 3]
        frames = taken.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        if frames.shape[-2:] != self.size:
            frames = self._resize(frames)
        clips = frames.unflatten(0, (-1, self.count))
        scaled = self._scale(clips[:, :, :3])
        if self.maps:
            scaled = torch.cat([scaled, clips[:, :, 3:]], dim=2)
        return scaled, torch.full_like(lengths, self.count)

    def _scale(self, clips: Tensor) -> Tensor:
        """(B, V', 3, H', W') in 0…1, scaled as asked."""
        if self.scaling == "unit":
            return clips
        if self.scaling == "clip":
            # onnxruntime adds 10⁵ floats one by one: of an even picture, which has no deviation,
            # the mean would be off by as much as what is then divided by 1e-3 can show.
            exact = clips.double() if torch.onnx.is_in_onnx_export() else clips
            mean = exact.mean(dim=(1, 2, 3, 4), keepdim=True).to(clips.dtype)
            deviation = exact.std(dim=(1, 2, 3, 4), keepdim=True).to(clips.dtype)
            return (clips - mean) / (deviation + 1e-3)
        known = torch.tensor(_STATISTICS[self.scaling], device=clips.device)[:, :, None, None]
        return (clips - known[0]) / known[1]

    def _resize(self, frames: Tensor) -> Tensor:
        """(n, 3, H, W) → (n, 3, H', W')."""
        if not torch.onnx.is_in_onnx_export():
            return functional.interpolate(frames, self.size, mode="bilinear", antialias=True)
        # The same as two products, for want of antialiasing in the exporter.
        (height, width), (rows, columns) = frames.shape[-2:], self.size
        across = frames @ resize_matrix(int(width), columns, antialias=True)
        down = across.transpose(2, 3) @ resize_matrix(int(height), rows, antialias=True)
        return down.transpose(2, 3)


class Features(FrontEnd):
    """Features as they are: (B, F) → (B, F), or of every frame, (B, S, F) → (B, S, F)."""

    name = "features"


def resize_matrix(before: int, after: int, *, antialias: bool) -> Tensor:
    """(before, after) matrix that resizes a row of values linearly."""
    unit = torch.eye(before)[None, :, None, :]
    return functional.interpolate(unit, (1, after), mode="bilinear", antialias=antialias)[0, :, 0]
