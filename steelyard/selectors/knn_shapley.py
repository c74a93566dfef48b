"""KNN-Shapley: what each training sample adds to a nearest-neighbour classifier, by its exact Shapley value."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors._points import Points

__all__ = ["knn_shapley"]

_BLOCK = 1 << 20  # distances at once


def knn_shapley(
    embeddings: Float[Tensor, "n features"] | Numbers,
    labels: Int[Tensor, " n"] | Numbers,
    target_embeddings: Float[Tensor, "m features"] | Numbers,
    target_labels: Int[Tensor, " m"] | Numbers,
    *,
    neighbours: int = 10,
) -> Float[Tensor, " n"]:
    """Return the Shapley value of each training sample for K-nearest-neighbour accuracy; higher = keep.

    The game: of a set S of training samples, the share of the K neighbours nearest to a target (of S, over K) that have
    its label, averaged over targets. Harmful samples, mislabelled ones among them, are below 0.

    Args:
        embeddings: ``(n, features)`` of the training samples, finite. labels: ``(n,)`` class ids.
        target_embeddings: ``(m, features)`` of validation samples (never test samples, if the value decides what to
            keep). target_labels: ``(m,)`` class ids.
        neighbours: K >= 1.

    Returns:
        ``(n,)``; the values sum to the mean value of all samples together. Equal distances are in the order of the
        indices. O(m n (features + log n)) time, a block of targets at a time.

    Raises:
        ValueError: NaN or infinite entries, lengths or features that differ, neighbours < 1. TypeError: integers.

    References:
        R. Jia et al., Efficient task-specific data valuation for nearest neighbor algorithms, VLDB 2019, theorem 1.
        For n < K the last value is 1 / K instead of 1 / n, as their game has it.

    Example:
        >>> h, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 1, 0])
        >>> knn_shapley(h, y, torch.tensor([[0.2]]), torch.tensor([0]), neighbours=1)
        tensor([ 0.8333, -0.1667,  0.3333])
    """
    values = _inputs.embeddings("embeddings", embeddings)
    aims = _inputs.embeddings("target_embeddings", target_embeddings)
    if aims.shape[1] != values.shape[1]:
        raise ValueError(f"target_embeddings has {aims.shape[1]} features, but embeddings has {values.shape[1]}")
    n, m = len(values), len(aims)
    y = _inputs.labels_of("labels", labels, n, None).to(values.device)
    wanted = _inputs.labels_of("target_labels", target_labels, m, None).to(values.device)
    neighbours = _check.integer("neighbours", neighbours, low=1)
    points, targets = Points.rows(values, aims.to(values))
    place = torch.arange(1, n, dtype=torch.float64, device=values.device)
    factor = place.clamp(max=neighbours) / (neighbours * place)  # min(K, i) / (K i), of the i-th nearest
    total = torch.zeros(n, dtype=torch.float64, device=values.device)
    rows = max(1, _BLOCK // n)
    for start in range(0, m, rows):
        block = slice(start, start + rows)
        order = targets.take(block).distances(points).argsort(dim=1, stable=True)
        right = (y[order] == wanted[block, None]).double()
        steps = (right[:, :-1] - right[:, 1:]) * factor  # value of the i-th nearest less that of the next one
        last = right[:, -1:] / max(neighbours, n)
        shapley = torch.cat([steps, last], dim=1).flip(1).cumsum(1).flip(1)
        total.index_add_(0, order.flatten(), shapley.flatten())
    return (total / m).to(values.dtype)
