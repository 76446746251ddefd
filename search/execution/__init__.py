"""Trials on Ray: actors, Ray Train workers, and what they record."""
