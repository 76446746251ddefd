"""Posteriors in, one predictor out: the posterior bank, fusion, and honest scores."""


class EnsembleError(ValueError):
    """Posteriors, a metric or a fusion that cannot be used as asked; the text names the culprit."""
