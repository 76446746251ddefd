"""Audio encoders, one architecture a file."""

from models.audio import (
    alexnet,
    cnn14,
    functionals,
    logmel_resnet,
    residual_lstm,
    self_supervised,
    spectrogram_cnn,
    spectrogram_recurrent,
    waveform_cnn_lstm,
)

__all__ = [
    "alexnet",
    "cnn14",
    "functionals",
    "logmel_resnet",
    "residual_lstm",
    "self_supervised",
    "spectrogram_cnn",
    "spectrogram_recurrent",
    "waveform_cnn_lstm",
]
