"""Density weighting: ask for samples that are unsure AND like the rest of the pool, so not for outliers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["density_weighted"]

_ROWS = 8192  # at a time: their float64 copies are then small


def density_weighted(
    score: Float[Tensor, " n"] | Numbers, embeddings: Float[Tensor, "n features"] | Numbers, *, beta: float | int = 1.0
) -> Float[Tensor, " n"]:
    """Information density: score_i times (mean over the pool of cos(h_i, h_j))^beta; higher = asked for first.

    The mean over j includes i, as in the paper, and is one product with the mean direction: no pairs are formed.

    Args:
        score: ``(n,)`` >= 0 of an uncertainty, such as `entropy`.
        embeddings: ``(n, features)`` of the same samples; a row of zeros has the similarity 0 to all.
        beta: >= 0, how much the density counts; 0: not at all.

    Returns:
        ``(n,)``. A mean similarity below 0 (embeddings of both signs) counts as 0. O(n features) time, O(n) memory.

    Raises:
        ValueError: NaN, negative scores, another n in `embeddings`, beta < 0. TypeError: integers.

    References:
        B. Settles, M. Craven, An analysis of active learning strategies for sequence labeling tasks, EMNLP 2008,
        section 3.4.

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> density_weighted(torch.tensor([0.5, 0.6, 0.6]), h)
        tensor([0.3333, 0.4000, 0.2000])
    """
    worth = _inputs.matrix("score", score, ("n",))
    h = _inputs.embeddings("embeddings", embeddings)
    _check.same_length(score=worth, embeddings=h)
    beta = _check.in_range("beta", beta, low=0)
    if bool((worth < 0).any()):
        raise ValueError(
            f"score must be >= 0, its least entry is {float(worth.min()):.6g}: a density times a negative score "
            f"prefers outliers; shift it first"
        )
    mean = sum(_directions(part).sum(0) for part in h.split(_ROWS)) / len(h)
    density = torch.cat([_directions(part) @ mean for part in h.split(_ROWS)]).clamp_min(0)
    return (worth.double() * density**beta).to(worth.dtype)


def _directions(h: Tensor) -> Tensor:
    """Return the rows at length 1 in float64, rows of zeros as they are; squares neither overflow nor vanish."""
    largest = h.abs().amax(1, keepdim=True)
    scaled = (h / torch.where(largest > 0, largest, 1)).double()
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1)
