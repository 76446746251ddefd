"""Fusion methods, and the candidates that the fusion search tries."""
