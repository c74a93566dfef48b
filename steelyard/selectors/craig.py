"""CRAIG: samples that stand for all others near them in gradient, weighted by how many they stand for."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors._points import Points
from steelyard.selectors.pick import WeightedSelection

__all__ = ["craig"]

_BLOCK = 1 << 20  # distances at once
_AGAIN = 32  # candidates whose gain is computed again at a time


def craig(gradients: Float[Tensor, "n features"] | Numbers, k: int) -> WeightedSelection:
    """CRAIG: k times, add the sample that lowers sum_i min_{j in S} |g_i - g_j| the most (facility location).

    The weighted gradient of S then differs from the full one by at most that sum. Call it class by class, as the paper
    does, where labels are known.

    Args:
        gradients: ``(n, features)`` of each sample's loss, finite: by the logits (`cross_entropy_gradients`), as in the
            paper, or those times the embeddings.
        k: how many, in 1 .. n.

    Returns:
        Index and weight ``(k,)``, in the order added; the weight is the number of samples that are nearer to it than to
        the others picked (the first of them at a tie), they sum to n. Nothing is random; ties to rounding by the lowest
        index. All pairs once, O(n^2 features) time, then a few rows a pick, for gains only fall; O(n features) memory.
        A million samples take hours of one core: go class by class, or part by part.

    Raises:
        ValueError: NaN or infinite entries, k outside of 1 .. n. TypeError: integers.

    References:
        B. Mirzasoleiman, J. Bilmes, J. Leskovec, Coresets for data-efficient training of machine learning models, ICML
        2020, eq. 9 to 14 and Algorithm 1; M. Minoux, Accelerated greedy algorithms, 1978, for the gains that only fall.

    Example:
        >>> craig(torch.tensor([[0.0], [0.1], [0.2], [9.0]]), 2)
        WeightedSelection(index=tensor([1, 3]), weight=tensor([3., 1.]))
    """
    values = _inputs.embeddings("gradients", gradients)
    k = _inputs.count(k, values.shape[0])
    (points,) = Points.rows(values)
    n = len(points)
    # Without any picked sample a point is as far as the auxiliary element, beyond all others.
    far = 2 * float(points.norms.max().sqrt())
    nearest = torch.full((n,), far, dtype=torch.float64, device=values.device)
    owner = torch.zeros(n, dtype=torch.long, device=values.device)
    gains = _gains(points, nearest, torch.arange(n, device=values.device))
    picked: list[int] = []
    while True:
        best = _greatest(points, nearest, gains)
        distance = _to(points, points.take(slice(best, best + 1)))[:, 0]
        distance[best] = 0
        closer = distance < nearest
        owner[closer] = len(picked)
        nearest = torch.where(closer, distance, nearest)
        owner[best] = len(picked)
        picked.append(best)
        gains[best] = -torch.inf
        if len(picked) == k:
            weight = torch.bincount(owner, minlength=k).to(values.dtype)
            return WeightedSelection(torch.tensor(picked, device=values.device), weight)


def _greatest(points: Points, nearest: Tensor, gains: Tensor) -> int:
    """Return the sample of greatest gain; `gains` are upper bounds of it, lowered here as they are computed again."""
    fresh = torch.zeros_like(gains, dtype=torch.bool)
    while True:
        best = int(gains.argmax())
        if fresh[best] or gains[best] <= 0:  # no gain is below 0: where no bound is above it, all are equal
            return best
        stale = gains.masked_fill(fresh, -torch.inf).topk(min(_AGAIN, len(gains))).indices
        stale = stale[~fresh[stale] & (gains[stale] > -torch.inf)]
        gains[stale] = torch.minimum(gains[stale], _gains(points, nearest, stale))
        fresh[stale] = True


def _gains(points: Points, nearest: Tensor, candidates: Tensor) -> Tensor:
    """Return by how much each candidate lowers the sum over i of the distance to the nearest picked sample."""
    columns = max(1, _BLOCK // len(points))
    found = []
    for part in candidates.split(columns):
        distance = _to(points, points.take(part))
        distance[part, torch.arange(len(part), device=part.device)] = 0
        found.append((nearest[:, None] - distance).clamp_min_(0).sum(0))
    return torch.cat(found)


def _to(points: Points, others: Points) -> Tensor:
    """Return distances ``(len(points), len(others))`` in float64, in blocks of rows of one size whoever asks."""
    return points.distances(others).double().sqrt_()
