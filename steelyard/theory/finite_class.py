"""Theorem 1 for every hypothesis of a finite class, from a matrix of their losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.theory import _conditions
from steelyard.theory.bound import Bound, theorem1
from steelyard.theory.complexity import finite_class_complexity
from steelyard.theory.estimate import Estimate
from steelyard.theory.factor import factor_draw, factor_floor, factor_lower

__all__ = ["HypothesisBound", "finite_class_bounds"]

_ENUMERATED = 14  # samples: up to here all sign vectors, 16,384 of them, are no more work than the draws


@dataclass(frozen=True)
class HypothesisBound:
    """What Theorem 1 says of one hypothesis.

    Attributes:
        hypothesis: its row in the matrix of losses.
        mean_loss: L(theta; g(D)), on the training sample as it was seen; no part of the bound.
        bound: the theorem's terms. With clean losses its `delta` is two thirds of the one below, the share of the
            theorem's own two inequalities.
        delta: the probability that the bound fails.
        fixed: whether all hypotheses were fixed before the samples were drawn.
        corrupted: whether clean losses were given too.
    """

    hypothesis: int
    mean_loss: float
    bound: Bound
    delta: float
    fixed: bool
    corrupted: bool

    @property
    def is_certificate(self) -> bool:
        """Whether the right-hand side errs on the safe side only, and the hypotheses were fixed before the data."""
        return self.fixed and self.bound.is_certificate

    @property
    def sentence(self) -> str:
        """What the bound says, and under which conditions."""
        total, ceiling = self.bound.total.value, self.bound.ceiling
        if self.bound.is_vacuous:
            return f"says nothing, since {total:.4g} >= {ceiling:.4g}, the most that a loss can be"
        conditions = ["the samples are independent draws"]
        if not self.corrupted:
            conditions.append("nobody corrupted them")
        if not self.fixed:
            conditions.insert(0, "all hypotheses were fixed before the data (which was not said: no certificate)")
        return f"risk at most {total:.4g} with probability {1 - self.delta:g}, if {' and '.join(conditions)}"

    def rows(self) -> list[dict[str, object]]:
        """Return the terms as table rows: hypothesis, term, equation, value, nature, note, certificate.

        The last two, the mean loss and the most that a loss can be, are no part of the bound.
        """
        beside: list[dict[str, object]] = [
            {
                "term": "mean loss",
                "equation": "L(theta; g(D))",
                "value": self.mean_loss,
                "nature": "exact",
                "note": "no part of the bound",
            },
            {
                "term": "largest loss",
                "equation": "least seen + M, or M",
                "value": self.bound.ceiling,
                "nature": "exact",
                "note": "a bound above it says nothing",
            },
        ]
        return [
            {"hypothesis": self.hypothesis, **term, "certificate": self.is_certificate}
            for term in self.bound.rows() + beside
        ]


def finite_class_bounds(
    losses: Shaped[Tensor, "m n"] | Numbers,
    clean: Shaped[Tensor, "m n"] | Numbers | None = None,
    *,
    s: int,
    q: int,
    delta: float,
    loss_range: float | None,
    draws: int,
    generator: torch.Generator,
    fixed: bool = False,
) -> list[HypothesisBound]:
    """Return what Theorem 1 says of each of m hypotheses; a certificate up to its Monte Carlo error.

    Args:
        losses: ``(m, n)`` on the training sample as it was seen, g(D); they may be mapped from a file.
        clean: ``(m, n)`` on the same samples before corruption; None says that there was none. The Rademacher
            complexity is taken on it, and Q from its difference to `losses` on this one draw: with `clean`, delta is
            shared by three inequalities (two of the theorem, one for Q); without, Q >= 0 needs none.
        s: batch size of ordered SGD. q: losses kept of each batch. delta: probability of failure.
        loss_range: M, the most by which two losses of one hypothesis can differ; 1 for the 0-1 loss.
        draws: sign vectors for R^_n; those of n <= 14 samples are enumerated instead.
        generator: of the signs.
        fixed: the hypotheses were fixed before these samples were drawn, as the theorem asks; of models that were
            trained on them, or chosen by them, it says nothing. Without it no number is a certificate.

    Raises:
        ValueError: a condition of the theorem is not met (the message says which), shapes that differ, or a loss that
            is not finite.

    Example:
        >>> losses = torch.zeros(1, 4000)
        >>> options = dict(s=4, q=4, delta=0.05, loss_range=1.0, draws=10)
        >>> (one,) = finite_class_bounds(losses, **options, generator=torch.Generator().manual_seed(0), fixed=True)
        >>> one.is_certificate, one.sentence
        (True, 'risk at most 0.06442 with probability 0.95, if the samples are independent draws and nobody corrupted
        them')
    """
    losses = _check.tensor("losses", losses, ("m", "n"))
    clean = None if clean is None else _check.tensor("clean", clean, ("m", "n"))
    if clean is not None and clean.shape != losses.shape:
        raise ValueError(
            f"clean losses have shape {tuple(clean.shape)}, the losses {tuple(losses.shape)}: they must agree"
        )
    n = losses.shape[1]
    _conditions.batch_sizes(n, s, q)
    delta = _conditions.confidence(delta)
    ends = _ends(losses) if clean is None else torch.cat([_ends(losses), _ends(clean)], dim=1)
    width = _conditions.loss_range(loss_range, ends)  # M bounds a clean loss against a corrupted one, too
    within = float(ends.min()) >= 0 and float(ends.max()) <= width
    complexity = finite_class_complexity(
        losses if clean is None else clean, draws="all" if n <= _ENUMERATED else draws, generator=generator
    )
    share, factor = _factor(losses, clean, s, q, delta, width)
    found = []
    for hypothesis, row in enumerate(losses):
        bound = theorem1(
            row.double(),
            s=s,
            q=q,
            delta=share,
            loss_range=width,
            complexity=complexity,
            factor=factor,
            largest=width if within else None,  # losses seen in [0, M] are taken to be of a loss in [0, M]
        )
        mean = float(row.double().mean())
        found.append(HypothesisBound(hypothesis, mean, bound, delta, fixed, corrupted=clean is not None))
    return found


def _factor(losses: Tensor, clean: Tensor | None, s: int, q: int, delta: float, width: float) -> tuple[float, Estimate]:
    """Return the theorem's own share of delta, and Q."""
    if clean is None:
        return delta, factor_floor(1.0, 0.0)
    draw = min(float(factor_draw(one[None], two[None], s, q)) for one, two in zip(clean, losses, strict=True))
    # ln(2 / share) = ln(3 / delta): each of the three inequalities has delta / 3
    return delta * 2 / 3, factor_lower(draw, losses.shape[1], s, q, delta / 3, width)


def _ends(losses: Tensor) -> Tensor:
    """Return the least and the greatest loss of each hypothesis ``(m, 2)``."""
    return torch.stack([end.double() for end in losses.aminmax(dim=1)], dim=1)
