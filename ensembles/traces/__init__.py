"""Arousal and valence over time: the table of a bank of traces, their fusion, and what smooths them after."""
