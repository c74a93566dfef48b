"""Selection from pools past memory or patience: in random parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["partitioned"]


def partitioned(
    select: Callable[[Tensor, int], Tensor | Numbers], n: int, k: int, *, parts: int, generator: torch.Generator
) -> Int[Tensor, " k"]:
    """Cut the pool into random parts, select from each, and join.

    Each part holds n / parts samples and gives k / parts of them, both up to one. A selection that costs O(n k) costs
    O(n k / parts) so, and only one part's embeddings need be in memory; near duplicates in different parts can both be
    picked. The order of the result is part by part.

    Args:
        select: (pool indices ``(m,)`` int64 ascending, count) -> `count` different positions in 0 .. m - 1. It loads
            what it needs of those samples.
        n: size of the pool. k: how many, in 1 .. n. parts: in 1 .. n.
        generator: cuts the pool.

    Returns:
        ``(k,)`` int64 pool indices without duplicates, on the generator's device.

    Raises:
        ValueError: k or parts outside of 1 .. n, or a selection with duplicates, out of range or of the wrong length.

    References:
        G. Citovsky et al., Batch active learning at scale, NeurIPS 2021 (partitioned BADGE and CORESET as baselines).

    Example:
        >>> embeddings = torch.arange(10.0)[:, None]
        >>> from steelyard.selectors import k_center
        >>> picked = partitioned(
        ...     lambda index, count: k_center(embeddings[index], count), 10, 4, parts=2,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> len(set(picked.tolist()))
        4
    """
    n = _check.integer("n", n, low=1)
    k = _inputs.count(k, n)
    parts = _check.integer("parts", parts, low=1, high=n)
    _check.generator("generator", generator)
    shuffled = torch.randperm(n, generator=generator, device=generator.device)
    picked = []
    # tensor_split gives the remainder to the first parts, of the pool and of k alike: no quota is above its part.
    for part, quota in zip(shuffled.tensor_split(parts), _even(k, parts), strict=True):
        if quota:
            index = part.sort().values
            chosen = _inputs.positions("select", select(index, quota), quota, len(index), "its part")
            picked.append(index[chosen.to(index.device)])
    return torch.cat(picked)


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]
