"""TypiClust: the most typical sample of every cluster that has no label yet; for budgets too small for uncertainty."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors._points import Points
from steelyard.selectors.clusters import kmeans

__all__ = ["typicality", "typiclust"]

_BLOCK = 1 << 20  # distances at once


def typicality(embeddings: Float[Tensor, "n features"] | Numbers, *, neighbours: int = 20) -> Float[Tensor, " n"]:
    """Return 1 / (mean distance to the nearest neighbours), the sample itself left out; higher = asked for first.

    Args:
        embeddings: ``(n, features)``, n >= 2, finite; best of a model trained without labels.
        neighbours: K >= 1; all others where there are fewer.

    Returns:
        ``(n,)`` > 0; the largest float where all K coincide with the sample. O(n^2 features) time, O(n features)
        memory: for a million samples of 128 features some hours of one core; `typiclust` asks within clusters alone.

    Raises:
        ValueError: NaN or infinite entries, n < 2, neighbours < 1. TypeError: integers.

    References:
        G. Hacohen, A. Dekel, D. Weinshall, Active learning on a budget: opposite strategies suit high and low budgets,
        ICML 2022, eq. 4.

    Example:
        >>> typicality(torch.tensor([[0.0], [1.0], [5.0]]), neighbours=1).tolist()
        [1.0, 1.0, 0.25]
    """
    values = _inputs.embeddings("embeddings", embeddings)
    if values.shape[0] < 2:
        raise ValueError(f"embeddings has {values.shape[0]} sample; a neighbour needs at least 2")
    neighbours = _check.integer("neighbours", neighbours, low=1)
    (points,), scale = Points.scaled_rows(values)
    distance = _mean_distance(points, min(neighbours, len(points) - 1)) / scale
    largest = torch.finfo(values.dtype).max
    return (1 / distance.double()).clamp(max=largest).to(values.dtype)


def typiclust(
    embeddings: Float[Tensor, "n features"] | Numbers,
    k: int,
    *,
    generator: torch.Generator,
    labelled: Float[Tensor, "m features"] | Numbers | None = None,
    neighbours: int = 20,
    most_clusters: int = 500,
    small: int = 5,
) -> Int[Tensor, " k"]:
    """TypiClust: k times, pick the most typical sample of the largest cluster with the fewest labels.

    Pool and labelled samples together are cut into m + k clusters by k-means, so that at least k have no label.

    Args:
        embeddings: ``(n, features)`` of the pool, finite; best of a model trained without labels.
        k: how many, in 1 .. n.
        generator: seeds k-means; nothing else is random.
        labelled: ``(m, features)`` of the samples labelled already; None: none.
        neighbours: of the typicality, within the cluster (all of its others, where there are fewer).
        most_clusters: upper bound on their number; then clusters with one label get a second, and so on.
        small: clusters of at most so many samples come after all the others: their densest point is noise.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order picked; ties by the lowest index. O(n features (m + k))
        a round of k-means, and all pairs within the clusters picked from; O(n features) memory. A million samples of
        16 features cost, with k = 100, about 10^11 products in k-means and twice as many within the clusters: minutes
        of one core.

    Raises:
        ValueError: NaN or infinite entries, another number of features in `labelled`, k outside of 1 .. n, numbers
            below 1 (`small`: below 0). TypeError: integers.

    References:
        Hacohen et al., ICML 2022, Algorithm 1 (TPC_RP). Departures from the authors' code: distances are Euclidean as
        in the paper, not squared; a cluster's typicality is computed once, of all its samples, and not again
        without the picked ones; after each pick the clusters are ordered again; small clusters are not left out.

    Example:
        >>> h = torch.tensor([[0.0], [1.0], [2.1], [50.0], [51.0], [51.1], [53.0]])
        >>> typiclust(h, 2, generator=torch.Generator().manual_seed(0), neighbours=2, small=0).tolist()
        [4, 1]
    """
    values, known = _inputs.with_labelled(embeddings, labelled)
    n = values.shape[0]
    k = _inputs.count(k, n)
    for name, value in (("neighbours", neighbours), ("most_clusters", most_clusters)):
        _check.integer(name, value, low=1)
    small = _check.integer("small", small, low=0)
    everything = torch.cat([values, known])
    cluster_of = kmeans(everything, min(k + len(known), most_clusters, len(everything)), generator=generator)
    sizes = torch.bincount(cluster_of)
    labels = torch.bincount(cluster_of[n:], minlength=len(sizes))
    left = torch.bincount(cluster_of[:n], minlength=len(sizes))
    queues: dict[int, list[int]] = {}
    picked: list[int] = []
    order = _Order(sizes.tolist(), labels.tolist(), left.tolist(), small)
    while len(picked) < k:
        cluster = order.next()
        if cluster not in queues:
            members = (cluster_of == cluster).nonzero()[:, 0]
            queues[cluster] = _by_typicality(everything[members], members, n, neighbours)
        picked.append(queues[cluster].pop())
    return torch.tensor(picked, device=values.device)


class _Order:
    """Which cluster is next: large before small ones, then the fewest labels, then the largest, then the first."""

    def __init__(self, sizes: list[int], labels: list[int], left: list[int], small: int) -> None:
        self._sizes, self._labels, self._left, self._small = sizes, labels, left, small

    def next(self) -> int:
        sizes, labels = self._sizes, self._labels
        open_ones = (c for c in range(len(sizes)) if self._left[c])
        found = min(open_ones, key=lambda c: (sizes[c] <= self._small, labels[c], -sizes[c], c))
        self._labels[found] += 1
        self._left[found] -= 1
        return found


def _by_typicality(values: Tensor, members: Tensor, n: int, neighbours: int) -> list[int]:
    """Return the cluster's members below `n` (the pool's), the most typical last."""
    if len(values) > 1:
        (points,) = Points.rows(values)
        distance = _mean_distance(points, min(neighbours, len(points) - 1))
    else:
        distance = values.new_zeros(1)
    order = members[distance.argsort(stable=True)]
    return order[order < n].flip(0).tolist()


def _mean_distance(points: Points, neighbours: int) -> Tensor:
    """Return the mean distance ``(n,)`` to the nearest neighbours, in blocks of rows."""
    means = []
    rows = max(1, _BLOCK // len(points))
    for start in range(0, len(points), rows):
        distances = points.take(slice(start, start + rows)).distances(points)
        place = torch.arange(len(distances), device=distances.device)
        distances[place, place + start] = torch.inf
        means.append(distances.topk(neighbours, dim=1, largest=False).values.sqrt().mean(1))
    return torch.cat(means)
