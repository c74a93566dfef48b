"""The objective that ordered SGD minimises: the top-q loss L_q and its weights gamma_j, r_i.

Ordered SGD draws a batch of s of the n samples without replacement and steps along the mean gradient of the batch's q
largest losses. Section 6.2 of the paper: that gradient is an unbiased estimate of a sub-gradient of

    L_q(theta) = (1/q) sum_j gamma_j L_(j)(theta),        L_(1) >= ... >= L_(n),
    gamma_j    = sum_{l<q} C(j-1, l) C(n-j, s-l-1) / C(n, s).

References:
    S. Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions (2022),
    sections 6.1, 6.2 and appendix C (Proposition 2).
    K. Kawaguchi, H. Lu, Ordered SGD, AISTATS 2020.
"""

from __future__ import annotations

import itertools
import math
from numbers import Integral, Real

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.theory import _conditions

__all__ = [
    "ordered_sgd_gradient",
    "sample_weights",
    "top_q_gradient",
    "top_q_limit",
    "top_q_loss",
    "top_q_loss_by_enumeration",
    "top_q_loss_of_counts",
    "top_q_weights",
]


def top_q_weights(n: int, s: int, q: int) -> Float[Tensor, " n"]:
    """Return gamma_j, the probability that the sample of loss rank j is among the top q of a batch.

    Equation: gamma_j above, rearranged. Sample j is drawn with probability s/n; then it is kept iff fewer than q of the
    other s-1 draws rank above it, that is iff the q-th smallest rank among s-1 draws from the other n-1 is >= j:

        gamma_j = (s/n) sum_{k>=j} p_k,      p_k = C(k-1, q-1) C(n-1-k, s-1-q) / C(n-1, s-1).

    So all n weights cost one reversed cumulative sum of positive terms: O(n) whatever q is, nothing cancels, and the
    tail keeps its relative precision. log-gamma gives p_k to 9 digits only at n = 1e6 (its values are near 1.3e7), so
    log p_k is summed from its ratios, outwards from the mode, which keeps 12.

    Args:
        n: samples. s: batch size. q: losses kept of each batch.

    Returns:
        ``(n,)`` float64, non-increasing; sums to q; gamma_1 = ... = gamma_q = s/n, the largest value (Proposition 2).

    Raises:
        ValueError: unless 1 <= q <= s <= n.

    Example:
        >>> [round(float(g), 3) for g in top_q_weights(8, 4, 2)]
        [0.5, 0.5, 0.429, 0.314, 0.186, 0.071, 0.0, 0.0]
    """
    _conditions.batch_sizes(n, s, q)
    if q == s:
        return torch.full((n,), s / n, dtype=torch.float64)
    k = torch.arange(q, n - s + q, dtype=torch.float64)  # p_k > 0 for k = q .. n-s+q; these are the ratios' k
    log_ratio = torch.log1p((q - 1) / (k - q + 1)) + torch.log1p(-(s - 1 - q) / (n - 1 - k))  # log p_{k+1} / p_k
    mode = int((log_ratio > 0).sum())  # p is log-concave: the ratios fall
    below = -log_ratio[:mode].flip(0).cumsum(0).flip(0)
    above = log_ratio[mode:].cumsum(0)
    p = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).exp()
    survival = p.flip(0).cumsum(0).flip(0)
    gamma = torch.zeros(n, dtype=torch.float64)
    gamma[: q - 1] = s / n
    gamma[q - 1 : n - s + q] = (s / n) * (survival / survival[0])
    return gamma


def top_q_loss(losses: Float[Tensor, "*hypotheses n"] | Numbers, s: int, q: int) -> Float[Tensor, "*hypotheses"]:
    """Return L_q = (1/q) sum_j gamma_j L_(j) for each hypothesis; float64, O(n log n) each; differentiable.

    Args:
        losses: ``(..., n)`` individual losses L_i, in the order of the samples.
        s: batch size. q: losses kept of each batch.

    Raises:
        ValueError: unless 1 <= q <= s <= n, or losses not finite.

    Example:
        >>> float(top_q_loss(torch.tensor([0.0, 1.0]), s=2, q=1))     # the largest loss of the whole set
        1.0
    """
    losses = _rows("losses", losses)
    gamma = top_q_weights(losses.shape[-1], s, q).to(losses.device)
    ordered = losses.double().sort(dim=-1, descending=True).values
    return (ordered * gamma).sum(-1) / q


def sample_weights(losses: Float[Tensor, "*hypotheses n"] | Numbers, s: int, q: int) -> Float[Tensor, "*hypotheses n"]:
    """Return r_i = gamma at the rank of sample i (section 6.1), so that L_q = (1/q) sum_i r_i L_i.

    Ties are broken by the sample's position (a stable sort): the fixed rule the paper asks for.

    Example:
        >>> sample_weights(torch.tensor([0.0, 3.0, 1.0]), s=2, q=1).tolist()
        [0.0, 0.6666666666666666, 0.3333333333333333]
    """
    losses = _rows("losses", losses)
    gamma = top_q_weights(losses.shape[-1], s, q).to(losses.device)
    order = losses.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(losses, dtype=torch.float64).scatter(-1, order, gamma.expand(order.shape))


def top_q_loss_of_counts(
    errors: Int[Tensor, "*hypotheses"] | Numbers | int, n: int, s: int, q: int
) -> Float[Tensor, "*hypotheses"]:
    """Return L_q of a 0-1 loss from the number of errors alone: (1/q) sum_{j <= errors} gamma_j; O(1) each after O(n).

    Raises:
        ValueError: unless 1 <= q <= s <= n, or a number of errors outside of 0 .. n. TypeError: one that is not whole.

    Example:
        >>> float(top_q_loss_of_counts(torch.tensor(1), n=4, s=2, q=1))     # in half of the batches
        0.5
    """
    gamma = top_q_weights(n, s, q)
    counts = torch.tensor(_check.integer("errors", errors)) if isinstance(errors, Integral) else errors
    counts = _check.tensor("errors", counts)  # type: ignore[arg-type]
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"errors must hold integers, got {counts.dtype}")
    _check.entries_in("errors", counts.long(), 0, n)
    cumulative = torch.cat([gamma.new_zeros(1), gamma.cumsum(0)]).to(counts.device) / q
    return cumulative[counts.long()]


def top_q_limit(error_rate: Float[Tensor, "*rates"] | Numbers | float | int, s: int, q: int) -> Float[Tensor, "*rates"]:
    """Return the limit of L_q as n grows, for a 0-1 loss: E min(q, Binomial(s, error_rate)) / q.

    L_q is a U-statistic whose kernel is the mean of the top q of s losses, so it converges to that mean over s
    independent samples. It is above `error_rate` unless q = s or the loss is constant: L_q is no estimate of the risk
    even without corruption.

    Raises:
        ValueError: unless 1 <= q <= s, or a rate outside of [0, 1].

    Example:
        >>> round(float(top_q_limit(torch.tensor(0.1), s=2, q=1)), 6)     # 1 - 0.9^2
        0.19
    """
    _conditions.batch_sizes(s, s, q)
    given = torch.tensor(float(error_rate)) if isinstance(error_rate, Real) else error_rate
    rates = _check.floats("error_rate", given)  # type: ignore[arg-type]
    rate = _check.entries_in("error_rate", rates, 0, 1).double().unsqueeze(-1)
    errors = torch.arange(s + 1, dtype=torch.float64, device=rate.device)
    choose = math.lgamma(s + 1) - torch.lgamma(errors + 1) - torch.lgamma(s - errors + 1)
    mass = (choose + torch.xlogy(errors, rate) + torch.xlogy(s - errors, 1 - rate)).exp()  # (*rates, s + 1)
    return (mass * errors.clamp(max=q)).sum(-1) / q


def top_q_loss_by_enumeration(losses: Float[Tensor, " n"] | Numbers, s: int, q: int) -> float:
    """Return the mean, over every one of the C(n, s) batches, of the mean of its q largest losses.

    The definition of what ordered SGD sees, as an oracle for `top_q_loss`. Cost: C(n, s) batches.

    Raises:
        ValueError: more than two million batches.
    """
    losses = _check.tensor("losses", losses, ("n",))
    n = losses.shape[0]
    _conditions.batch_sizes(n, s, q)
    if math.comb(n, s) > 2_000_000:
        raise ValueError(f"C({n}, {s}) = {math.comb(n, s)} batches are too many to enumerate; use top_q_loss")
    batches = torch.tensor(list(itertools.combinations(range(n), s)))
    return float(losses.double()[batches].topk(q, dim=1).values.mean())


def top_q_gradient(losses: Float[Tensor, " n"], gradients: Float[Tensor, "n p"], s: int, q: int) -> Float[Tensor, " p"]:
    """Return (1/q) sum_i r_i grad L_i: the sub-gradient of L_q that ordered SGD estimates.

    Args:
        losses: ``(n,)``. gradients: ``(n, p)``, each loss's own. Cost: O(n log n + n p).
    """
    return sample_weights(losses, s, q) @ gradients.double() / q


def ordered_sgd_gradient(
    losses: Float[Tensor, " n"],
    gradients: Float[Tensor, "n p"],
    s: int,
    q: int,
    *,
    draws: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """Return the mean and the standard error of `draws` ordered-SGD gradients.

    Each draw takes s samples without replacement and averages the gradients of their q largest losses. Its expectation
    is `top_q_gradient`, exactly: mean ± z standard error is an interval for it. Cost: O(draws n).

    Args:
        losses: ``(n,)``. gradients: ``(n, p)`` per-sample gradients at the same parameters.
        draws: batches, at least 2.
        generator: source of the batches.
    """
    n = losses.shape[0]
    _conditions.batch_sizes(n, s, q)
    draws = _check.integer("draws", draws, low=2)
    # Ties must be broken as sample_weights breaks them, so batches are compared by rank, not by loss.
    rank = torch.empty(n, dtype=torch.long)
    rank[losses.sort(descending=True, stable=True).indices] = torch.arange(n)
    batches = torch.rand(draws, n, generator=generator).topk(s, dim=1).indices  # (draws, s)
    top = batches.gather(1, rank[batches].topk(q, dim=1, largest=False).indices)  # (draws, q)
    steps = torch.cat([gradients.double()[chunk].mean(1) for chunk in top.split(1024)])  # (draws, p)
    return steps.mean(0), steps.std(0) / math.sqrt(draws)


def _rows(name: str, values: Tensor | Numbers) -> Tensor:
    found = _check.finite(name, values)
    if not found.ndim:
        raise ValueError(f"{name} must have a last axis of samples, got a number, {found.item()}")
    return found
