"""DR-IS's certificate: how far the rank disagreement of independent proxies is from its expectation.

K proxies, trained independently, rank the N samples by their losses: r_i^k = rank(l_i^k) / N. The statistic (ours; the
paper's own is not public)

    D_i = mean over pairs k < l of |r_i^k - r_i^l|

is a U-statistic of order two with a kernel in [0, 1], so Hoeffding's inequality for U-statistics and a union bound
give, with probability at least 1 - delta, for all i at once,

    |D_i - E D_i| <= t = sqrt( log(2N / delta) / (2 floor(K/2)) ):

the rate sqrt(log(N/delta) / K) of the paper. Two samples whose D differ by more than 2t are in the right order.

D is at most about 1/2, so 2t exceeds every possible gap until K is near 16 log(2N / delta), some 170 proxies for a
thousand samples; and where the kinds of samples overlap in E D no number of proxies puts a gap between them. What can
be had earlier is `certified_sides`: which samples are above a cut, and which below, by intervals that hold for all.

References:
    Disagreement-Regularized Importance Sampling for Adversarial Label Corruption (DR-IS), its abstract.
    W. Hoeffding, Probability inequalities for sums of bounded random variables, JASA 58 (1963), section 5b.
    A. Maurer, M. Pontil, Empirical Bernstein bounds and sample variance penalization, COLT 2009, theorem 4.
    J. N. Arvesen, Jackknifing U-statistics, Annals of Mathematical Statistics 40 (1969).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.theory import _conditions

__all__ = [
    "Separation",
    "Sides",
    "block_disagreement",
    "block_ranks",
    "certified_sides",
    "certify",
    "disagreement_radius",
    "mean_rank_distance",
    "proxies_needed",
]


def mean_rank_distance(ranks: Float[Tensor, "k n"] | Numbers) -> Float[Tensor, " n"]:
    """Return D_i, the mean over pairs of proxies of |r_i^k - r_i^l|; O(K log K) a sample, without the K^2 pairs.

    Of ranks: `steelyard.selectors.rank_disagreement` takes losses, which it ranks first.

    Args:
        ranks: ``(K, N)`` normalised ranks in [0, 1], one row a proxy, K >= 2.

    Example:
        >>> mean_rank_distance(torch.tensor([[0.5, 1.0], [1.0, 0.5], [1.0, 0.5]])).tolist()
        [0.3333333333333333, 0.3333333333333333]
    """
    ranks = _check.floats("ranks", ranks, ("k", "n"))
    k = ranks.shape[0]
    if k < 2:
        raise ValueError(f"disagreement needs at least 2 proxies, got {k}")
    if not bool(((ranks >= 0) & (ranks <= 1)).all()):
        raise ValueError("ranks must be normalised to [0, 1]: divide them by the number of samples")
    place = torch.arange(k, dtype=torch.float64)
    return (2 * place - (k - 1)) @ ranks.double().sort(dim=0).values / (k * (k - 1) / 2)


def disagreement_radius(n: int, k: int, delta: float) -> float:
    """Return t = sqrt(log(2N/delta) / (2 floor(K/2))), in the units of D (a fraction of the ranks).

    Example:
        >>> round(disagreement_radius(1000, 200, 0.05), 3)
        0.23
    """
    n = _check.integer("n", n, low=1)
    k = _check.integer("k", k, low=2)
    _conditions.confidence(delta)
    return math.sqrt(math.log(2 * n / delta) / (2 * (k // 2)))


def proxies_needed(n: int, gap: float, delta: float) -> int:
    """Return the least even K with 2t < gap: how many proxies certify a separation of `gap`.

    K = 2 (floor(2 log(2N/delta) / gap^2) + 1); `gap` in the units of D, in (0, 1]. O(1).

    Example:
        >>> k = proxies_needed(1000, 0.3, 0.05)
        >>> k, 2 * disagreement_radius(1000, k, 0.05) < 0.3
        (472, True)
    """
    n = _check.integer("n", n, low=1)
    gap = _check.in_range("gap", gap, low=0.0, high=1.0, open_low=True)
    _conditions.confidence(delta)
    return 2 * (math.floor(2 * math.log(2 * n / delta) / gap**2) + 1)


@dataclass(frozen=True)
class Separation:
    """The widest gap in the disagreements, and whether it certifies the split.

    Attributes:
        high: ``(N,)`` whether the sample is above the gap (DR-IS keeps these).
        gap: D of the lowest sample above minus D of the highest below.
        radius: t. delta: probability that the certificate is wrong.
    """

    high: Bool[Tensor, " n"]
    gap: float
    radius: float
    delta: float

    @property
    def is_certified(self) -> bool:
        """Whether gap > 2t: then every sample above has a greater expected disagreement than every one below."""
        return self.gap > 2 * self.radius


def certify(ranks: Float[Tensor, "k n"] | Numbers, delta: float) -> Separation:
    """Split the samples at the widest gap of D and say whether the split is certified at level `delta`.

    gap = D at the split's upper side - D at its lower side, against 2t; O(N K log K). The proxies must be independent
    given the samples: ensembles that share data order or a warm start are not.
    """
    ranks = _check.floats("ranks", ranks, ("k", "n"))
    n = ranks.shape[1]
    if n < 2:
        raise ValueError(f"a split needs at least 2 samples, got {n}")
    disagreement = mean_rank_distance(ranks)
    ordered, order = disagreement.sort()
    gaps = ordered[1:] - ordered[:-1]
    cut = int(gaps.argmax())
    high = torch.zeros(n, dtype=torch.bool)
    high[order[cut + 1 :]] = True
    return Separation(high, float(gaps[cut]), disagreement_radius(n, ranks.shape[0], delta), delta)


@dataclass(frozen=True)
class Sides:
    """Which samples are certified to be on one side of a cut.

    Attributes:
        above, below: ``(N,)`` whether E D_i is above, or below, the cut.
        estimate: ``(N,)`` of E D_i. radius: ``(N,)`` of the interval about it.
        asymptotic: the intervals hold for K to infinity only.
    """

    above: Bool[Tensor, " n"]
    below: Bool[Tensor, " n"]
    estimate: Float[Tensor, " n"]
    radius: Float[Tensor, " n"]
    asymptotic: bool

    @property
    def share(self) -> float:
        """The share of the samples that are certified."""
        return float((self.above | self.below).double().mean())


Interval = Literal["hoeffding", "bernstein", "jackknife"]


def certified_sides(
    ranks: Float[Tensor, "k n"] | Numbers, cut: float, delta: float, interval: Interval = "hoeffding"
) -> Sides:
    """Return which samples have an expected disagreement above `cut`, and which one below, at level `delta`.

    The intervals hold for all samples at once (a union bound), so the cut may be chosen after the data, as the median
    of D. The proxies must be independent given the samples.

    - "hoeffding": D_i within t. Finite K.
    - "bernstein": the mean over floor(K/2) disjoint pairs of proxies, whose distances are independent, within
      sqrt(2 V L / M) + 7 L / (3 (M - 1)), L = log(4N / delta), V their sample variance (Maurer and Pontil, twice for
      two sides). Finite K; narrower where proxies agree.
    - "jackknife": D_i within the normal quantile at delta / (2N) times the jackknife's standard error. It is right for
      K to infinity only, and says so.

    O(N K log K).

    Args:
        ranks: ``(K, N)`` normalised ranks in [0, 1]; K >= 4 for "bernstein", >= 3 for "jackknife".
        cut: in the units of D.
        delta: the probability that any sample is certified wrongly.
        interval: which.

    Raises:
        ValueError: too few proxies, ranks outside of [0, 1], delta outside of (0, 1).

    Example:
        >>> ranks = block_ranks([1, 1, 30], 2000, torch.Generator().manual_seed(0))
        >>> sides = certified_sides(ranks, 0.1, 0.05)
        >>> sides.below[:2].tolist(), sides.above[2:].float().mean().item()
        ([True, True], 1.0)
    """
    ranks = _check.floats("ranks", ranks, ("k", "n")).double()
    cut = _check.in_range("cut", cut)
    disagreement = mean_rank_distance(ranks)
    _conditions.confidence(delta)
    k, n = ranks.shape
    if interval == "hoeffding":
        estimate, radius = disagreement, torch.full((n,), disagreement_radius(n, k, delta), dtype=torch.float64)
    elif interval == "bernstein":
        pairs = _check.integer("the number of proxies", k, low=4) // 2
        distances = (ranks[0 : 2 * pairs : 2] - ranks[1 : 2 * pairs : 2]).abs()
        estimate, size = distances.mean(0), math.log(4 * n / delta)
        radius = (2 * distances.var(0) * size / pairs).sqrt() + 7 * size / (3 * (pairs - 1))
    else:
        _check.choice("interval", interval, ("hoeffding", "bernstein", "jackknife"))
        _check.integer("the number of proxies", k, low=3)
        estimate = disagreement
        radius = NormalDist().inv_cdf(1 - delta / (2 * n)) * _jackknife_error(ranks, disagreement)
    return Sides(estimate - radius > cut, estimate + radius < cut, estimate, radius, interval == "jackknife")


def _jackknife_error(ranks: Tensor, disagreement: Tensor) -> Tensor:
    """Return the standard error of each D_i: from the D_i without one of the proxies."""
    k = ranks.shape[0]
    ordered, order = ranks.sort(dim=0)
    place = torch.arange(k, dtype=torch.float64)[:, None]
    before = ordered.cumsum(0) - ordered  # the sum of the smaller ones
    after = ordered.sum(0) - before - ordered
    distances = torch.empty_like(ordered)  # of each proxy to all others, summed
    distances.scatter_(0, order, place * ordered - before + after - (k - 1 - place) * ordered)
    without = (disagreement * (k * (k - 1) / 2) - distances) / ((k - 1) * (k - 2) / 2)
    return ((k - 1) / k * (without - without.mean(0)).square().sum(0)).sqrt()


def block_ranks(blocks: Sequence[int], k: int, generator: torch.Generator) -> Float[Tensor, "k n"]:
    """Return ranks of K independent proxies that agree on the order of blocks and shuffle evenly inside each.

    A model whose E D_i is known exactly (`block_disagreement`), to measure the certificate by: small blocks are samples
    on which proxies agree, large ones those on which they do not.

    Args:
        blocks: sizes of the blocks, lowest ranks first; N is their sum.
    """
    if not len(blocks):
        raise ValueError("blocks is empty: give the size of one at least")
    columns, start = [], 0
    for size in blocks:
        _check.integer("blocks", size, low=1)
        columns.append(torch.rand(k, size, generator=generator, dtype=torch.float64).argsort(1) + start + 1)
        start += size
    return torch.cat(columns, dim=1).double() / start


def block_disagreement(blocks: Sequence[int]) -> Float[Tensor, " n"]:
    """Return E D_i under `block_ranks`, exactly: (B^2 - 1) / (3 B N) in a block of B samples.

    The mean distance of two independent uniform places in 1 .. B, over N.
    """
    n = sum(_check.integer("blocks", size, low=1) for size in blocks)
    if not n:
        raise ValueError("blocks is empty: give the size of one at least")
    return torch.cat([torch.full((size,), (size**2 - 1) / (3 * size * n), dtype=torch.float64) for size in blocks])
