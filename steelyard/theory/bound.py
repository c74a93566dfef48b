"""Theorem 1, term by term, with what is known about each term.

With probability at least 1 - delta over an i.i.d. draw D of n samples, for all theta in Theta,

    E l(theta) <= L_q(theta; g(D)) + 2 R^_n(Theta) + M (2 + s/q) sqrt(ln(2/delta) / (2n)) - Q_{n,q}(Theta, g),
    Q_{n,q}(Theta, g) = E_D inf_theta [ L_q(theta; g(D)) - L(theta; D) ].

Conditions that the proof uses and the statement leaves open (counter-examples in `tests/theory/test_conditions.py`):

- g_i may depend on sample i and on randomness of its own, not on the other samples: an adversary who sees all of D
  before choosing whom to flip breaks the bounded difference, and then the theorem fails.
- M bounds the loss on the images of the g_i too, not on X x Y alone.
- R^_n is of the loss class on the CLEAN sample, which a learner who holds g(D) alone cannot compute. For q = s the same
  statement holds with R^_n of the corrupted sample: sup (E L(g) - L(g(D))) symmetrises over g(D) itself, and sup (E l -
  E L(g)) <= -Q by Jensen.
- Theta is fixed before the data. Norms read off a trained network do not make such a set.

References:
    S. Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions (2022),
    Theorem 1 and appendix C: "the paper" in this room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.theory import _conditions
from steelyard.theory.estimate import Estimate
from steelyard.theory.ordered import top_q_loss

__all__ = ["Bound", "complexity_deviation", "deviation", "theorem1"]


@dataclass(frozen=True)
class Bound:
    """The terms of Theorem 1 for one theta.

    Attributes:
        training: L_q(theta; g(D)).
        complexity: R^_n(Theta), not yet doubled.
        deviation: M (2 + s/q) sqrt(ln(2/delta) / (2n)).
        factor: Q_{n,q}(Theta, g).
        expected: E l(theta), the left-hand side, or None where it is not known.
        total: the right-hand side. Its side says what the number is worth: "exact" and "upper" are certificates (up to
            the Monte Carlo error shown); "lower" and "either" are not.
        n, s, q, delta, loss_range: as given.
        ceiling: the most that the loss of this theta can be. M bounds differences, so nothing is above the least loss
            seen by more than M.
    """

    training: Estimate
    complexity: Estimate
    deviation: Estimate
    factor: Estimate
    expected: Estimate | None
    total: Estimate
    n: int
    s: int
    q: int
    delta: float
    loss_range: float
    ceiling: float

    @property
    def slack(self) -> Estimate | None:
        """Right-hand side minus left-hand side; None where the left is not known."""
        return None if self.expected is None else self.total + self.expected.scaled(-1.0)

    @property
    def is_certificate(self) -> bool:
        """Whether the right-hand side errs on the safe side only (Theta fixed before the data, as the theorem asks)."""
        return self.total.side in ("exact", "upper")

    @property
    def is_vacuous(self) -> bool:
        """Whether the bound says nothing: a mean is never above the most that a loss can be."""
        return self.total.value >= self.ceiling

    def rows(self) -> list[dict[str, object]]:
        """Return the terms as table rows: term, equation, value, nature, note."""
        terms: list[tuple[str, str, Estimate | None]] = [
            ("training", "L_q(theta; g(D))", self.training),
            ("complexity", "2 R^_n(Theta)", self.complexity.scaled(2.0)),
            ("deviation", "M (2 + s/q) sqrt(ln(2/delta) / 2n)", self.deviation),
            ("top-q-biased factor", "-Q_{n,q}(Theta, g)", self.factor.scaled(-1.0)),
            ("right-hand side", "sum of the above", self.total),
            ("left-hand side", "E l(theta)", self.expected),
            ("slack", "right minus left", self.slack),
        ]
        return [
            {"term": name, "equation": equation, "value": e.value, "nature": e.nature, "note": e.note}
            for name, equation, e in terms
            if e is not None
        ]


def theorem1(
    losses: Float[Tensor, " n"] | Numbers,
    *,
    s: int,
    q: int,
    delta: float,
    loss_range: float | None,
    complexity: Estimate,
    factor: Estimate,
    expected: Estimate | None = None,
    largest: float | None = None,
) -> Bound:
    """Put Theorem 1 together for one theta; O(n log n).

    Args:
        losses: ``(n,)`` losses of theta on the training sample as it was seen, g(D).
        s: batch size of ordered SGD. q: losses kept of each batch. delta: probability of failure.
        loss_range: M, in the units of the loss, over X x Y and the images of g.
        complexity: R^_n of the loss class on the clean sample (`finite_class_complexity`, `thresholds`, `networks`).
        factor: Q_{n,q} (`factor`): it enters with a minus, so an upper estimate of Q makes the bound too small.
        expected: E l(theta) on the clean distribution, where known or estimated.
        largest: the most that a loss can be, where it is known: 1 for the 0-1 loss. None: the least loss seen plus M.

    Raises:
        ValueError: a condition of the theorem is not met; the message says which.

    Example:
        >>> import torch
        >>> losses = torch.tensor([0.0, 1.0, 0.0, 0.0])
        >>> one = dict(complexity=Estimate(0.0), factor=Estimate(0.0))     # Theta = {theta}, no corruption, q = s
        >>> bound = theorem1(losses, s=2, q=2, delta=0.1, loss_range=1.0, **one)
        >>> bound.training.value, bound.total.side, bound.is_vacuous
        (0.25, 'exact', True)
    """
    losses = _check.finite("losses", _check.tensor("losses", losses, ("n",)))
    n = losses.shape[0]
    _conditions.batch_sizes(n, s, q)
    delta = _conditions.confidence(delta)
    width = _conditions.loss_range(loss_range, losses)
    least, most = (float(end) for end in losses.aminmax())
    ceiling = least + width if largest is None else float(_check.in_range("largest", largest))
    if ceiling < most:
        raise ValueError(f"largest is {ceiling:g}, but a loss of {most:g} was seen")
    training = Estimate(float(top_q_loss(losses, s, q)), note="on g(D)")
    spread = Estimate(deviation(n, s, q, delta, width), note=f"M = {width:g}, s = {s}, q = {q}, delta = {delta:g}")
    total = training + complexity.scaled(2.0) + spread + factor.scaled(-1.0)
    return Bound(training, complexity, spread, factor, expected, total, n, s, q, delta, width, ceiling)


def deviation(n: int, s: int, q: int, delta: float, loss_range: float) -> float:
    """Return M (2 + s/q) sqrt(ln(2/delta) / (2n)), in the units of the loss.

    Two McDiarmid inequalities at delta/2: s/q from L_q (one replaced sample moves it by at most (s/q)(M/n)) and 2 from
    2 R^_n. It vanishes as n grows only if s/q = o(sqrt n).

    Example:
        >>> round(deviation(800, 16, 8, 0.05, 1.0), 3)
        0.192
    """
    _conditions.batch_sizes(n, s, q)
    _conditions.confidence(delta)
    return _conditions.loss_range(loss_range) * (2 + s / q) * math.sqrt(math.log(2 / delta) / (2 * n))


def complexity_deviation(n: int, delta: float, loss_range: float) -> float:
    """Return M sqrt(ln(1/delta) / (2n)): R_n <= R^_n + this, with probability at least 1 - delta (appendix C).

    One replaced sample moves R^_n by at most M/n (printed M/m in the paper).
    """
    _conditions.confidence(delta)
    return _conditions.loss_range(loss_range) * math.sqrt(math.log(1 / delta) / (2 * n))
