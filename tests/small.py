"""The large networks with few and narrow layers: the same code in a fraction of the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models import architectures, get_architecture

# The pretrained transformers' layers in small: 25 ms a frame, every 20 ms.
SPEECH: dict[str, Any] = {
    "extractor_conv_layer_config": [[8, 10, 5], [8, 8, 8], [12, 10, 8]],
    "encoder_embed_dim": 16,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 24,
}
SPEECH_LARGE: dict[str, Any] = {
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
        name: {"frames": 4, "size": 16, "stages": 1}
        for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t")
    },
    "alexnet": {"width": 2, "num_mels": 32},
    "cnn14": {"width": 2},
    "residual_lstm": {"units": 8},
    "waveform_cnn_lstm": {"recurrent_units": 8, "further_filters": 20},
    "cnn3d": {"frames": 9, "height": 45, "width": 45},
}
# Other layers behind the same name. A contract asks for every choice that a constructor has.
FURTHER: list[tuple[str, dict[str, Any]]] = [
    ("functionals", {"hidden_units": 8}),
    ("logmel_resnet", {"recurrent_units": 0, "normalisation": "bin"}),
    ("logmel_resnet", {"noise_removal": 0.8, "normalisation": "none"}),
    ("wav2vec2", {"config": SPEECH_LARGE, "normalise_waveform": True, "frame_step": 1}),
    ("wavlm", {"config": SPEECH_LARGE, "normalise_waveform": True, "frame_step": 3}),
    ("spectrogram_cnn", {**SMALL["spectrogram_cnn"], "colours": True}),
    ("spectrogram_cnn_rnn", {**SMALL["spectrogram_cnn_rnn"], "crop_seconds": 0.0}),
    ("spectrogram_cnn_lstm", {**SMALL["spectrogram_cnn_lstm"], "crop_seconds": 0.0}),
    ("spectrogram_cnn_rnn", {**SMALL["spectrogram_cnn_rnn"], "one_step": True}),
    ("spectrogram_cnn_rnn", {"crop_seconds": 0.0, "num_bins": 24, "colours": True}),
    ("action_units", {"hidden_units": 0}),
    ("cnn14", {"width": 2, "rate_hz": 32000, "hidden_units": 8}),
    ("alexnet", {"width": 2, "num_mels": 32, "colours": True, "hidden_units": 8}),
    (
        "residual_lstm",
        {"units": 4, "layers": 3, "stack": 3, "heads": 2, "trim_db": 0.0, "normalisation": "bin"},
    ),
    ("residual_lstm", {**SMALL["residual_lstm"], "normalisation": "none"}),
    ("waveform_cnn_lstm", {"recurrent_units": 0, "further_filters": 20}),
    ("waveform_cnn_lstm", {"variant": "paper", "further_filters": 10, "recurrent_units": 4}),
    ("frame_cnn", {"grey": False}),
    (
        "resnet_lstm",
        {**SMALL["resnet_lstm"], "recurrent_units": 0, "pooling": "mean", "scaling": "clip"},
    ),
    ("resnet_lstm", {**SMALL["resnet_lstm"], "depth": 50, "scaling": "imagenet"}),
    ("resnet_lstm", {**SMALL["resnet_lstm"], "bidirectional": True, "scaling": "kinetics"}),
    (
        "spatial_transformer",
        {**SMALL["spatial_transformer"], "guide": "none", "scaling": "kinetics"},
    ),
    (
        "spatial_transformer",
        {**SMALL["spatial_transformer"], "guide": "maps", "scaling": "imagenet"},
    ),
    (
        "spatial_transformer",
        {**SMALL["spatial_transformer"], "frame_values": 810, "scaling": "unit"},
    ),
    ("r3d_18", {"frames": 4, "size": 16, "stages": 2, "pooling": "mean_max", "scaling": "clip"}),
    ("s3d", {"frames": 8, "size": 17, "stages": 4, "scaling": "unit"}),
    ("swin3d_t", {"frames": 20, "size": 16, "stages": 2}),
]
PAIRS = [
    ("functionals", "action_units"),
    ("logmel_resnet", "frame_cnn"),
    ("spectrogram_cnn_rnn", "cnn3d"),
    ("spectrogram_cnn_lstm", "action_units"),
    ("residual_lstm", "action_unit_lstm"),
]
"""Parts of early fusion: without steps, with steps, of each kind of input."""


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


def every_network(*, small: bool = True) -> list[tuple[str, dict[str, Any]]]:
    """Every registered architecture once; early fusion with several pairs of parts."""
    listed: list[tuple[str, dict[str, Any]]] = []
    for entry in architectures():
        if entry.modality == "early":
            pairs = PAIRS if entry.name == "concatenation" else PAIRS[:2]
            listed += [(entry.name, early(*pair, small=small)) for pair in pairs]
        else:
            listed.append((entry.name, SMALL.get(entry.name, {}) if small else {}))
    return listed


def case_name(name: str, settings: Mapping[str, Any]) -> str:
    """A network in a test's name: what differs from the small one, or the parts of early fusion."""
    usual, parts = SMALL.get(name, {}), [name]
    for key, value in settings.items():
        if key in ("audio", "video"):
            parts.append(value["architecture"])
        elif isinstance(value, dict):
            parts += [key] if usual.get(key) != value else []
        elif usual.get(key, "") != value:
            parts.append(f"{key}={value}")
    return "-".join(parts)


CASES = [*every_network(), *FURTHER]
