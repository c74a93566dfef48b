"""The top-q-biased factor Q_{n,q}(Theta, g) = E_D inf_theta [ L_q(theta; g(D)) - L(theta; D) ].

Known of it in general, with rho the expected fraction of samples that g changes:

    -M rho <= Q <= E [L_q(theta; g(D)) - L(theta; D)]  for any one theta,    and Q >= 0 if g is the identity.

The left side: gamma falls with the rank, so L_q(g(D)) >= L(g(D)) >= L(D) - M (changed samples) / n. Both hold draw by
draw. The floor is reached: `tests/theory/test_factor.py`.

What Q predicts (correcting section 6.3 of the paper): the worst gap over Theta follows it in both directions,

    | E sup_theta [E l(theta) - L_q(theta; g(D))] + Q | <= E sup_theta |E l(theta) - L(theta; D)|,

which goes to 0 with the Rademacher complexity; so the worst gap tends to -Q, to zero only if Q does. For a single
theta, or the minimiser of L_q, Q < 0 proves nothing; and without corruption the gap of a fixed theta tends to E l - lim
L_q < 0, not to 0, unless q = s or its loss is constant (`top_q_limit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.theory import _conditions
from steelyard.theory.estimate import Estimate
from steelyard.theory.ordered import top_q_loss

__all__ = ["factor_draw", "factor_floor", "factor_lower", "factor_mean"]


def factor_draw(
    clean: Float[Tensor, "*draws m n"] | Numbers, corrupted: Float[Tensor, "*draws m n"] | Numbers, s: int, q: int
) -> Float[Tensor, "*draws"]:
    """Return inf_theta [L_q(theta; g(D)) - L(theta; D)] of a finite class, exactly, for each draw of D.

    Args:
        clean, corrupted: ``(*draws, m, n)`` losses of m hypotheses on the n samples before and after g.

    Cost: O(m n log n) a draw.
    """
    clean, corrupted = _check.finite("clean", clean), _check.finite("corrupted", corrupted)
    if clean.shape != corrupted.shape:
        raise ValueError(f"clean {tuple(clean.shape)} and corrupted {tuple(corrupted.shape)} losses need one shape")
    return (top_q_loss(corrupted, s, q) - clean.double().mean(-1)).amin(-1)


def factor_mean(draw: Callable[[], Float[Tensor, " draws"]], repeats: int = 1) -> Estimate:
    """Return Q by Monte Carlo: the mean of `repeats` calls to `draw`, each of which returns infima of fresh samples.

    Args:
        draw: no arguments -> ``(draws,)`` values of inf_theta [L_q(theta; g(D)) - L(theta; D)], one for each new D
            (`factor_draw`, `ThresholdErrors.factor`).
        repeats: calls; the cost is theirs.

    Raises:
        ValueError: fewer than two values in all.
    """
    values = torch.cat([draw().double() for _ in range(_check.integer("repeats", repeats, low=1))])
    if len(values) < 2:
        raise ValueError(f"draw returned {len(values)} value(s) in all; a standard error needs at least 2")
    return Estimate(
        float(values.mean()),
        "exact",
        float(values.std()) / math.sqrt(len(values)),
        f"{len(values)} draws of D",
    )


def factor_floor(loss_range: float, changed: float) -> Estimate:
    """Return the lower estimate -M rho of Q, for any Theta and any g that changes a fraction rho of the samples.

    Args:
        loss_range: M. changed: rho in [0, 1], the expected fraction of samples that g changes; 0 without corruption.
    """
    changed = _check.in_range("changed", changed, low=0.0, high=1.0)
    width = _conditions.loss_range(loss_range)
    note = "Q >= 0 without corruption" if changed == 0 else f"-M rho, rho = {changed:g}"
    return Estimate(0.0 - width * changed, "lower", note=note)


def factor_lower(draw: float, n: int, s: int, q: int, delta: float, loss_range: float) -> Estimate:
    """Return a lower estimate of Q from its value on one draw; it fails with probability at most `delta`.

    inf_theta [L_q(g(D)) - L(D)] moves by at most (1 + s/q) M / n with one sample, so McDiarmid gives Q >= draw - M (1 +
    s/q) sqrt(ln(1/delta) / (2n)). The caller adds `delta` to the theorem's own.
    """
    _conditions.batch_sizes(n, s, q)
    _conditions.confidence(delta)
    width = _conditions.loss_range(loss_range)
    spread = width * (1 + s / q) * math.sqrt(math.log(1 / delta) / (2 * n))
    return Estimate(draw - spread, "lower", note=f"one draw {draw:.4g} minus {spread:.4g}")
