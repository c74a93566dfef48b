"""Batches drawn by their scores instead of the k highest: a batch of top scores is a batch of near duplicates.

The score plus Gumbel noise, then the k highest: that is drawing one after the other without replacement, each in
proportion to exp(beta score), score^beta or rank^-beta.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["power_sampling", "softmax_sampling", "softrank_sampling"]


def softmax_sampling(
    score: Float[Tensor, " n"] | Numbers, k: int, *, generator: torch.Generator, beta: float | int = 1.0
) -> Int[Tensor, " k"]:
    """Draw k samples without replacement, each time in proportion to exp(beta score).

    Args:
        score: ``(n,)``, higher = picked more often.
        k: how many, in 1 .. n. generator: source of the draws.
        beta: >= 0, the coldness: 0 is uniform, large is `top_k`. The score's unit matters (unlike with softrank).

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order drawn. O(n log n).

    Raises:
        ValueError: NaN, k outside of 1 .. n, beta < 0. TypeError: integers.

    References:
        A. Kirsch et al., Stochastic batch acquisition: a simple baseline for deep active learning, TMLR 2023,
        section 3 (softmax acquisition), proposition 3.1 for the Gumbel noise.

    Example:
        >>> softmax_sampling(torch.tensor([0.0, 50.0]), 1, generator=torch.Generator().manual_seed(0)).tolist()
        [1]
    """
    values = _inputs.matrix("score", score, ("n",))
    return _draw(values.double(), k, generator, beta)


def power_sampling(
    score: Float[Tensor, " n"] | Numbers, k: int, *, generator: torch.Generator, beta: float | int = 1.0
) -> Int[Tensor, " k"]:
    """Draw k samples without replacement, each time in proportion to score^beta. A score of 0 is drawn last.

    Args:
        score: ``(n,)`` >= 0, higher = picked more often; of BALD the paper's recommendation (PowerBALD).
        k: how many, in 1 .. n. generator: source of the draws.
        beta: >= 0; 0 is uniform (over scores above 0), large is `top_k`.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order drawn; zeros are drawn uniformly. O(n log n).

    Raises:
        ValueError: NaN, negative scores, k outside of 1 .. n, beta < 0. TypeError: integers.

    References:
        Kirsch et al., TMLR 2023, section 3 (power acquisition).

    Example:
        >>> power_sampling(torch.tensor([0.0, 0.2]), 2, generator=torch.Generator().manual_seed(0)).tolist()
        [1, 0]
    """
    values = _inputs.matrix("score", score, ("n",))
    if bool((values < 0).any()):
        raise ValueError(f"score must be >= 0, its least entry is {float(values.min()):.6g}; use softmax_sampling")
    return _draw(values.double().log(), k, generator, beta)


def softrank_sampling(
    score: Float[Tensor, " n"] | Numbers, k: int, *, generator: torch.Generator, beta: float | int = 1.0
) -> Int[Tensor, " k"]:
    """Draw k samples without replacement, each time in proportion to rank^-beta, the highest score of rank 1.

    Args:
        score: ``(n,)``; only its order counts. Equal scores share their mean rank.
        k: how many, in 1 .. n. generator: source of the draws.
        beta: >= 0; 0 is uniform, large is `top_k`.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order drawn. O(n log n).

    Raises:
        ValueError: NaN, k outside of 1 .. n, beta < 0. TypeError: integers.

    References:
        Kirsch et al., TMLR 2023, section 3 (soft-rank acquisition).

    Example:
        >>> picked = softrank_sampling(torch.tensor([3.0, 9.0]), 1, generator=torch.Generator().manual_seed(0), beta=99)
        >>> picked.tolist()
        [1]
    """
    values = _inputs.matrix("score", score, ("n",))
    falling = (-values).sort().values
    below = torch.searchsorted(falling, -values)
    up_to = torch.searchsorted(falling, -values, right=True)
    return _draw(-((below + up_to + 1).double() / 2).log(), k, generator, beta)


def _draw(logits: Tensor, k: int, generator: torch.Generator, beta: float | int) -> Tensor:
    """Draw by Gumbel noise on beta logits ``(n,)``; those of -inf last, uniformly, whatever beta is."""
    k = _inputs.count(k, logits.shape[0])
    beta = _check.in_range("beta", beta, low=0)
    _check.generator("generator", generator)
    uniform = torch.rand(logits.shape[0], generator=generator, device=generator.device, dtype=torch.float64)
    noise = -(-uniform.clamp_min(torch.finfo(torch.float64).tiny).log()).log().to(logits.device)
    never = logits == -torch.inf
    noisy = torch.where(never, noise, beta * logits.masked_fill(never, 0) + noise)
    order = noisy.argsort(descending=True, stable=True)
    return order[never[order].int().argsort(stable=True)][:k]
