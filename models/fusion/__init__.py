"""Early fusion: audio and video in one network, one architecture a file."""

from models.fusion import concatenation

__all__ = ["concatenation"]
