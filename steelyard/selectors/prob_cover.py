"""ProbCover: balls of one radius around the picked samples that cover as many of the pool as they can."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors._points import Points

__all__ = ["prob_cover", "pure_radius"]

_BLOCK = 1 << 20  # distances at once


def prob_cover(
    embeddings: Float[Tensor, "n features"] | Numbers,
    k: int,
    *,
    radius: float,
    labelled: Float[Tensor, "m features"] | Numbers | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " k"]:
    """ProbCover: k times, pick the sample whose ball holds the most samples that no ball holds yet.

    Args:
        embeddings: ``(n, features)`` of the pool, finite; best of a model trained without labels.
        k: how many, in 1 .. n.
        radius: delta >= 0 of the balls, in the embeddings' unit; a ball holds what is at most so far. `pure_radius`
            finds one as the paper does.
        labelled: ``(m, features)`` centres of balls there are already; None: none.
        generator: picks the rest at random once all is covered; without it, the lowest indices.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order picked; ties by the lowest index. O(n^2 features) time
        (all pairs once, and once more as they are covered), O(n features) memory: the graph is never stored. A million
        samples take hours of one core: see `partitioned`.

    Raises:
        ValueError: NaN or infinite entries, another number of features in `labelled`, k outside of 1 .. n, radius < 0.
            TypeError: integers.

    References:
        O. Yehuda et al., Active learning through a covering lens, NeurIPS 2022, Algorithm 1.

    Example:
        >>> h = torch.tensor([[0.0], [1.0], [2.0], [9.0], [9.5]])
        >>> prob_cover(h, 2, radius=1.0).tolist()
        [1, 3]
    """
    values, known = _inputs.with_labelled(embeddings, labelled)
    k = _inputs.count(k, values.shape[0])
    radius = _check.in_range("radius", radius, low=0)
    if generator is not None:
        _check.generator("generator", generator)
    (points, centres), scale = Points.scaled_rows(values, known)
    reach = (radius * scale) ** 2
    covered = torch.zeros(len(points), dtype=torch.bool, device=values.device)
    for block, distances in _blocks(points, centres):
        covered[block] = (distances <= reach).any(1)
    gains = torch.empty(len(points), dtype=torch.long, device=values.device)
    for block, distances in _blocks(points, points):
        gains[block] = ((distances <= reach) & ~covered).sum(1)
    picked: list[int] = []
    while len(picked) < k:
        best = int(gains.argmax())
        if int(gains[best]) <= 0:
            return _rest(picked, k, len(points), generator).to(values.device)
        picked.append(best)
        ball = points.take(slice(best, best + 1)).distances(points)[0] <= reach
        ball[best] = True
        fresh = points.take((ball & ~covered).nonzero()[:, 0])
        covered |= ball
        for block, distances in _blocks(points, fresh):
            gains[block] -= (distances <= reach).sum(1)
        gains[best] = 0
    return torch.tensor(picked, device=values.device)


def pure_radius(
    embeddings: Float[Tensor, "n features"] | Numbers, clusters: Int[Tensor, " n"] | Numbers, *, purity: float = 0.95
) -> float:
    """Return the greatest radius at which a share `purity` of the balls hold samples of one cluster alone.

    A ball is pure up to the distance to the nearest sample of another cluster; the radius is a quantile of those.

    Args:
        embeddings: ``(n, features)``, finite. clusters: ``(n,)`` ids >= 0, of `kmeans` with as many clusters as there
            are classes; at least 2 different ones.
        purity: alpha in (0, 1].

    Returns:
        The radius, just below the distance at which one ball too many would be impure; 0 where samples of different
        clusters coincide. O(n^2 features) time, O(n features) memory; a sample of some thousands is enough.

    Raises:
        ValueError: NaN, one cluster alone, another n in `clusters`, purity outside of (0, 1]. TypeError: integers.

    References:
        Yehuda et al., NeurIPS 2022, section 3.2 (delta* = max{delta: purity(delta) >= alpha}, alpha = 0.95).

    Example:
        >>> round(pure_radius(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]), purity=0.5), 4)
        4.0
    """
    values = _inputs.embeddings("embeddings", embeddings)
    ids = _inputs.labels_of("clusters", clusters, values.shape[0], None)
    purity = _check.in_range("purity", purity, low=0, high=1, open_low=True)
    if bool((ids == ids[0]).all()):
        raise ValueError(
            "clusters are all the same: every ball is pure; cut the pool into as many as there are classes"
        )
    (points,), scale = Points.scaled_rows(values)
    nearest = torch.empty(len(points), dtype=points.right.dtype, device=values.device)
    for block, distances in _blocks(points, points):
        nearest[block] = distances.masked_fill_(ids[block, None] == ids, torch.inf).amin(1)
    needed = -(-purity * len(points) // 1)  # balls that must stay pure: all radii below the needed-th greatest do it
    limit = nearest.sort(descending=True).values[int(needed) - 1].double().sqrt() / scale
    return float(torch.nextafter(limit, torch.zeros_like(limit)))


def _blocks(points: Points, others: Points) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows with their squared distances to all `others`; nothing where there are none."""
    rows = max(1, _BLOCK // max(1, len(others)))
    for start in range(0, len(points) if len(others) else 0, rows):
        block = slice(start, start + rows)
        yield block, points.take(block).distances(others)


def _rest(picked: list[int], k: int, n: int, generator: torch.Generator | None) -> Tensor:
    """Return `picked` and, of the others, the first or random ones up to k."""
    left = torch.ones(n, dtype=torch.bool).index_fill_(0, torch.tensor(picked, dtype=torch.long), False).nonzero()[:, 0]
    if generator is not None:
        left = left[torch.randperm(len(left), generator=generator, device=generator.device).cpu()]
    return torch.cat([torch.tensor(picked, dtype=torch.long), left[: k - len(picked)]])
