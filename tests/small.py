"""The large networks with few and narrow layers: the same code in a fraction of the time."""

from __future__ import annotations

from typing import Any

from models import get_architecture

# The pretrained transformers' layers in small: 25 ms a frame, every 20 ms.
SPEECH: dict[str, Any] = {
    "extractor_conv_layer_config": [[8, 10, 5], [8, 8, 8], [8, 10, 8]],
    "encoder_embed_dim": 16,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 24,
}
SPEECH_LARGE = {
    **SPEECH,
    "extractor_mode": "layer_norm",
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
}
# S1's networks are large; a small picture has the same layers.
SMALL: dict[str, dict[str, Any]] = {
    "wav2vec2": {"config": SPEECH, "units": 8},
    "hubert": {"config": SPEECH, "units": 8, "pooling": "attention"},
    "wavlm": {"config": SPEECH, "units": 8},
    "spectrogram_cnn": {"crop_seconds": 0.6, "num_bins": 24},
    "spectrogram_cnn_rnn": {"crop_seconds": 0.6, "num_bins": 24},
    "spectrogram_cnn_lstm": {"crop_seconds": 0.6, "num_bins": 24},
    "resnet_lstm": {"frames": 4, "size": 32, "stages": 1, "recurrent_units": 8},
    "spatial_transformer": {"frames": 4, "units": 8},
    **{
        name: {"frames": 4, "size": 32, "stages": 1}
        for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t")
    },
    "alexnet": {"width": 2, "num_mels": 32},
    "cnn14": {"width": 2},
    "residual_lstm": {"units": 8},
    "waveform_cnn_lstm": {"recurrent_units": 8},
}


def early(audio: str, video: str, *, small: bool = True) -> dict[str, Any]:
    """Early fusion's settings for a pair of parts."""
    parts = {"audio": audio, "video": video}
    return {
        modality: {"architecture": name, "settings": SMALL.get(name, {}) if small else {}}
        for modality, name in parts.items()
    }


def small_settings(name: str) -> dict[str, Any]:
    """Of any architecture; early fusion of a pair that has steps over time."""
    if get_architecture(name).modality == "early":
        return early("spectrogram_cnn_rnn", "frame_cnn")
    return SMALL.get(name, {})
