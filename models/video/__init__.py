"""Video encoders, one architecture a file."""

from models.video import action_units, cnn3d, frame_cnn

__all__ = ["action_units", "cnn3d", "frame_cnn"]
