"""The source papers: their settings, figures, and how a run reproduces them."""
