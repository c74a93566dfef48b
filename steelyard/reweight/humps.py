"""One hump or two: the exact two-means cut of numbers, and a test of the valley between two humps.

Learned keep-probabilities have passed a projection that clips them at 0 and 1. So one hump, clipped, piles up at both
ends and looks like two: a bell curve, clipped wider and wider, has any share of its variance between the ends. The test
here knows of the clipping; the share of variance does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers

__all__ = ["TwoMeans", "Valley", "adjusted_rand", "two_means", "valley"]

_WIDTH = 0.1  # of a window: a tenth of [0, 1]
_WINDOWS = 2 * round(1 / _WIDTH) - 1  # each begins half a window after the one before


@dataclass(frozen=True)
class TwoMeans:
    """The cut of numbers into two groups of least variance within.

    Attributes:
        at: halfway between the greatest number below and the least above.
        low, high: the means of the two groups.
        share_between: the share of the variance that lies between the groups, in (0, 1]; of a uniform distribution
            0.75, of a normal one 0.64. By itself it does not tell two humps from one: see `valley`.
    """

    at: float
    low: float
    high: float
    share_between: float


def two_means(values: Float[Tensor, " n"] | Numbers) -> TwoMeans:
    """Cut numbers in two so that the variance within the groups is least: two-means in one dimension, exactly.

    Every cut of the sorted numbers is tried, by prefix sums. Of equally good ones the lowest is taken.

    Args:
        values: ``(n,)`` finite.

    Returns:
        The cut. O(n log n).

    Raises:
        ValueError: fewer than two different numbers, or NaN or infinite ones.

    References:
        Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man, and
        Cybernetics, 1979, equations 14 to 19 (there of a histogram's bins).

    Example:
        >>> two_means([0.0, 1.0, 9.0, 10.0])
        TwoMeans(at=5.0, low=0.5, high=9.5, share_between=0.9878048780487805)
    """
    given = _check.finite("values", _check.floats("values", values, ("n",)))
    count = len(given)
    ordered = given.detach().double().sort().values
    if not count or float(ordered[0]) == float(ordered[-1]):
        raise ValueError(f"values must hold two different numbers to be cut in two, all {count} are equal")
    centre, scale = ordered.mean(), ordered[-1] - ordered[0]  # without them large values would leave no digits
    scaled = (ordered - centre) / scale
    below = torch.arange(1, count, dtype=torch.float64, device=ordered.device)
    sums = scaled.cumsum(0)[:-1]
    between = count * sums.square() / (below * (count - below))  # their total is `scaled`'s sum of squares
    between[ordered[1:] <= ordered[:-1]] = -math.inf  # no cut between equal numbers
    place = int(between.argmax()) + 1
    share = float(between[place - 1] / scaled.square().sum())
    low, high = ordered[:place].mean(), ordered[place:].mean()
    return TwoMeans(_between(ordered, place), float(low), float(high), min(share, 1.0))


@dataclass(frozen=True)
class Valley:
    """The deepest valley of keep-probabilities, and how sure it is that one hump has none such.

    Attributes:
        at: its middle, in (0, 1).
        ratio: the mean density on the side where that is less, over the density in the valley. One hump has at most 1
            (see `valley`); infinite where the valley is empty.
        p_value: the probability of a valley as deep in a sample of one hump, at most; corrected for the number of
            places that were looked at.
        low, high: how many samples lie below the valley and above it.
        inside: how many lie in it.
    """

    at: float
    ratio: float
    p_value: float
    low: int
    high: int
    inside: int


def valley(probabilities: Float[Tensor, " n"] | Numbers, *, reach: float | int = 0.5) -> Valley:
    """Return the deepest valley of keep-probabilities, tested against one hump of any shape that was clipped.

    The null hypothesis: s_i = min(max(z_i, 0), 1) with independent z_i whose density has one hump (it rises, then
    falls) and ends within `reach` of [0, 1]. Take a window [x, x + h] of [0, 1]. Where the hump's top is not to the
    right of it the density falls from the window on, so a z in [x, 1 + reach] lies in the window with probability
    h / (1 + reach - x) or more; where the top is not to the left, the same holds of [-reach, x + h]. One of the two is
    so. The p-value of a window is therefore the greater of two binomial tails of its count, and that of the valley
    the least of all windows' times their number. No shape is assumed, and so no share of the variance is compared
    with that of a normal or a uniform distribution.

    Args:
        probabilities: ``(n,)`` in [0, 1].
        reach: how far beyond [0, 1] the numbers went before they were clipped, at most. The default, half the
            interval, is what `Maple`'s steps of 0.1 along a cosine reach in 30 steps. A larger one asks for a
            deeper valley.

    Returns:
        The valley of least p-value, of equal ones that of the greatest ratio.

    Raises:
        ValueError: no samples, entries outside [0, 1], a reach below 0.

    Example:
        >>> s = torch.cat([torch.linspace(0, 0.3, 600), torch.linspace(0.8, 1, 400)])
        >>> found = valley(s)
        >>> found.ratio, found.p_value < 1e-6, found.low, found.inside, found.high
        (inf, True, 600, 0, 400)
        >>> valley(torch.linspace(0, 1, 100)).p_value
        1.0
    """
    given = _check.entries_in("probabilities", _check.floats("probabilities", probabilities, ("n",)), 0, 1)
    reach = _check.in_range("reach", reach, low=0.0)
    if not (count := len(given)):
        raise ValueError("probabilities is empty: there is nothing to look for a valley in")
    ordered = given.detach().double().cpu().sort().values
    start = torch.arange(_WINDOWS, dtype=torch.float64) * (_WIDTH / 2)
    low = torch.searchsorted(ordered, start)
    high = count - torch.searchsorted(ordered, start + _WIDTH, right=True)
    inside = count - low - high
    from_left, from_right = _WIDTH / (start + _WIDTH + reach), _WIDTH / (1 + reach - start)
    tail = torch.maximum(_binomial(inside, low + inside, from_left), _binomial(inside, high + inside, from_right))
    beside = torch.minimum(low / (start + reach).clamp_min(1e-9), high / (1 + reach - start - _WIDTH).clamp_min(1e-9))
    ratio = beside * _WIDTH / inside
    ratio[beside == 0] = 0.0
    depth = torch.where(tail == tail.min(), ratio, -1.0)
    deepest = (depth == depth.max()).nonzero().flatten()
    best = int(deepest[(len(deepest) - 1) // 2])  # of an empty stretch the middle
    return Valley(
        at=float(start[best]) + _WIDTH / 2,
        ratio=float(ratio[best]),
        p_value=min(1.0, _WINDOWS * float(tail[best])),
        low=int(low[best]),
        high=int(high[best]),
        inside=int(inside[best]),
    )


def adjusted_rand(one: Bool[Tensor, " n"] | Int[Tensor, " n"], two: Bool[Tensor, " n"] | Int[Tensor, " n"]) -> float:
    """Return how far two partitions of the same samples agree: 1 is the same groups, 0 what chance gives.

    Args:
        one, two: ``(n,)`` a group for each sample, by any number; the numbers need not match.

    Returns:
        The adjusted Rand index, at most 1; 1 where both have one group, or each sample alone.

    Raises:
        ValueError: lengths that differ, or no samples.

    References:
        Hubert and Arabie, "Comparing partitions", Journal of Classification, 1985, equation 5.

    Example:
        >>> adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2]))
        1.0
    """
    first, second = (_check.tensor(name, groups, ("n",)).cpu() for name, groups in (("one", one), ("two", two)))
    if not (count := _check.same_length(one=first, two=second)):
        raise ValueError("one and two are empty: there are no groups to compare")
    (_, rows), (_, columns) = (groups.unique(return_inverse=True) for groups in (first, second))
    table = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1, dtype=torch.float64)
    table.index_put_((rows, columns), torch.ones(count, dtype=torch.float64), accumulate=True)
    together, in_one, in_two = (float(_pairs(sizes)) for sizes in (table, table.sum(1), table.sum(0)))
    expected = in_one * in_two / max(count * (count - 1) / 2, 1)
    most = (in_one + in_two) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def _pairs(sizes: Tensor) -> Tensor:
    return (sizes * (sizes - 1) / 2).sum()


def _between(ordered: Tensor, place: int) -> float:
    """Return the middle of the gap before `place`; rounding does not put it on the upper number."""
    low, high = float(ordered[place - 1]), float(ordered[place])
    return min(low + (high - low) / 2, math.nextafter(high, low))


def _binomial(successes: Tensor, trials: Tensor, chance: Tensor) -> Tensor:
    """Return P(X <= successes) of X ~ Bin(trials, chance), entry by entry, float64; 1 where there are no trials."""
    found = torch.ones(len(successes), dtype=torch.float64)
    for place, (k, n, p) in enumerate(zip(successes.tolist(), trials.tolist(), chance.tolist(), strict=True)):
        if k < n and p < 1:
            j = torch.arange(k + 1, dtype=torch.float64)
            ways = math.lgamma(n + 1) - torch.lgamma(j + 1) - torch.lgamma(n - j + 1)
            found[place] = (ways + j * math.log(p) + (n - j) * math.log1p(-p)).logsumexp(0).exp()
    return found.clamp_(max=1.0)
