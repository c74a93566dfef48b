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

_BINS = 20  # equal bins of [0, 1], whose edges bound windows and stretches
_WIDTHS = (1, 2, 4)  # of windows, in bins


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
        at: the middle of the sparsest twentieth of [0, 1] in it: where to cut.
        ratio: the lower of the two humps over the valley: the density in the densest twentieth beside it, on the side
            where that is less, over that in the sparsest twentieth in it (infinite where that is empty). Numbers near
            an end count as spread from there to `reach` beyond it.
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


def valley(
    probabilities: Float[Tensor, " n"] | Numbers, *, reach: float | int = 0.5, margin: float | int = 0.05
) -> Valley:
    """Return the deepest valley of keep-probabilities, tested against one hump of any shape that was clipped.

    The null hypothesis: s_i = min(max(z_i, 0), 1) with independent z_i whose density has one hump (it rises, then
    falls) and ends within `reach` of [0, 1]. Take a window [x, x + h] of [0, 1] and a stretch from its right end to y.
    Where the density at the window's right end is not above the window's mean, it falls from there on, so a z in
    [x, y] lies in the window with probability h / (y - x) or more; where that at its left end is not above, the same
    holds to the left. With one hump one of the two is so. Of numbers away from 0 and 1 the z are known: y is any place
    up to 1 - margin. A last stretch takes the rest in, and ends at 1 + reach. The margin is there because every step is
    clipped: a sample that was pushed beyond 1 and then a little back is just below 1, and many such look like a hump.

    So a window has a tail of a binomial distribution for each stretch, least on each side where the stretch is
    densest. Its p-value is the greater of its two sides' least, and that of the valley the least of all windows' times
    the number of all stretches. No shape is assumed, and so no share of the variance is compared with that of a normal
    or a uniform distribution.

    Args:
        probabilities: ``(n,)`` in [0, 1].
        reach: how far beyond [0, 1] the numbers went before they were clipped, at most: it matters where many are
            near 0 or 1. The default, half the interval, is what `Maple`'s steps of 0.1 along a cosine reach in 30
            steps.
        margin: so near to 0 or 1 a number may have come back from beyond; taken in twentieths.

    Returns:
        The valley of least p-value, of equal ones that of the greatest ratio.

    Raises:
        ValueError: no samples, entries outside [0, 1], a reach below 0, a margin outside [0, 0.3].

    References:
        Feller, "An introduction to probability theory and its applications", volume 1, third edition, 1968, chapter VI,
        section 3: the bound of a binomial tail.

    Example:
        >>> s = torch.cat([torch.linspace(0, 0.3, 600), torch.linspace(0.8, 1, 400)])
        >>> found = valley(s)
        >>> found.ratio, found.p_value < 1e-6, found.low, found.inside, found.high
        (inf, True, 600, 0, 400)
        >>> valley(torch.linspace(0, 1, 100)).p_value
        1.0
    """
    given = _check.entries_in("probabilities", _check.floats("probabilities", probabilities, ("n",)), 0, 1)
    reach = float(_check.in_range("reach", reach, low=0.0))
    if not len(given):
        raise ValueError("probabilities is empty: there is nothing to look for a valley in")
    near = round(_check.in_range("margin", margin, low=0.0, high=0.3) * _BINS)
    s = given.detach().double().cpu()
    known = (s > near / _BINS) & (s < 1 - near / _BINS)
    bins = (s[known] * _BINS).long().bincount(minlength=_BINS)[near : _BINS - near].double()
    ends = float((s <= near / _BINS).sum()), float((s >= 1 - near / _BINS).sum())
    found = (_deepest(bins, ends, width, near + reach * _BINS) for width in _WIDTHS)
    return min(found, key=lambda one: (one[0], -one[1].ratio))[1]


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


def _deepest(bins: Tensor, ends: tuple[float, float], width: int, reach: float) -> tuple[float, Valley]:
    """Return the deepest valley, and the logarithm of its tail, which does not run out of range.

    Args:
        bins: how many numbers lie in each of the middle bins of [0, 1].
        ends: how many below and above these. reach: how far they may lie, in bins.
        width: of the windows.
    """
    start = torch.arange(1, len(bins) - width)
    right = _least_tail(bins, ends[1], start, width, reach)
    left = _least_tail(bins.flip(0), ends[0], start, width, reach).flip(0)
    tail = torch.maximum(right, left)
    sparsest = bins.unfold(0, width, 1)[1:-1].min(1).values
    ratio = _lower_peak(bins, ends, start, width, reach) / sparsest
    ratio[ratio.isnan()] = 0.0  # nothing in it, and nothing on one side
    depth = torch.where(tail == tail.min(), ratio, -1.0)
    place = _middle(depth == depth.max()) + 1  # of an empty stretch the middle
    below, within = ends[0] + float(bins[:place].sum()), bins[place : place + width]
    looks = len(bins) * sum(len(bins) - 1 - one for one in _WIDTHS)  # windows, times the stretches on a side of each
    return float(tail[place - 1]), Valley(
        at=((_BINS - len(bins)) / 2 + place + _middle(within == within.min()) + 0.5) / _BINS,
        ratio=float(ratio[place - 1]),
        p_value=min(1.0, looks * math.exp(float(tail[place - 1]))),
        low=int(below),
        high=int(float(bins.sum()) + sum(ends) - below - float(within.sum())),
        inside=int(within.sum()),
    )


def _middle(member: Tensor) -> int:
    """Return the middle one of the places that are true."""
    places = member.nonzero().flatten()
    return int(places[(len(places) - 1) // 2])


def _lower_peak(bins: Tensor, ends: tuple[float, float], start: Tensor, width: int, reach: float) -> Tensor:
    """Return, for each window, the densest bin on its left or on its right, where that is less."""
    beyond = [(end / reach if reach else math.inf) if end else 0.0 for end in ends]
    left = bins.cummax(0).values.clamp_min(beyond[0])[start - 1]
    right = bins.flip(0).cummax(0).values.flip(0).clamp_min(beyond[1])[start + width]
    return torch.minimum(left, right)


def _least_tail(bins: Tensor, end: float, start: Tensor, width: int, reach: float) -> Tensor:
    """Return, for each window, the logarithm of the least tail of those of the stretches to its right."""
    total = torch.cat([torch.zeros(1, dtype=torch.float64), bins.cumsum(0)])
    known, edge = torch.cat([total, total[-1:] + end]), torch.arange(len(bins) + 2, dtype=torch.float64)
    edge[-1] = len(bins) + reach
    stop = start + width
    inside, beside = total[stop] - total[start], known[None] - total[stop][:, None]
    length = (edge[None] - stop.double()[:, None]).clamp_min(0)  # 0: no stretch, so a tail of 1
    return _log_tail(inside[:, None], inside[:, None] + beside.clamp_min(0), width / (width + length)).min(1).values


def _log_tail(successes: Tensor, trials: Tensor, chance: Tensor) -> Tensor:
    """Return an upper bound of log P(X <= successes), X ~ Bin(trials, chance), and 0 from the mean on.

    With k successes of n it is log P(X = k) + log((n - k + 1) p / ((n + 1) p - k)), by a geometric series.
    """
    k, n = successes, trials
    below = (k < n * chance) & (chance < 1)
    p = torch.where(below, chance, 0.5)
    term = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) + k * p.log() + (n - k) * (-p).log1p()
    series = (n - k + 1) * p / torch.where(below, (n + 1) * p - k, 1.0)
    return torch.where(below, (term + series.log()).clamp_max(0), 0.0)


def _pairs(sizes: Tensor) -> Tensor:
    return (sizes * (sizes - 1) / 2).sum()


def _between(ordered: Tensor, place: int) -> float:
    """Return the middle of the gap before `place`; rounding does not put it on the upper number."""
    low, high = float(ordered[place - 1]), float(ordered[place])
    return min(low + (high - low) / 2, math.nextafter(high, low))
