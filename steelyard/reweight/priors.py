"""Priors: from scores of samples to keep-probabilities pi, pooled, and how an outer run uses them.

A score says which sample is worth more, not by how much: only its rank is used. Ranks become probabilities through
one sigmoid whose threshold is solved for, so that the probabilities sum to the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._text import few
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.constraints import ConstraintSet, budget_of
from steelyard.reweight.mask import check_probabilities
from steelyard.reweight.schedules import CosineDecay

if TYPE_CHECKING:
    from steelyard.selectors.direction import Direction

__all__ = ["Prior", "bernoulli_kl", "bernoulli_kl_gradient", "keep_probabilities", "pool"]

_CERTAIN = 20.0  # log-odds that 0 and 1 (and whatever lies beyond) count as: odds of 5e8, still a float32 below 1
_MOST = 0.9  # of a stratum: were it all kept, its scores would not count


def keep_probabilities(
    scores: Float[Tensor, " n"] | Numbers,
    budget: float | int | Mapping[int, float | int] | None,
    *,
    temperature: float | int = 0.2,
    strata: Int[Tensor, " n"] | Numbers | None = None,
    balanced: bool = False,
    of: str | Direction | None = None,
) -> Float[Tensor, " n"]:
    """Return pi_i = sigmoid((z_i - tau) / T): z the ranks of the scores, tau such that sum pi = K.

    z_i = (number of scores below a_i + half of those equal to a_i) / n, in (0, 1); ties share it, so constant scores
    give K / n everywhere. Any strictly rising function of the scores gives the same pi. Scores may be infinite:
    they rank first and last. A missing score (NaN) is no opinion: that sample gets K / n, and the others, ranked among
    themselves, share the rest of the budget.

    Args:
        scores: ``(n,)``, higher = more worth keeping (with `of`: as that score gives them).
        budget: K in [0, n], which need not be whole; in (0, 1) it is a share of the samples (see `budget_of`). With
            `strata` also one for each: a mapping from a stratum to the number of its samples that are kept (a number
            in any case, never a share).
        temperature: T. The log-odds of the best and the worst sample differ by 1 / T; by default 5, so that no
            sample is certain (with K = n / 2 the ends are at 0.92 and 0.08). T -> 0 keeps the K best.
        strata: ``(n,)`` where samples can be compared only with their like: ranks are taken within each stratum, and
            the probabilities of a stratum of n_c samples sum to K n_c / n. So the prior says nothing of one stratum
            against another. None: all samples are one.
        balanced: give the strata equal shares of the budget instead, as far as nine tenths of a stratum's samples go
            (what it cannot take goes to the others; a budget above nine tenths of all is shared by size).
        of: which score it is, a name in `steelyard.selectors.DIRECTIONS`: one whose high values mean hard or
            mislabelled (`el2n`) is turned round. None: nothing is.

    Returns:
        ``(n,)`` float64 (log-odds near 0 and 1 need its digits), sum K to rounding; not falling in the score (of a
        stratum).

    Raises:
        ValueError: no scores, a budget outside [0, n], temperature <= 0, strata of another length, an unknown name in
            `of`, or one of a score of unlabelled samples, which says nothing of what to keep; budgets of strata without
            `strata` or with `balanced`, for a stratum none, or one above the number of its samples.

    Example:
        >>> keep_probabilities(torch.tensor([0.1, 7.0, float("nan"), 0.3]), 2.0)
        tensor([0.1589, 0.8411, 0.5000, 0.5000], dtype=torch.float64)
    """
    from steelyard.selectors.direction import Direction, direction_of, turned  # a room that `Maple` alone does not need

    if of is not None and direction_of(of) is Direction.ASK:
        raise ValueError(
            f"of is {of!r}, a score that says which label to ask for, not which sample to keep; to keep the highest "
            f"anyway leave `of` out, to keep the lowest pass -scores"
        )
    values = turned(_check.floats("scores", scores, ("n",)), of)
    width = _check.in_range("temperature", temperature, low=0.0, open_low=True)
    if isinstance(budget, Mapping) and (strata is None or balanced):
        raise ValueError("budget is given for each stratum: that needs strata, and balanced=False")
    if strata is None:
        assert not isinstance(budget, Mapping)
        return _ranked(values, _resolved(budget, len(values)), width)
    groups = _check.integers("strata", strata).to(values.device)
    _check.same_length(scores=values, strata=groups)
    result = torch.empty(len(values), dtype=torch.float64, device=values.device)
    ids, sizes = groups.unique(return_counts=True)
    if isinstance(budget, Mapping):
        shares = _given_budgets(budget, dict(zip(ids.tolist(), sizes.tolist(), strict=True)))
    else:
        shares = _stratum_budgets(sizes.tolist(), _resolved(budget, len(values)), balanced)
    for stratum, share in zip(ids, shares, strict=True):
        member = groups == stratum
        result[member] = _ranked(values[member], share, width)
    return result


def _ranked(scores: Tensor, kept: float, temperature: float | int) -> Tensor:
    """Return what `keep_probabilities` does of one stratum, `kept` samples of it."""
    known = ~scores.isnan()
    values = scores.detach()[known].double()
    ordered = values.sort().values
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    ranks = (below + up_to).double() / max(2 * len(values), 1)
    base = kept / len(scores)
    result = torch.full((len(scores),), base, dtype=torch.float64, device=scores.device)
    result[known] = _under_budget(ranks / temperature, base * len(values))
    return result


def pool(
    priors: Sequence[Float[Tensor, " n"] | Numbers],
    budget: float | int | None,
    *,
    weights: Sequence[float | int] | None = None,
) -> Float[Tensor, " n"]:
    """Pool keep-probabilities in log-odds, under a budget: logit pi = sum_j lambda_j logit pi_j - tau, sum pi = K.

    (The logarithmic opinion pool of Bernoullis.) The order does not matter but for rounding, and a prior of weight 0
    is as good as absent. A sample for which a prior has no opinion, K / n, is judged by the others. Without any
    opinion all get K / n. One prior of weight 1 comes back as it is, moved to the budget.

    Probabilities of 0 and 1 have infinite log-odds; these count as -20 and 20 (as do all beyond). So a prior that is
    certain outvotes milder ones but not another certain one, and any budget can be met: if fewer than K samples are
    above 0, those at 0 rise.

    Args:
        priors: ``(n,)`` each, in [0, 1]; at least one.
        budget: K in [0, n]; in (0, 1) a share of the samples (see `budget_of`).
        weights: lambda_j >= 0; default 1 each. Their sum need not be 1: three priors that agree say more than one.

    Returns:
        ``(n,)`` float64, sum K to rounding.

    Raises:
        ValueError: no priors, lengths that differ, entries outside [0, 1], a negative weight, a budget outside [0, n].

    Example:
        >>> one, two = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.5, 0.5, 0.5])
        >>> pool([one, two], 1.5)
        tensor([0.9000, 0.5000, 0.1000], dtype=torch.float64)
    """
    lambdas = [1.0] * len(priors) if weights is None else list(weights)
    if not len(priors) or len(lambdas) != len(priors):
        raise ValueError(f"pool takes at least one prior and a weight for each, got {len(priors)} and {len(lambdas)}")
    given = {f"priors[{j}]": _check.floats(f"priors[{j}]", prior, ("n",)) for j, prior in enumerate(priors)}
    kept = _resolved(budget, _check.same_length(**given))
    for prior in given.values():
        check_probabilities(prior)
    lambdas = [_check.in_range(f"weights[{j}]", weight, low=0.0) for j, weight in enumerate(lambdas)]
    return _pooled(list(given.values()), lambdas, kept)


def _pooled(priors: Sequence[Tensor], lambdas: Sequence[float | int], kept: float) -> Tensor:
    total = torch.zeros(len(priors[0]), dtype=torch.float64, device=priors[0].device)
    for prior, weight in zip(priors, lambdas, strict=True):
        if weight:
            total += weight * _log_odds(prior)
    return _under_budget(total, kept)


def bernoulli_kl(s: Float[Tensor, " n"] | Numbers, prior: Float[Tensor, " n"] | Numbers) -> float:
    """Return mean_i KL(Bern(s_i) || Bern(pi_i)), in nats; finite: the log-odds of pi are held within 20 of 0.

    Example:
        >>> round(bernoulli_kl(torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.5])), 4)  # half of log 2
        0.3466
    """
    s, prior = _pair(s, prior)
    s, log_odds = s.detach().double(), _log_odds(prior)
    cross = s * torch.nn.functional.softplus(-log_odds) + (1 - s) * torch.nn.functional.softplus(log_odds)
    return float((cross + torch.xlogy(s, s) + torch.xlogy(1 - s, 1 - s)).mean())


def bernoulli_kl_gradient(
    s: Float[Tensor, " n"] | Numbers, prior: Float[Tensor, " n"] | Numbers
) -> Float[Tensor, " n"]:
    """Return the gradient of `bernoulli_kl` in s: (logit s_i - logit pi_i) / n.

    Its limit at s = 0 and 1 is infinite; log-odds beyond 20 (s within 2e-9 of 0 or 1) count as 20, which is the
    gradient of the divergence continued by its tangent. So it is finite everywhere, rises in s, and is zero at pi.

    Args:
        s: ``(n,)`` in [0, 1]. prior: ``(n,)`` in [0, 1].

    Returns:
        ``(n,)``, in the dtype of `s`.

    Example:
        >>> bernoulli_kl_gradient(torch.tensor([0.0, 0.5]), torch.tensor([0.5, 0.5]))
        tensor([-10.,   0.])
    """
    s, prior = _pair(s, prior)
    return ((_log_odds(s.detach()) - _log_odds(prior)) / len(s)).to(s.dtype)


@dataclass(frozen=True, eq=False)
class Prior:
    """Keep-probabilities pi of the training samples, and what an outer run (`Maple`) does with them.

    Wherever it is used, pi is moved (in log-odds, see `pool`) to the run's budget at that point: to K exactly, or
    where K is only an upper bound (``equality=False``) down to it if pi is above.

    Attributes:
        probabilities: ``(n,)`` pi in [0, 1], in the order of the training samples; of `keep_probabilities` or `pool`.
        start: what begins at pi. "probabilities" (default): s = pi. "weights": w_i = pi_i / mean(pi), then projected,
            so the inner loss starts weighted by pi, with s = K / n. "both" (a sample then counts by pi twice). "none":
            for an anchor alone.
        anchor: beta >= 0, the coefficient of the term beta_t mean_i KL(Bern(s_i) || Bern(pi_i)) added to the outer
            risk. Default 0, none. Its gradient joins after clipping, so that `clip` does not rescale it.
        decay: factor of progress in [0, 1]: beta_t = beta * decay(progress). Default: a cosine from 1 to 0, so that the
            data have the last word.

    Raises:
        ValueError: probabilities outside [0, 1] or of another shape, a negative anchor, an unknown start.
    """

    probabilities: Float[Tensor, " n"]  # or what a tensor is made of
    start: Literal["probabilities", "weights", "both", "none"] = "probabilities"
    anchor: float | int = 0.0
    decay: Callable[[float], float] = field(default_factory=lambda: CosineDecay(0.0))

    def __post_init__(self) -> None:
        probabilities = _check.floats("probabilities", self.probabilities, ("n",))
        check_probabilities(probabilities)
        _check.function("decay", self.decay, "a function of progress in [0, 1]")
        _check.choice("start", self.start, ["probabilities", "weights", "both", "none"])
        _check.store(self, probabilities=probabilities, anchor=_check.in_range("anchor", self.anchor, low=0.0))

    def under(self, constraints: ConstraintSet, progress: float | int) -> Float[Tensor, " n"]:
        """Return pi ``(n,)``, float64, moved to the budget at `progress`."""
        kept = constraints.budget_at(progress, len(self.probabilities))
        if not constraints.equality:
            kept = min(kept, float(self.probabilities.sum(dtype=torch.float64)))
        _check_kept(kept, len(self.probabilities))
        return _pooled([self.probabilities], [1.0], kept)

    def share(self, count: int, constraints: ConstraintSet, progress: float | int, ranks: Ranks = ALONE) -> Tensor:
        """Return `under` of this rank's `count` samples; the prior is one of the samples of all ranks."""
        start, total = ranks.place(count)
        if len(self.probabilities) != total:
            raise ValueError(
                f"these need the same first dimension: train has {total}, prior has {len(self.probabilities)}"
            )
        return self.under(constraints, progress)[start : start + count]

    def add_anchor(
        self, s: Tensor, gradient: Tensor, constraints: ConstraintSet, progress: float | int, ranks: Ranks = ALONE
    ) -> dict[str, float]:
        """Add the anchor's gradient at `s` ``(n,)`` to `gradient` ``(n,)``; return its figures for the history."""
        coefficient = self.coefficient(progress)
        target = self.share(len(s), constraints, progress, ranks).to(s.device)
        share = len(s) / ranks.count(len(s))
        gradient.add_(bernoulli_kl_gradient(s, target), alpha=coefficient * share)
        divergence = ranks.total(s.new_tensor(bernoulli_kl(s, target) * share, dtype=torch.float64))
        return {"anchor_coefficient": coefficient, "anchor_kl": divergence}

    def coefficient(self, progress: float | int) -> float:
        """Return beta_t at `progress` in [0, 1]."""
        return self.anchor * self.decay(progress) if self.anchor else 0.0


def _stratum_budgets(sizes: Sequence[int], budget: float, balanced: bool) -> list[float]:
    """Return each stratum's share of the budget: by size, or equal up to `_MOST` of its samples."""
    total = sum(sizes)
    if not balanced or budget >= _MOST * total:
        return [min(budget / total, 1.0) * size for size in sizes]
    shares, left = [0.0] * len(sizes), len(sizes)
    for place in sorted(range(len(sizes)), key=sizes.__getitem__):  # the smallest first: what it cannot take is known
        shares[place] = min(budget / left, _MOST * sizes[place])
        budget, left = budget - shares[place], left - 1
    return shares


def _given_budgets(budget: Mapping[int, float | int], sizes: Mapping[int, int]) -> list[float]:
    """Return the budget of each stratum in the order of `sizes`; ValueError where one has none, or too much."""
    missing = [stratum for stratum in sizes if stratum not in budget]
    if missing:
        raise ValueError(f"budget has no entry for the strata [{few(missing)}], which have samples; give each one")
    return [_check.in_range(f"budget[{stratum}]", budget[stratum], low=0, high=size) for stratum, size in sizes.items()]


def _resolved(budget: float | int | None, count: int) -> float:
    """Return how many of `count` samples `budget` keeps; ValueError if it is more than there are, or there are none."""
    kept = budget_of(budget, count)
    _check_kept(kept, count)
    return kept


def _check_kept(kept: float, count: int) -> None:
    if not count:
        raise ValueError("there are no samples to give probabilities to")
    _check.in_range("budget", kept, low=0, high=count)


def _pair(s: Tensor | Numbers, prior: Tensor | Numbers) -> tuple[Tensor, Tensor]:
    one, two = (_check.floats(name, values, ("n",)) for name, values in (("s", s), ("prior", prior)))
    for name, values in (("s", one), ("prior", two)):
        _check.entries_in(name, values, 0, 1)
    _check.same_length(s=one, prior=two)
    return one, two


def _log_odds(probabilities: Tensor) -> Tensor:
    return torch.logit(probabilities.detach().double()).clamp(-_CERTAIN, _CERTAIN)


def _under_budget(log_odds: Tensor, budget: float) -> Tensor:
    """Return sigmoid(log_odds - tau) that sums to `budget`; log_odds ``(n,)`` float64, finite, of any size."""
    count = len(log_odds)
    if not 0 < budget < count:
        return torch.full_like(log_odds, budget / max(count, 1))
    # Where log-odds are large a float64 tau is too coarse. Measured from the sample nearest to it, it is not.
    tau = _threshold(log_odds, budget)
    log_odds = log_odds - log_odds[(log_odds - tau).abs().argmin()]
    levels, which = (log_odds - _threshold(log_odds, budget)).unique(return_inverse=True)
    # The vector and the scalar path of torch's sigmoid differ in the last digit: equal entries of one tensor may get
    # different values, and entries a few digits apart the wrong order. One value a level, never falling, mends both.
    return torch.sigmoid(levels).cummax(0).values[which]


def _threshold(log_odds: Tensor, budget: float) -> float:
    """Solve sum sigmoid(log_odds - tau) = budget by Newton's method; bisection where that dawdles or errs."""
    base = math.log(budget / (len(log_odds) - budget))
    low, high = float(log_odds.min()) - base, float(log_odds.max()) - base  # all above, all below budget / n
    tau, stride = float(log_odds.mean()) - base, high - low
    while True:
        p = torch.sigmoid(log_odds - tau)
        excess, slope = float(p.sum()) - budget, float((p * (1 - p)).sum())
        low, high = (tau, high) if excess > 0 else (low, tau)
        middle = low + (high - low) / 2
        if abs(excess) <= 1e-12 * budget or not low < middle < high:  # or no number is left in between
            return tau
        newton = tau + excess / slope if slope else math.inf
        dawdles = abs(newton - tau) > stride / 2
        following = middle if dawdles or not low < newton < high else newton
        tau, stride = following, abs(following - tau)
