"""Augmentation of one batch, after its front ends."""

from __future__ import annotations

from torch import Tensor

from models import Expert
from models.augmentation import colour_jitter, spatial_crop, spec_augment, time_crop
from models.pretrained import FrozenBackbone
from search.trial_config import TrialConfig


def augment(inputs: dict[str, Tensor], expert: Expert, plan: TrialConfig) -> None:
    """Changes spectrograms and frames as the plan says; what a frozen backbone made stays."""
    settings = plan.training
    for kind in expert.kinds:
        frontend = expert.encoder(kind).frontend
        x, lengths = inputs[kind], inputs[f"{kind}_lengths"]
        if rate := frontend.frames_per_second:
            # A part of a clip would have other steps than its trace.
            seconds = 0.0 if expert.answers == "traces" else plan.crop_seconds(kind)
            if seconds:
                x, lengths = time_crop(x, lengths, round(seconds * rate))
            if frontend.has_bands and (share := settings.spec_augment):
                x = spec_augment(x, lengths, time_share=share, band_share=share)
        elif kind == "video" and x.ndim == 5 and not isinstance(frontend, FrozenBackbone):
            if settings.spatial_crop:
                x = spatial_crop(x, settings.spatial_crop)
            if settings.colour_jitter:
                x = colour_jitter(x, settings.colour_jitter)
        inputs[kind], inputs[f"{kind}_lengths"] = x, lengths
