"""k-means++ seeding: draw each centre with probability proportional to D^2, its squared distance to the last ones.

Drawn exactly, but not one pass over the data a draw. D^2 can only fall, so values that are a few draws old are upper
bounds: proposals drawn by them and accepted with probability (current / old) follow the current distribution. A round
makes a block of proposals at once, thins them with the distances among themselves (a small matrix), then brings all n
values up to date with one matrix product. The data are read once a round instead of once a draw, which goes below the
bandwidth floor of the usual loop; where D^2 collapses and most proposals fail, a round still gives one draw.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors._points import Points

__all__ = ["kmeans_plus_plus", "seed_points"]

_PROPOSALS = 256  # a round; more costs more wasted proposals, fewer more passes over the data


def kmeans_plus_plus(
    embeddings: Float[Tensor, "n features"] | Numbers, k: int, *, generator: torch.Generator, first: str = "uniform"
) -> Int[Tensor, " k"]:
    """Select k centres by k-means++ seeding (D^2 sampling, one trial a centre).

    Args:
        embeddings: ``(n, features)``, finite.
        k: how many, in 1 .. n.
        generator: source of the draws.
        first: "uniform" (the paper), or "largest": the point of largest norm, as BADGE starts.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order drawn. Once every point left coincides with a centre
        (D = 0), the rest is drawn uniformly. O(n features k) time, O(n features) memory: n x k and n x n are never
        built.

    Raises:
        ValueError: NaN or infinite entries, k outside of 1 .. n, an unknown `first`. TypeError: integers.

    References:
        D. Arthur, S. Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007, section 2.2.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 0.0]])
        >>> picked = kmeans_plus_plus(corners, 2, generator=torch.Generator().manual_seed(0))
        >>> 2 in picked.tolist()
        True
    """
    values = _inputs.embeddings("embeddings", embeddings)
    k = _inputs.count(k, values.shape[0])
    _check.choice("first", first, ["uniform", "largest"])
    _check.generator("generator", generator)
    if first == "largest":  # of the norms about the origin: `Points.rows` moves it
        size = values / values.abs().amax().clamp_min(torch.finfo(values.dtype).tiny)
        start = int(size.square().sum(1).argmax())
    else:
        start = int(torch.randint(values.shape[0], (), generator=generator, device=generator.device))
    return seed_points(Points.rows(values)[0], k, start, generator)


def seed_points(points: Points, k: int, start: int, generator: torch.Generator) -> Tensor:
    """Return ``(k,)`` indices by D^2 sampling from the first centre `start` on."""
    device = points.norms.device
    nearest = torch.full_like(points.norms, torch.inf)
    chosen = fresh = torch.tensor([start], device=device)
    while chosen.numel() < k:
        points.lower(nearest, points.take(fresh))
        if not bool(nearest.any()):
            left = torch.ones_like(nearest, dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
            order = torch.randperm(left.numel(), generator=generator, device=generator.device).to(device)
            return torch.cat([chosen, left[order[: k - chosen.numel()]]])
        fresh = _round(points, nearest, k - chosen.numel(), generator)
        chosen = torch.cat([chosen, fresh])
    return chosen


def _round(points: Points, nearest: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """Draw up to `wanted` centres from D^2 = `nearest` by one block of proposals; one at least, almost surely."""
    proposed = min(_PROPOSALS, 4 * wanted)
    mass = nearest.double().cumsum(0)
    uniform = torch.rand(2, proposed, generator=generator, device=generator.device, dtype=torch.float64)
    place = (uniform[0].to(mass.device) * mass[-1]).contiguous()
    proposals = torch.searchsorted(mass, place, right=True).clamp_(max=len(points) - 1)
    candidates = points.take(proposals)
    between = candidates.distances(candidates).cpu().numpy()
    current = nearest[proposals].cpu().numpy()
    bar = uniform[1].cpu().numpy() * current
    accepted: list[int] = []
    for j in range(proposed):
        # Strict: a place that rounding pushed onto a centre has current = bar = 0.
        if bar[j] < current[j]:
            accepted.append(j)
            current = current.clip(max=between[j])
            if len(accepted) == wanted:
                break
    return proposals[torch.tensor(accepted, dtype=torch.long, device=proposals.device)]
