"""Losses: weighted cross-entropy, and one minus the concordance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_LEAST_SPREAD = 1e-6


def cross_entropy(
    logits: Tensor, wanted: Tensor, *, focal_gamma: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean over clips of -Σ w·t·(1 - p)^γ·log p, in float32.

    Args:
        logits: (B, K).
        wanted: (B, K) class probabilities t.
        focal_gamma: γ; 0 for cross-entropy.
        class_weights: (K,) w, of mean 1 over the training clips.
    """
    log_p = logits.float().log_softmax(dim=1)
    terms = wanted * log_p
    if focal_gamma:
        terms = terms * (1.0 - log_p.exp()).clamp(min=1e-6).pow(focal_gamma)
    if class_weights is not None:
        terms = terms * class_weights
    return -terms.sum(dim=1).mean()


def concordance_loss(said: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """1 - CCC, the mean over dimensions (Tzirakis et al., 2017).

    Over the clips' sequences joined into one, not clip by clip: how far apart clips are counts.

    Args:
        said: (B, S, D).
        wanted: (B, S, D).
        known: (B, S) bool, steps that count.
    """
    if not bool(known.any()):
        return said.sum() * 0.0 + 1.0
    said, wanted = said.float()[known], wanted[known]
    means = said.mean(dim=0), wanted.mean(dim=0)
    covariance = ((said - means[0]) * (wanted - means[1])).mean(dim=0)
    spread = said.var(dim=0, correction=0) + wanted.var(dim=0, correction=0)
    # Where nothing moves, as in a batch of silence, 0/0 is no gradient.
    agreement = 2 * covariance / (spread + (means[0] - means[1]) ** 2 + _LEAST_SPREAD)
    loss: Tensor = 1.0 - agreement.mean()
    return loss


def class_balanced_weights(counts: NDArray[np.int64], beta: float) -> NDArray[np.float32]:
    """(K,) weights (1 - β) / (1 - β^n), scaled to a mean of 1 over clips (Cui et al., 2019).

    A class without a training clip has the weight of one clip, which nothing is multiplied by.
    """
    weights = (1.0 - beta) / (1.0 - np.power(beta, np.maximum(counts, 1)))
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), np.float32)
