"""EPIG: what a label says about the PREDICTIONS on the inputs that matter, not about the model as a whole."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors.stochastic import members
from steelyard.selectors.uncertainty import nats

__all__ = ["epig"]

_BLOCK = 1 << 18  # entries of one block of joint probabilities: small enough for a CPU's second cache


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
    wanted = nats(aims.mean(0)).mean()  # H(y*), the mean over targets
    score = torch.empty(pool.shape[1], dtype=torch.float64, device=pool.device)
    rows = max(1, _BLOCK // (aims.shape[1] * classes * classes))
    for start in range(0, pool.shape[1], rows):
        part = pool[:, start : start + rows].double()
        joint = (part.flatten(1).T @ aims.flatten(1)).div_(t)  # (rows * classes, m * classes)
        both = torch.special.entr(joint).view(part.shape[1], -1).sum(1) / aims.shape[1]
        score[start : start + rows] = nats(part.mean(0)) + wanted - both
    # In float64, of entropies of a few nats: what is lost is about 1e-15.
    return score.clamp_min(0).to(pool.dtype)
