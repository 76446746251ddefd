"""Video encoders, one architecture a file."""

from models.video import (
    action_unit_lstm,
    action_units,
    cnn3d,
    frame_cnn,
    kinetics,
    resnet_lstm,
    spatial_transformer,
)

__all__ = [
    "action_unit_lstm",
    "action_units",
    "cnn3d",
    "frame_cnn",
    "kinetics",
    "resnet_lstm",
    "spatial_transformer",
]
