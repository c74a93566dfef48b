"""Exact Euclidean projections onto box, simplex and ball, in time linear in n.

Both thresholds solve ``sum_i clamp(x_i - v, 0, upper) = total`` for v: a piecewise linear, falling function.
Newton's method lands on the root once it is on the right piece. A bracket makes it safe where the function is
not convex, and the median of the breakpoints left in it, where Newton dawdles, halves them: O(n) work in the
worst case, a few passes over shrinking data in practice. It stops when the piece is right; no tolerance.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard import _check

__all__ = ["project_ball", "project_box_simplex"]

_NEWTON_STEPS = 8  # Newton steps that may fail to halve the undecided entries before a median does it


def project_box_simplex(
    probabilities: Float[Tensor, " n"], budget: float | int, *, equality: bool = True
) -> Float[Tensor, " n"]:
    """Project onto {0 <= s <= 1, sum s = budget}, or with ``equality=False`` {0 <= s <= 1, sum s <= budget}.

    Args:
        probabilities: ``(n,)`` finite; not changed.
        budget: the K of the paper, >= 0; need not be whole.
        equality: whether the sum is held at the budget or only below it.

    Returns:
        ``(n,)`` the nearest point, ``clamp(s - v, 0, 1)`` for one scalar v found in float64; order is kept.

    Raises:
        ValueError: NaN or infinite entries, a negative budget, or an equality budget above n.

    References:
        Zhou et al., "Probabilistic Bilevel Coreset Selection", ICML 2022 (this form; they bisect for v).

    Example:
        >>> project_box_simplex(torch.tensor([0.9, 0.6, -0.3]), 1.0)
        tensor([0.6500, 0.3500, 0.0000])
    """
    _check.finite("probabilities", probabilities)
    _check.in_range("budget", float(budget), low=0.0)
    count = probabilities.numel()
    if equality and budget > count:
        raise ValueError(
            f"budget is {budget}, but {count} probabilities in [0, 1] cannot sum to more than {count}; "
            f"lower the budget or pass equality=False"
        )
    clamped = probabilities.clamp(0, 1)
    if not equality and (budget >= count or clamped.sum(dtype=torch.float64) <= budget):
        return clamped
    if budget == 0 or budget == count:
        return torch.full_like(probabilities, budget / max(count, 1))
    values = probabilities.double()
    return (values - _threshold(values, budget, upper=1.0)).clamp_(0, 1).to(probabilities.dtype)


def project_ball(weights: Float[Tensor, " n"], radius: float | int, *, p: int = 2) -> Float[Tensor, " n"]:
    """Project onto {w >= 0, ||w||_p <= radius}, p = 1 or 2.

    Args:
        weights: ``(n,)`` finite; not changed.
        radius: >= 0.
        p: 1 (soft threshold: small weights become 0) or 2 (scale).

    Returns:
        ``(n,)`` the nearest point; order is kept.

    Raises:
        ValueError: NaN or infinite entries, a negative radius, or another p.

    Example:
        >>> project_ball(torch.tensor([3.0, 4.0, -1.0]), 1.0)
        tensor([0.6000, 0.8000, 0.0000])
        >>> project_ball(torch.tensor([3.0, 4.0, -1.0]), 2.0, p=1)
        tensor([0.5000, 1.5000, 0.0000])
    """
    _check.finite("weights", weights)
    _check.in_range("radius", float(radius), low=0.0)
    _check.choice("p", p, [1, 2])
    positive = weights.clamp(min=0)
    size = float(torch.linalg.vector_norm(positive, ord=p, dtype=torch.float64))
    if size <= radius:
        return positive
    if p == 2:  # the ball is centred at the tip of the cone, so projecting onto one, then the other, is exact
        return positive * (radius / size)
    if radius == 0:
        return torch.zeros_like(weights)
    values = positive.double()
    return (values - _threshold(values, radius, upper=math.inf)).clamp_(min=0).to(weights.dtype)


def _threshold(values: Tensor, total: float | int, upper: float) -> float:
    """Solve sum clamp(values - v, 0, upper) = total for v; values ``(n,)`` float64, 0 < total < n * upper."""
    low, high = float(values.min()) - total / values.numel(), float(values.max())  # sum >= total; sum = 0
    newton = float(values.sum() - total) / values.numel()  # the root if no entry clamps
    known = (0, 0, 0.0)  # entries at `upper`, entries in between, sum of those: settled on all of (low, high)
    piece: tuple[int, int] | None = None
    patience, goal = _NEWTON_STEPS, values.numel() // 2
    while True:
        values, known = _settle(values, known, low, high, upper)
        if not values.numel():  # one linear piece is left
            ones, active, linear = known
            return (_times(ones, upper) + linear - total) / active if active else low
        patience -= 1
        if values.numel() <= goal:
            patience, goal = _NEWTON_STEPS, values.numel() // 2
        if not (patience and low < newton < high):
            newton, piece, patience = _median_breakpoint(values, low, high, upper), None, _NEWTON_STEPS
        point = newton
        ones, active, linear = _count(values, known, point, upper)
        excess = _times(ones, upper) + linear - active * point - total
        if excess == 0:
            return point
        newton = point + excess / active if active else math.nan
        if piece == (ones, active):  # `point` was the root of this piece and lies on it: it is the root
            return newton
        piece = (ones, active)
        low, high = (point, high) if excess > 0 else (low, point)


def _settle(
    values: Tensor, known: tuple[int, int, float], low: float, high: float, upper: float
) -> tuple[Tensor, tuple[int, int, float]]:
    """Move the entries without a breakpoint in (low, high) from `values` to `known`."""
    below = values - upper
    ones, linear = below >= high, (values >= high) & (below <= low)
    entries = values[linear]
    known = (known[0] + int(ones.sum()), known[1] + entries.numel(), known[2] + float(entries.sum()))
    return values[~(ones | linear | (values <= low))], known


def _count(values: Tensor, known: tuple[int, int, float], point: float, upper: float) -> tuple[int, int, float]:
    """Count at v = point: entries at `upper`, entries strictly in between, and the sum of those."""
    ones = values - upper >= point
    entries = values[(values > point) & ~ones]
    return known[0] + int(ones.sum()), known[1] + entries.numel(), known[2] + float(entries.sum())


def _median_breakpoint(values: Tensor, low: float, high: float, upper: float) -> float:
    breakpoints = torch.cat([values, values - upper])
    return float(breakpoints[(breakpoints > low) & (breakpoints < high)].median())


def _times(count: int, upper: float) -> float:
    return count * upper if count else 0.0  # upper may be infinite; then the count is 0
