"""Audio encoders, one architecture a file."""

from models.audio import (
    functionals,
    logmel_resnet,
    self_supervised,
    spectrogram_cnn,
    spectrogram_recurrent,
)

__all__ = [
    "functionals",
    "logmel_resnet",
    "self_supervised",
    "spectrogram_cnn",
    "spectrogram_recurrent",
]
