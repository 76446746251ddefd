"""Networks: front ends, audio and video encoders, early fusion, and the registry of them all.

Importing this package registers every architecture.
"""

from models import audio, fusion, video
from models.base import BackboneEncoder, Encoder
from models.build import build_expert
from models.expert import Expert
from models.registry import Architecture, ClipShape, architectures, get_architecture

__all__ = [
    "Architecture",
    "BackboneEncoder",
    "ClipShape",
    "Encoder",
    "Expert",
    "architectures",
    "audio",
    "build_expert",
    "fusion",
    "get_architecture",
    "video",
]
