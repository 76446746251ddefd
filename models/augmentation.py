"""Augmentations of training batches: of waveforms, of spectrograms, of frames, and mixup."""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from models.frontends.masks import frame_mask
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


def add_noise(x: Tensor, lengths: Tensor, share: float) -> Tensor:
    """Adds white noise to some of the waveforms: (B, L) → (B, L).

    Args:
        x: Waveforms, zero behind each clip's end.
        lengths: (B,) samples.
        share: Of the clips that get noise, 10 to 30 dB below their own level.
    """
    own = (~frame_mask(lengths, x.shape[1])).to(x.dtype)
    level = (x.square().sum(dim=1, keepdim=True) / own.sum(dim=1, keepdim=True)).sqrt()
    drawn = torch.rand(2, len(x), 1, device=x.device)
    below_db = 10.0 + 20.0 * drawn[0]
    amount = level * 10.0 ** (-below_db / 20.0) * (drawn[1] < share)
    return x + torch.randn_like(x) * amount * own


def reverberate(x: Tensor, lengths: Tensor, sample_rate_hz: int, share: float) -> Tensor:
    """Puts some of the waveforms into a room: (B, L) → (B, L), at their own level and length.

    The room is exponentially decaying noise behind the direct sound (Moorer, 1979), drawn for
    each batch: it decays by 60 dB in 0.1 to 0.6 s.
    """
    decay_seconds = 0.1 + 0.5 * float(torch.rand(()))
    count = max(2, int(decay_seconds * sample_rate_hz))
    time = torch.arange(count, device=x.device) / count
    room = torch.randn(count, device=x.device) * torch.exp(-math.log(1000.0) * time)
    room = 0.5 * room / room.norm()
    room[0] = 1.0
    size = x.shape[1] + count - 1
    wet = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(room, size), size)
    wet = wet[:, : x.shape[1]].masked_fill(frame_mask(lengths, x.shape[1]), 0.0)
    before, after = x.norm(dim=1, keepdim=True), wet.norm(dim=1, keepdim=True)
    chosen = torch.rand(len(x), 1, device=x.device) < share
    return torch.where(chosen, wet * before / (after + 1e-8), x)


def pitch_perturb(x: Tensor, lengths: Tensor, semitones: float) -> Tensor:
    """Shifts the pitch of waveforms and keeps their length: (B, L) → (B, L).

    A phase vocoder stretches them, and playing that faster or slower takes the stretch back
    (Flanagan & Golden, 1966). Formants move along; one shift a batch.
    """
    factor = 2.0 ** (semitones / 12.0)
    size, hop = 512, 128
    window = torch.hann_window(size, device=x.device)
    spectrum = torch.stft(x, size, hop, window=window, pad_mode="constant", return_complex=True)
    advance = torch.linspace(0, math.pi * hop, size // 2 + 1, device=x.device)[:, None]
    stretched = torchaudio.functional.phase_vocoder(spectrum, 1.0 / factor, advance)
    count = max(1, round(x.shape[1] * factor))
    longer = torch.istft(stretched, size, hop, window=window, length=count)
    shifted = functional.interpolate(longer[:, None], size=x.shape[1], mode="linear")[:, 0]
    masked: Tensor = shifted.masked_fill(frame_mask(lengths, x.shape[1]), 0.0)
    return masked


def spatial_crop(frames: Tensor, share: float) -> Tensor:
    """Cuts a random window out of a clip's frames and enlarges it: (B, V, C, H, W), same shape.

    Args:
        frames: One window for all frames of a clip, so that its motion stays as it was.
        share: Most that is cut off height and width, such as 0.13 for 96 of 110 pixels.
    """
    drawn = torch.rand(3, len(frames), device=frames.device)
    scale = 1.0 - share * drawn[0]
    theta = torch.zeros(len(frames), 2, 3, device=frames.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = ((2.0 * drawn[1:] - 1.0) * (1.0 - scale)).T
    flat = frames.flatten(1, 2)
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    cut: Tensor = functional.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    back: Tensor = cut.unflatten(1, (frames.shape[1], frames.shape[2]))
    return back


def colour_jitter(frames: Tensor, strength: float) -> Tensor:
    """Changes brightness, contrast and saturation of scaled frames: (B, V, C, H, W), same shape.

    Args:
        frames: One change for all frames of a clip; a fourth channel stays as it is.
        strength: Contrast and saturation move by a factor of 1 ± strength, brightness by as many
            deviations of the clip.
    """
    drawn = 2.0 * torch.rand(3, len(frames), 1, 1, 1, 1, device=frames.device) - 1.0
    colours = frames[:, :, :3]
    mean = colours.mean(dim=(1, 2, 3, 4), keepdim=True)
    deviation = colours.std(dim=(1, 2, 3, 4), keepdim=True)
    grey = colours.mean(dim=2, keepdim=True)
    changed = grey + (colours - grey) * (1.0 + strength * drawn[0])
    changed = mean + (changed - mean) * (1.0 + strength * drawn[1])
    changed = changed + strength * drawn[2] * deviation
    return torch.cat([changed, frames[:, :, 3:]], dim=2)
