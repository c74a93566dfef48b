"""EPIG: what a label says about the PREDICTIONS on the inputs that matter, not about the model as a whole."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors.stochastic import members

__all__ = ["epig"]

_BLOCK = 1 << 22  # entries of one block of joint probabilities


def epig(
    probabilities: Float[Tensor, "draws n classes"] | Numbers, targets: Float[Tensor, "draws m classes"] | Numbers
) -> Float[Tensor, " n"]:
    """EPIG: the mean over target inputs of I(y; y*), in nats, the two labels joint by the draws; higher = asked first.

    Args:
        probabilities: ``(draws, n, classes)`` softmax outputs on the pool, draws >= 2.
        targets: ``(draws, m, classes)`` of the same draws on inputs as they will come in use; no labels are needed.
            Pool inputs where the pool is like them; some hundreds are enough.

    Returns:
        ``(n,)`` in [0, log(min(draws, classes))]. O(n m classes^2 draws) time, a block at a time: for a million
        samples, 100 targets, 10 classes and 10 draws 10^11 products, minutes of one core.

    Warns:
        DegenerateWarning: all draws are identical: the score is 0.

    Raises:
        ValueError: fewer than 2 draws, NaN, rows that do not sum to 1, other draws or classes in `targets`.
            TypeError: integers.

    References:
        F. Bickford Smith et al., Prediction-oriented Bayesian active learning, AISTATS 2023, eq. 5 and 7.

    Example:
        >>> draws = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
        >>> epig(draws, draws[:, :1])  # the first sample's label is the target's
        tensor([0.6931, 0.0000])
    """
    pool = members(probabilities)
    aims = _inputs.distributions("targets", targets, ("draws", "m", "classes"))
    t, _, classes = pool.shape
    if aims.shape[0] != t or aims.shape[2] != classes:
        raise ValueError(f"targets must have {t} draws and {classes} classes as probabilities, got {tuple(aims.shape)}")
    aims = aims.double()
    wanted = aims.mean(0)  # (m, classes)
    rows = max(1, _BLOCK // (aims.shape[1] * classes * classes))
    return torch.cat([_information(part.double(), aims, wanted) for part in pool.split(rows, dim=1)]).to(pool.dtype)


def _information(pool: Tensor, aims: Tensor, wanted: Tensor) -> Tensor:
    """Return EPIG ``(rows,)`` of `pool` ``(draws, rows, classes)``.

    As a divergence, sum p log(p / q), whose terms are near p - q where the two labels are nearly independent: with the
    p - q taken out (they sum to 0) each term is >= 0 and small ones keep their digits.
    """
    t, rows, classes = pool.shape
    joint = (pool.flatten(1).T @ aims.flatten(1)).div_(t)  # (rows * classes, m * classes)
    apart = pool.mean(0).flatten()[:, None] * wanted.flatten()
    terms = torch.xlogy(joint, joint / apart.clamp_min(torch.finfo(torch.float64).tiny)) - joint + apart
    per_row = terms.view(rows, classes, -1).sum((1, 2))
    return (per_row / wanted.shape[0]).clamp_min(0)
