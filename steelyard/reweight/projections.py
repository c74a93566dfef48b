"""Exact Euclidean projections onto box, simplex and ball, in time linear in n.

Both thresholds solve ``sum_i clamp(x_i - v, 0, upper) = total`` for v: a piecewise linear, falling function.
Newton's method lands on the root once it is on the right piece. A bracket makes it safe where the function is
not convex, and the median of the breakpoints left in it, where Newton dawdles, halves them: O(n) work in the
worst case, a few passes over shrinking data in practice. It stops when the piece is right; no tolerance.

Over shares of several ranks the same search runs on all of them at once: a round asks for one all-reduce of four
numbers, and the median is the weighted median of the ranks' own, which leaves at most three quarters of the
breakpoints. So the rounds are logarithmic in n in the worst case, and the result is that of one process to rounding.

A long vector of one process is read four times: checked, for its ends, for its threshold, for the result. The
thresholds of a random sample bracket that of the whole; one pass then sums what the bracket settles and gathers the few
entries that it does not, and the search continues with those. A root outside of the bracket only costs time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.distributed import ALONE, Ranks

__all__ = ["project_ball", "project_box_simplex"]

_CHUNK = 1 << 15  # entries a thread: two such chunks in float64 stay in its cache, where the passes are made
_SAMPLE = 1 << 15  # entries that bracket the threshold of a vector of at least `_LONG`
_LONG = 1 << 19
_SPREADS = 6.0  # half-width of the bracket, in standard deviations of the sample's sum
_NEWTON_STEPS = 8  # Newton steps that may fail to halve the undecided entries before a median does it


def project_box_simplex(
    probabilities: Float[Tensor, " n"] | Numbers, budget: float | int, *, equality: bool = True, ranks: Ranks = ALONE
) -> Float[Tensor, " n"]:
    """Project onto {0 <= s <= 1, sum s = budget}, or with ``equality=False`` {0 <= s <= 1, sum s <= budget}.

    Args:
        probabilities: ``(n,)`` finite; not changed.
        budget: the sum, the K of the paper, >= 0; need not be whole. Taken as it is: shares of the samples are for
            `ConstraintSet` to make numbers of (`budget_of`).
        equality: whether the sum is held at the budget or only below it.
        ranks: the processes that hold the probabilities; each gives its own share and gets that share of the nearest
            point. n and the budget are of all.

    Returns:
        ``(n,)`` the nearest point, ``clamp(s - v, 0, 1)`` for one scalar v found in float64; order is kept.

    Raises:
        ValueError: NaN or infinite entries, a negative budget, or an equality budget above n.
        RankError: another rank's share has NaN or infinite entries.

    References:
        Zhou et al., "Probabilistic Bilevel Coreset Selection", ICML 2022 (this form; they bisect for v).

    Example:
        >>> project_box_simplex(torch.tensor([0.9, 0.6, -0.3]), 1.0)
        tensor([0.6500, 0.3500, 0.0000])
    """
    probabilities = ranks.together(lambda: _numbers("probabilities", probabilities))
    budget = _check.in_range("budget", budget, low=0.0)
    feasible = 0.0 if equality else _total(probabilities, lambda part: part.clamp_(0, 1).sum())
    own = probabilities.new_tensor([probabilities.numel(), feasible], dtype=torch.float64)
    count, feasible = ranks.sum(own).tolist()
    if equality and budget > count:
        raise ValueError(
            f"budget is {budget}, but {count:.0f} probabilities in [0, 1] cannot sum to more than {count:.0f}; "
            f"take a budget of at most {count:.0f}"
        )
    if not equality and (budget >= count or feasible <= budget):
        return probabilities.clamp(0, 1)
    if budget == 0 or budget == count:
        return torch.full_like(probabilities, budget / max(count, 1))
    threshold = _threshold(probabilities, budget, 1.0, ranks)
    return _mapped(probabilities, lambda part: part.sub_(threshold).clamp_(0, 1))


def project_ball(
    weights: Float[Tensor, " n"] | Numbers, radius: float | int, *, p: int = 2, ranks: Ranks = ALONE
) -> Float[Tensor, " n"]:
    """Project onto {w >= 0, ||w||_p <= radius}, p = 1 or 2.

    Args:
        weights: ``(n,)`` finite; not changed.
        radius: >= 0.
        p: 1 (soft threshold: small weights become 0) or 2 (scale).
        ranks: as in `project_box_simplex`.

    Returns:
        ``(n,)`` the nearest point; order is kept.

    Raises:
        ValueError: NaN or infinite entries, a negative radius, or another p.
        RankError: another rank's share has NaN or infinite entries.

    Example:
        >>> project_ball(torch.tensor([3.0, 4.0, -1.0]), 1.0)
        tensor([0.6000, 0.8000, 0.0000])
        >>> project_ball(torch.tensor([3.0, 4.0, -1.0]), 2.0, p=1)
        tensor([0.5000, 1.5000, 0.0000])
    """
    weights = ranks.together(lambda: _numbers("weights", weights))
    radius, p = _check.in_range("radius", radius, low=0.0), _check.choice("p", p, [1, 2])
    own = _total(weights, lambda part: part.clamp_(min=0).sum() if p == 1 else part.clamp_(min=0) @ part)
    power = float(ranks.sum(weights.new_tensor(own, dtype=torch.float64)))
    size = power if p == 1 else math.sqrt(power)
    if size <= radius:
        return weights.clamp(min=0)
    if p == 2:  # the ball is centred at the tip of the cone, so projecting onto one, then the other, is exact
        return weights.clamp(min=0).mul_(radius / size)
    if radius == 0:
        return torch.zeros_like(weights)
    threshold = _threshold(weights, radius, math.inf, ranks)
    return _mapped(weights, lambda part: part.sub_(threshold).clamp_(min=0))


def _numbers(name: str, values: Tensor | Numbers) -> Tensor:
    return _check.finite(name, _check.floats(name, values, ("n",)))


def _chunks(values: Tensor) -> Iterator[Tensor]:
    """Yield `values` chunk by chunk in float64, each in the same buffer, which the caller may write to."""
    on_cpu = values.device.type == "cpu"
    size = min(_CHUNK * torch.get_num_threads(), values.numel()) if on_cpu else values.numel()
    buffer = torch.empty(size, dtype=torch.float64, device=values.device)
    for part in values.split(max(size, 1)):
        yield buffer[: part.numel()].copy_(part)


def _total(values: Tensor, term: Callable[[Tensor], Tensor]) -> float:
    return sum(float(term(part)) for part in _chunks(values))


def _mapped(values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply an elementwise function in float64; every entry is rounded once."""
    result, start = torch.empty_like(values), 0
    for part in _chunks(values):
        result[start : start + part.numel()] = function(part)
        start += part.numel()
    return result


def _threshold(values: Tensor, total: float | int, upper: float, ranks: Ranks) -> float:
    """Solve sum clamp(values - v, 0, upper) = total for v; values ``(n,)``, 0 < total < n * upper."""
    found = _long(values, total, upper) if ranks.size == 1 and values.numel() >= _LONG else None
    return _whole(values.double(), total, upper, ranks) if found is None else found


def _long(values: Tensor, total: float | int, upper: float) -> float | None:
    """Return the root by a bracket from a sample; None where it lies outside."""
    lowest, highest = (float(end) for end in values.aminmax())
    near = _bracket(values, total, upper, lowest - total / values.numel(), highest)
    rest, known = _gather(values, *near, upper)
    if not _size(rest, known, near[0], upper) >= total >= _size(rest, known, near[1], upper):
        return None
    return _search(rest, known, near, sum(near) / 2, total, upper, ALONE)


def _bracket(values: Tensor, total: float | int, upper: float, low: float, high: float) -> tuple[float, float]:
    """Return where the threshold is all but certain to lie, from a random sample of the entries."""
    generator = torch.Generator().manual_seed(0)  # its own: a projection draws from nobody's random numbers
    which = torch.randint(values.numel(), (_SAMPLE,), generator=generator).to(values.device)
    sample, share = values[which].double(), total * _SAMPLE / values.numel()
    middle = _whole(sample, share, upper, ALONE)
    spread = _SPREADS * math.sqrt(_SAMPLE) * float((sample - middle).clamp_(0, upper).std())
    return (
        max(low, _whole(sample, share + spread, upper, ALONE)) if share + spread < _SAMPLE * upper else low,
        min(high, _whole(sample, share - spread, upper, ALONE)) if share > spread else high,
    )


def _gather(values: Tensor, low: float, high: float, upper: float) -> tuple[Tensor, tuple[int, int, float]]:
    """Do what `_settle` does, with nothing known, in one pass.

    Sums over all entries cost less than sums over some of them, so what the gathered ones add is taken off afterwards.
    """
    start, near = (low + high) / 2, (high - low) / 2 * (1 + 1e-9)  # rounding settles nothing that the bracket does not

    def outside(above: Tensor) -> Tensor:  # how far from [start, start + upper]; below 0 inside
        return -above if upper == math.inf else (above - upper / 2).abs_().sub_(upper / 2)

    def sums(above: Tensor, out: Tensor) -> Tensor:
        return torch.stack([above.clamp(0, upper).sum(), out.sign().sum(), (above - upper).sign_().sum()])

    everything, rest = torch.zeros(3, dtype=torch.float64, device=values.device), []
    for part in _chunks(values):
        above = part - start
        out = outside(above)
        everything += sums(above, out)
        rest.append(part[out.abs_() < near])
    undecided = torch.cat(rest)
    above = undecided - start
    clamped, out_sign, ones_sign = (everything - sums(above, outside(above))).tolist()
    count = values.numel() - undecided.numel()
    ones, active = round(count + ones_sign) // 2, round(count - out_sign) // 2
    return undecided, (ones, active, clamped - _times(ones, upper) + active * start)


def _size(values: Tensor, known: tuple[int, int, float], point: float, upper: float) -> float:
    ones, active, linear, _ = _count(values, known, point, upper, ALONE)
    return _times(ones, upper) + linear - active * point


def _whole(values: Tensor, total: float | int, upper: float, ranks: Ranks) -> float:
    extent = ranks.stack(_extent(values))  # (ranks, 4)
    count, entries = float(extent[:, 2].sum()), float(extent[:, 3].sum())
    ends = float(extent[:, 0].min()) - total / count, float(extent[:, 1].max())  # sum >= total; sum = 0
    newton = (entries - total) / count  # the root if no entry clamps
    return _search(values, (0, 0, 0.0), ends, newton, total, upper, ranks)


def _search(
    values: Tensor,
    known: tuple[int, int, float],
    ends: tuple[float, float],
    newton: float,
    total: float | int,
    upper: float,
    ranks: Ranks,
) -> float:
    """Find the root between the ends, trying `newton` first.

    `known`: entries at `upper`, entries in between, sum of those, that are settled on all of it.
    """
    low, high = ends
    piece: tuple[int, int] | None = None
    patience, goal = _NEWTON_STEPS, math.inf
    while True:
        values, known = _settle(values, known, low, high, upper)
        if not (patience and low < newton < high):
            newton, piece, patience = _median_breakpoint(values, low, high, upper, ranks), None, _NEWTON_STEPS
        point = newton
        ones, active, linear, undecided = _count(values, known, point, upper, ranks)
        if not undecided:  # one linear piece is left
            return (_times(ones, upper) + linear - total) / active if active else low
        patience -= 1
        if undecided <= goal:
            patience, goal = _NEWTON_STEPS, undecided // 2
        excess = _times(ones, upper) + linear - active * point - total
        if excess == 0:
            return point
        newton = point + excess / active if active else math.nan
        if piece == (ones, active):  # `point` was the root of this piece and lies on it: it is the root
            return newton
        piece = (ones, active)
        low, high = (point, high) if excess > 0 else (low, point)


def _extent(values: Tensor) -> Tensor:
    """Return the least and the greatest entry, how many there are, and their sum ``(4,)``; there may be none."""
    infinite = values.new_tensor(math.inf)
    ends = values.aminmax() if values.numel() else (infinite, -infinite)
    return torch.stack([*ends, *_count_and_sum(values)])


def _count_and_sum(values: Tensor) -> Tensor:
    return torch.stack([values.new_tensor(values.numel(), dtype=torch.float64), values.sum(dtype=torch.float64)])


def _settle(
    values: Tensor, known: tuple[int, int, float], low: float, high: float, upper: float
) -> tuple[Tensor, tuple[int, int, float]]:
    """Move the entries without a breakpoint in (low, high) from `values` to `known`."""
    below = values - upper
    ones, linear = below >= high, (values >= high) & (below <= low)
    entries = values[linear]
    known = (known[0] + int(ones.sum()), known[1] + entries.numel(), known[2] + float(entries.sum()))
    return values[~(ones | linear | (values <= low))], known


def _count(
    values: Tensor, known: tuple[int, int, float], point: float, upper: float, ranks: Ranks
) -> tuple[int, int, float, int]:
    """Count at v = point: entries at `upper`, entries strictly in between, the sum of those, and entries undecided."""
    ones = values - upper >= point
    entries = values[(values > point) & ~ones]
    own = [known[0] + int(ones.sum()), known[1] + entries.numel(), known[2] + float(entries.sum()), values.numel()]
    at_upper, active, linear, undecided = ranks.sum(values.new_tensor(own)).tolist()
    return int(at_upper), int(active), linear, int(undecided)


def _median_breakpoint(values: Tensor, low: float, high: float, upper: float, ranks: Ranks) -> float:
    """Return a breakpoint in (low, high) with at least a quarter of them on either side (alone: the median).

    The weighted median of the ranks' medians; `low` if there is none left.
    """
    breakpoints = torch.cat([values, values - upper])
    breakpoints = breakpoints[(breakpoints > low) & (breakpoints < high)]
    median = breakpoints.median() if breakpoints.numel() else values.new_tensor(math.inf)
    medians, counts = ranks.stack(torch.stack([median, values.new_tensor(breakpoints.numel())])).unbind(1)
    if not counts.any():
        return low
    order = medians.argsort()
    halfway = torch.searchsorted(counts[order].cumsum(0), counts.sum() / 2)
    return float(medians[order][halfway])


def _times(count: int, upper: float) -> float:
    return count * upper if count else 0.0  # upper may be infinite; then the count is 0
