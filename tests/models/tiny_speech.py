"""Speech transformers small enough for tests, with weights that all matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from models import ClipShape
from models.audio.speech_transformer import SpeechTransformer, complete_config
from models.base import Encoder
from models.build import build_encoder
from tests.small import SPEECH

SHAPE = ClipShape(num_classes=3, sample_rate_hz=16_000, seconds=1.0)
NAMES = ("wav2vec2", "hubert", "wavlm")


def shake(module: nn.Module, seed: int = 0) -> None:
    """Gives every parameter a value that matters, those at 0 and 1 too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def noise(*samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(B, L, 1), zero behind each clip's end, and lengths."""
    x = torch.randn(len(samples), max(samples), 1, generator=torch.Generator().manual_seed(seed))
    for clip, length in enumerate(samples):
        x[clip, length:] = 0
    return x, torch.tensor(samples)


def theirs(config: Mapping[str, Any], *, wavlm: bool, seed: int = 0) -> nn.Module:
    """torchaudio's network, with a recogniser's last layer."""
    build = torchaudio.models.wavlm_model if wavlm else torchaudio.models.wav2vec2_model
    torch.manual_seed(seed)
    network: nn.Module = build(**complete_config(config, wavlm=wavlm), aux_num_out=5)
    shake(network, seed)
    return network.eval()


def ours(config: Mapping[str, Any], *, wavlm: bool, frame_step: int = 1) -> SpeechTransformer:
    return SpeechTransformer(
        complete_config(config, wavlm=wavlm), wavlm=wavlm, frame_step=frame_step
    ).eval()


def build(
    name: str = "wav2vec2", *, settings: Mapping[str, Any] | None = None, **further: Any
) -> Any:
    encoder: Encoder = build_encoder(
        name, {"config": SPEECH, "units": 8, **(settings or {})}, SHAPE, **further
    )
    return encoder.eval()
