"""k-means (Lloyd's iterations from k-means++ seeds): the clusters that TypiClust and ProbCover's radius stand on."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors._points import Points
from steelyard.selectors.seeding import seed_points

__all__ = ["kmeans"]

_BLOCK = 1 << 20  # distances at once


def kmeans(
    embeddings: Float[Tensor, "n features"] | Numbers, clusters: int, *, generator: torch.Generator, rounds: int = 50
) -> Int[Tensor, " n"]:
    """Return the cluster of every sample, by Lloyd's iterations from one k-means++ seeding.

    Args:
        embeddings: ``(n, features)``, finite.
        clusters: how many, in 1 .. n; fewer come back where fewer samples are different.
        generator: source of the seeding.
        rounds: at most; it ends before where no sample changes.

    Returns:
        ``(n,)`` int64 in 0 .. clusters - 1, no cluster empty (they are numbered without gaps). O(n features clusters)
        time a round, O(n features) memory.

    Raises:
        ValueError: NaN or infinite entries, clusters outside of 1 .. n, rounds < 1. TypeError: integers.

    References:
        S. Lloyd, Least squares quantization in PCM, 1982; Arthur & Vassilvitskii, SODA 2007, for the start.

    Example:
        >>> found = kmeans(torch.tensor([[0.0], [9.0], [1.0]]), 2, generator=torch.Generator().manual_seed(0))
        >>> bool(found[0] == found[2] != found[1])
        True
    """
    values = _inputs.embeddings("embeddings", embeddings)
    clusters = _check.integer("clusters", clusters, low=1, high=values.shape[0])
    rounds = _check.integer("rounds", rounds, low=1)
    _check.generator("generator", generator)
    (points,) = Points.rows(values)
    start = int(torch.randint(len(points), (), generator=generator, device=generator.device))
    centres = points.take(seed_points(points, clusters, start, generator))
    cluster_of = _nearest(points, centres)
    for _ in range(rounds - 1):
        mean, occupied = _means(points.right, cluster_of, clusters)
        # A cluster that has lost all its samples stays where it was: it may win some back.
        right = torch.where(occupied[:, None], mean, centres.right)
        centres = Points(right, None, right.square().sum(1))
        following = _nearest(points, centres)
        if torch.equal(following, cluster_of):
            break
        cluster_of = following
    return cluster_of.unique(return_inverse=True)[1]


def _nearest(points: Points, centres: Points) -> Tensor:
    rows = max(1, _BLOCK // len(centres))
    blocks = (slice(start, start + rows) for start in range(0, len(points), rows))
    return torch.cat([points.take(block).distances(centres).argmin(1) for block in blocks])


def _means(values: Tensor, cluster_of: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    sizes = torch.bincount(cluster_of, minlength=clusters)
    total = values.new_zeros(clusters, values.shape[1]).index_add_(0, cluster_of, values)
    return total / sizes.clamp_min(1)[:, None], sizes > 0
