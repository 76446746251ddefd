"""Early fusion: audio and video in one network, one architecture a file."""

from models.fusion import bilinear, concatenation, cross_attention, gated, joint_lstm

__all__ = ["bilinear", "concatenation", "cross_attention", "gated", "joint_lstm"]
