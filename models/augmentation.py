"""Augmentations of training batches: SpecAugment, speed perturbation, time crop, mixup."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.layers import fit_length


def spec_augment(
    x: Tensor, lengths: Tensor, *, time_share: float, band_share: float, masks: int = 2
) -> Tensor:
    """Zeroes stretches of time and of bands (Park et al., 2019, arXiv:1904.08779).

    Differs from the paper: no time warping; zero is a scaled spectrogram's mean.

    Args:
        x: (B, T, F) spectrograms.
        lengths: (B,) frames; time masks lie within a clip.
        time_share: Longest time mask, as a share of the clip.
        band_share: Widest band mask, as a share of F.
        masks: How many of each.
    """
    batch, frames, bands = x.shape
    time = torch.arange(frames, device=x.device)[None]
    band = torch.arange(bands, device=x.device)[None]
    keep_time = torch.ones(batch, frames, dtype=torch.bool, device=x.device)
    keep_band = torch.ones(batch, bands, dtype=torch.bool, device=x.device)
    for _ in range(masks):
        start, width = _stretch(lengths.to(x.dtype), time_share)
        keep_time &= (time < start) | (time >= start + width)
        start, width = _stretch(torch.full_like(lengths, bands).to(x.dtype), band_share)
        keep_band &= (band < start) | (band >= start + width)
    return x * keep_time[:, :, None] * keep_band[:, None, :]


def _stretch(sizes: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Draws a whole start and width within each of (B,) sizes: (B, 1), (B, 1)."""
    sizes = sizes[:, None]
    width = (torch.rand_like(sizes) * ((share * sizes).floor() + 1)).floor()
    return (torch.rand_like(sizes) * (sizes - width + 1)).floor(), width


def speed_perturb(x: Tensor, lengths: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Plays waveforms faster (factor > 1) or slower: (B, L), (B,) → (B, L'), (B,).

    Pitch and formants move along (Ko et al., 2015, Interspeech). Differs from it: linear
    interpolation, one factor a batch.
    """
    count = max(1, int(x.shape[1] / factor))
    faster = functional.interpolate(x[:, None], size=count, mode="linear")[:, 0]
    return faster, (lengths / factor).to(torch.int64).clamp(1, count)


def time_crop(x: Tensor, lengths: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cuts clips longer than `count` frames at a random place: (B, T, F) → (B, ≤count, F)."""
    if x.shape[1] <= count:
        return x, lengths
    return fit_length(x, lengths, count, random=True), lengths.clamp(max=count)


def mixup(
    inputs: dict[str, Tensor], targets: Tensor, alpha: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Convex combinations of pairs of clips (Zhang et al., 2018, arXiv:1710.09412).

    Args:
        inputs: What the front ends returned; a mixed clip is as long as the longer one.
        targets: (B, K) class probabilities.
        alpha: Of Beta(α, α); one share a batch, as in the paper.

    Returns:
        Inputs and targets of the same shapes.
    """
    share = float(torch.distributions.Beta(alpha, alpha, validate_args=False).sample())
    share = max(share, 1.0 - share)
    partner = torch.randperm(len(targets), device=targets.device)
    mixed = {
        name: torch.maximum(x, x[partner])
        if name.endswith(("_lengths", "_present"))
        else x.mul(share).add_(x[partner], alpha=1.0 - share)
        for name, x in inputs.items()
    }
    return mixed, share * targets + (1.0 - share) * targets[partner]
