"""Importance sampling: draw often what moves the gradient most, and weigh it down so that the mean stays the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["ImportanceDraws", "importance_draws", "importance_probabilities"]


@dataclass(frozen=True)
class ImportanceDraws:
    """Draws with replacement, and the weights that make their mean unbiased.

    Attributes:
        index: ``(draws,)`` int64; duplicates are meant: this is not a `Selection`.
        weight: ``(draws,)`` 1 / (n P_i).
    """

    index: Int[Tensor, " draws"]
    weight: Float[Tensor, " draws"]


def importance_probabilities(
    norms: Float[Tensor, " n"] | Numbers, disagreement: Float[Tensor, " n"] | Numbers | None = None
) -> Float[Tensor, " n"]:
    """Return P_i in proportion to g_i D_i (DR-IS), or to g_i alone (plain importance sampling, its foil).

    Args:
        norms: ``(n,)`` g_i >= 0: `el2n` or `gradient_norm`.
        disagreement: ``(n,)`` D_i >= 0 of `rank_disagreement`.

    Returns:
        ``(n,)`` float64 that sums to 1.

    Raises:
        ValueError: NaN, negative entries, lengths that differ, or products that are all 0.

    References:
        Katharopoulos & Fleuret, ICML 2018 (g_i alone); DR-IS, its abstract (the product; form ours).

    Example:
        >>> importance_probabilities(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.5, 0.5, 0.0])).tolist()
        [0.5, 0.5, 0.0]
    """
    worth = _not_negative("norms", norms)
    if disagreement is not None:
        _check.same_length(norms=norms, disagreement=disagreement)
        worth = worth * _not_negative("disagreement", disagreement)
    total = worth.sum()
    if not float(total) > 0:
        raise ValueError("norms (times disagreement) are 0 for all samples: there is nothing to draw in proportion to")
    return worth / total


def importance_draws(
    probabilities: Float[Tensor, " n"] | Numbers, draws: int, *, generator: torch.Generator
) -> ImportanceDraws:
    """Draw samples with replacement, i with probability P_i, and weigh each by 1 / (n P_i).

    The mean over draws of weight * f_i has the mean of f over the pool as its expectation, if P_i > 0 wherever f_i is
    not 0. DR-IS breaks that on purpose where D_i = 0: those samples are filtered out.

    Args:
        probabilities: ``(n,)`` >= 0, sum 1 (of `importance_probabilities`).
        draws: >= 1. generator: source of the draws.

    Raises:
        ValueError: NaN, negative entries, a sum other than 1, or draws < 1.

    Example:
        >>> importance_draws(torch.tensor([0.0, 1.0]), 2, generator=torch.Generator().manual_seed(0))
        ImportanceDraws(index=tensor([1, 1]), weight=tensor([0.5000, 0.5000]))
    """
    draws = _check.integer("draws", draws, low=1)
    given = _check.floats("probabilities", probabilities, ("n",))
    p = _not_negative("probabilities", given)
    mass = p.cumsum(0)
    if abs(float(mass[-1]) - 1) > 1e-4:
        raise ValueError(f"probabilities must sum to 1, got {float(mass[-1]):.6g}; see importance_probabilities")
    _check.generator("generator", generator)
    uniform = torch.rand(draws, generator=generator, device=generator.device, dtype=torch.float64).to(p.device)
    # Searching below the last step of the sum, so that rounding at its end cannot draw a sample with P_i = 0.
    place = (uniform * mass[-1]).clamp_(max=float(torch.nextafter(mass[-1], torch.zeros_like(mass[-1]))))
    index = torch.searchsorted(mass, place, right=True)
    return ImportanceDraws(index, (1 / (p.shape[0] * p[index])).to(given.dtype))


def _not_negative(name: str, value: Tensor | Numbers) -> Tensor:
    values = _inputs.matrix(name, value, ("n",)).double()
    if bool((values < 0).any()):
        raise ValueError(f"{name} must be >= 0, its least entry is {float(values.min()):.6g}")
    return values
