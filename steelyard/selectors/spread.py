"""Selections that spread over the pool's predictions: MCP over decision boundaries, DRE over the entropy's density."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors.uncertainty import entropy

__all__ = ["dre", "mcp"]


def mcp(probabilities: Float[Tensor, "n classes"] | Numbers, k: int) -> Int[Tensor, " k"]:
    """MCP: pick evenly from all boundary areas (pairs of likeliest classes), nearest to the boundary first.

    Samples whose likeliest and second classes are the ordered pair (a, b) form one area; inside it p_(2) / p_(1) ranks
    them, near 1 first.

    Args:
        probabilities: ``(n, classes)`` softmax outputs.
        k: how many, in 1 .. n.

    Returns:
        ``(k,)`` int64 indices without duplicates: the best of every area, then the second best of every area, and so
        on, each round by the ratio; ties by the lowest index. O(n log n).

    Raises:
        ValueError: NaN, rows that do not sum to 1, k outside of 1 .. n. TypeError: integers.

    References:
        W. Shen et al., Multiple-boundary clustering and prioritization to promote neural network retraining, ASE 2020.
        The order inside a round, which decides what a last and partial round takes, is ours.

    Example:
        >>> p = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0], [0.8, 0.0, 0.2], [0.55, 0.45, 0.0]])
        >>> mcp(p, 3).tolist()
        [1, 2, 3]
    """
    p = _inputs.distributions("probabilities", probabilities)
    n, classes = p.shape
    k = _inputs.count(k, n)
    top = p.topk(2, dim=1)
    ratio = top.values[:, 1] / top.values[:, 0]
    area = top.indices[:, 0] * classes + top.indices[:, 1]
    order = ratio.argsort(descending=True, stable=True)
    order = order[area[order].argsort(stable=True)]  # by area, inside it by ratio
    _, sizes = torch.unique_consecutive(area[order], return_counts=True)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    place = torch.empty_like(order)
    place[order] = torch.arange(n, device=p.device) - starts
    rounds = ratio.argsort(descending=True, stable=True)
    return rounds[place[rounds].argsort(stable=True)][:k]


def dre(
    probabilities: Float[Tensor, "n classes"] | Numbers, k: int, *, generator: torch.Generator, bins: int = 50
) -> Int[Tensor, " k"]:
    """DRE: density-based robust sampling with entropy: the pool's own entropy histogram, less its low end.

    The range of the base-2 entropies is cut into equal bins; bin i, which holds the share h_i of the pool, gives
    ceil(h_i k) samples at random. Lined up from low to high entropy, the last k stay.

    Args:
        probabilities: ``(n, classes)`` softmax outputs on clean inputs.
        k: how many, in 1 .. n.
        generator: source of the draws.
        bins: equal-width bins over [min, max] of the entropy, the last one closed.

    Returns:
        ``(k,)`` int64 indices without duplicates, bins from high to low entropy, at random inside a bin. O(n bins).

    Raises:
        ValueError: NaN, rows that do not sum to 1, k outside of 1 .. n, bins < 1. TypeError: integers.

    References:
        Y. Guo et al., Robust active learning: sample-efficient training of robust deep learning models, 2021.

    Example:
        >>> p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
        >>> sorted(dre(p, 3, generator=torch.Generator().manual_seed(0)).tolist())[0] in (0, 1)
        True
    """
    bits = entropy(probabilities, base=2)
    n = bits.shape[0]
    k = _inputs.count(k, n)
    bins = _check.integer("bins", bins, low=1)
    low, width = bits.min(), bits.max() - bits.min()
    bin_of = ((bits - low) / width.clamp_min(torch.finfo(bits.dtype).tiny) * bins).long().clamp_(max=bins - 1)
    _check.generator("generator", generator)
    shuffled = torch.randperm(n, generator=generator, device=generator.device).to(bits.device)
    bin_of = bin_of[shuffled]
    picked = []
    for bin_index in range(bins - 1, -1, -1):
        members = shuffled[bin_of == bin_index]
        picked.append(members[: -(-len(members) * k // n)])  # ceil(h_i k) <= n_i, and they sum to k or more
    return torch.cat(picked)[:k]
