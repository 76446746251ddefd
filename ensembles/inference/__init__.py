"""Predict clips and recordings with an exported ensemble."""
