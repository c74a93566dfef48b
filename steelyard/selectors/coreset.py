"""CORESET: cover the pool by balls of the least radius, greedily (farthest point first).

The trace is the textbook's, but a pass over the data serves many picks. The distance to the nearest centre can only
fall, so values that are a few picks old are upper bounds: as long as the best of a candidate set, kept up to date, is
above every bound outside of it, it is the farthest point of all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors._points import Points

__all__ = ["k_center"]

_CANDIDATES = 512  # a round, at most; their mutual distances are a matrix of this side
_FEWEST = 16  # a round, where the last one's candidates fell with its first picks, as those of one tight cluster do
_CHOSEN = -1.0  # below every squared distance


def k_center(
    embeddings: Float[Tensor, "n features"] | Numbers,
    k: int,
    *,
    labelled: Float[Tensor, "m features"] | Numbers | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " k"]:
    """CORESET: k times, pick the point farthest from all labelled and picked ones (k-center greedy).

    Robust Active Learning runs it on softmax outputs: pass those as `embeddings`.

    Args:
        embeddings: ``(n, features)`` of the pool, finite.
        k: how many, in 1 .. n.
        labelled: ``(m, features)`` centres to start from; None or m = 0: none, and then every first pick is as good as
            another.
        generator: draws that first pick; without it, it is index 0. Nothing else is random.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order picked. Ties go to the lowest index (ties to rounding:
        float32 distances of points that are not duplicates carry a relative error of some 1e-4 at most).
        O(n features (m + k)) time, O(n features) memory: n x m and n x n are never built.

    Raises:
        ValueError: NaN or infinite entries, another number of features in `labelled`, k outside of 1 .. n.
        TypeError: integers.

    References:
        O. Sener, S. Savarese, Active learning for convolutional neural networks: a core-set approach, ICLR 2018,
        Algorithm 1; T. Gonzalez, Clustering to minimize the maximum intercluster distance, 1985.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [4.0], [10.0]])
        >>> k_center(line, 3, labelled=torch.tensor([[0.0]])).tolist()
        [3, 2, 1]
    """
    values, known = _inputs.with_labelled(embeddings, labelled)
    k = _inputs.count(k, values.shape[0])
    if not len(known):
        (points,) = Points.rows(values)
        nearest = torch.full_like(points.norms, torch.inf)
        if generator is not None:
            _check.generator("generator", generator)
            start = int(torch.randint(len(points), (), generator=generator, device=generator.device))
            return _greedy(points, nearest, [start], k)
        return _greedy(points, nearest, [0], k)
    points, centres = Points.rows(values, known)
    nearest = torch.full_like(points.norms, torch.inf)
    points.lower(nearest, centres)
    return _greedy(points, nearest, [], k)


def _greedy(points: Points, nearest: Tensor, fresh: list[int], k: int) -> Tensor:
    """Pick until there are k; `fresh` is picked already, but `nearest` does not know it yet."""
    chosen: list[int] = []
    while True:
        if fresh:
            index = torch.tensor(fresh, device=nearest.device)
            points.lower(nearest, points.take(index))
            nearest[index] = _CHOSEN
            chosen += fresh
        if len(chosen) >= k:
            return torch.tensor(chosen, device=nearest.device)
        if float(nearest.max()) == 0:  # only duplicates of centres are left: nothing will change any more
            rest = (nearest == 0).nonzero()[: k - len(chosen), 0]
            return torch.cat([torch.tensor(chosen, dtype=torch.long, device=nearest.device), rest])
        size = min(_CANDIDATES, max(_FEWEST, 4 * len(fresh)))
        fresh = _round(points, nearest, k - len(chosen), size)


def _round(points: Points, nearest: Tensor, wanted: int, size: int) -> list[int]:
    """Return the next picks, at least one and at most `wanted`, as far as the candidates can tell."""
    bound = float(nearest.topk(size).values[-1]) if len(points) > size else _CHOSEN
    candidates = (nearest > bound).nonzero()[:, 0]  # ascending: argmax then breaks ties by the lowest index
    if candidates.numel() == 0:  # the farthest ones tie, more than fit
        return [int(nearest.argmax())]
    members = points.take(candidates)
    between = members.distances(members).cpu().numpy()
    current = nearest[candidates].cpu().numpy()
    picked: list[int] = []
    while len(picked) < wanted:
        best = int(current.argmax())
        if current[best] <= bound:  # a point outside may be as far
            break
        picked.append(best)
        current = current.clip(max=between[best])
        current[picked] = _CHOSEN
    return candidates.cpu()[picked].tolist()
