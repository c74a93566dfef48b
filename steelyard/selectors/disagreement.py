"""DR-IS: do independent proxies rank a sample alike? Then its loss says little about its worth.

Losses of corrupted samples in the bulk are large for every proxy: their ranks agree. Clean samples near the boundary
are ranked differently by every proxy. So HIGH disagreement is kept. The statistic and its certificate are ours, the
paper's own are not public; their proof and what a certificate promises are in `steelyard.theory.concentration`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["Certificate", "certificate", "normalised_ranks", "rank_disagreement"]


def normalised_ranks(losses: Float[Tensor, "models n"] | Numbers) -> Float[Tensor, "models n"]:
    """Return r_i^k = rank of loss l_i^k among the n of proxy k, over n; ties share their mean rank.

    Args:
        losses: ``(models, n)``, finite.

    Returns:
        ``(models, n)`` float64 in [1/n, 1]. O(models n log n).

    Raises:
        ValueError: NaN or infinite entries, or no samples. TypeError: integers.

    Example:
        >>> normalised_ranks(torch.tensor([[3.0, 1.0, 1.0, 9.0]])).tolist()
        [[0.75, 0.375, 0.375, 1.0]]
    """
    values = _inputs.matrix("losses", losses, ("models", "n")).contiguous()
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).double() / (2 * values.shape[1])


def rank_disagreement(losses: Float[Tensor, "models n"] | Numbers) -> Float[Tensor, " n"]:
    """DR-IS: D_i = mean over pairs of proxies of |r_i^k - r_i^l|, r the normalised ranks; higher = kept first.

    Args:
        losses: ``(models, n)`` per-sample losses of models >= 2 independently trained proxies, at the given labels.

    Returns:
        ``(n,)`` float64 in [0, 1). O(n models log(models n)): the pairs are never formed.

    Raises:
        ValueError: fewer than 2 models, NaN or infinite entries. TypeError: integers.

    References:
        Disagreement-Regularized Importance Sampling for Adversarial Label Corruption (its abstract; statistic ours).

    Example:
        >>> rank_disagreement(torch.tensor([[0.1, 0.2, 9.0], [0.2, 0.1, 8.0]]))
        tensor([0.3333, 0.3333, 0.0000], dtype=torch.float64)
    """
    ranks = normalised_ranks(losses)
    models = ranks.shape[0]
    if models < 2:
        raise ValueError(f"losses has {models} model; rank disagreement needs at least 2")
    place = 2 * torch.arange(models, dtype=torch.float64, device=ranks.device) - (models - 1)
    return (place @ ranks.sort(dim=0).values / (models * (models - 1) / 2)).clamp_min(0)


@dataclass(frozen=True)
class Certificate:
    """A split of the samples at the widest gap of D.

    Attributes:
        keep: ``(n,)`` whether D is above the gap.
        gap: the least D above minus the greatest below.
        radius: t = sqrt(log(2 n / delta) / (2 floor(models / 2))), in the units of D.
        delta: the probability that |D_i - E D_i| > t for any i.
    """

    keep: Bool[Tensor, " n"]
    gap: float
    radius: float
    delta: float

    @property
    def holds(self) -> bool:
        """Whether gap > 2 t: then, with probability 1 - delta, the kept have the greater expected disagreement."""
        return self.gap > 2 * self.radius


def certificate(disagreement: Float[Tensor, " n"] | Numbers, models: int, *, delta: float = 0.05) -> Certificate:
    """Split at the widest gap, with the radius within which every D_i is near its expectation.

    Args:
        disagreement: ``(n,)`` of `rank_disagreement`, n >= 2.
        models: how many proxies made it, >= 2; independent given the samples (no shared data order or warm start).
        delta: in (0, 1).

    Raises:
        ValueError: NaN, n < 2, models < 2, delta outside of (0, 1).

    References:
        The rate sqrt(log(n / delta) / models) of DR-IS; Hoeffding's inequality for U-statistics and a union bound.

    Example:
        >>> split = certificate(torch.tensor([0.1, 0.5, 0.12], dtype=torch.float64), models=200)
        >>> split.keep.tolist(), split.holds
        ([False, True, False], True)
    """
    values = _inputs.matrix("disagreement", disagreement, ("n",))
    n = values.shape[0]
    if n < 2:
        raise ValueError(f"disagreement has {n} entry; a split needs at least 2 samples")
    models = _check.integer("models", models, low=2)
    delta = _check.in_range("delta", delta, low=0, high=1, open_low=True, open_high=True)
    ordered, order = values.sort()
    cut = int((ordered[1:] - ordered[:-1]).argmax())
    keep = torch.zeros(n, dtype=torch.bool, device=values.device).index_fill_(0, order[cut + 1 :], True)
    radius = math.sqrt(math.log(2 * n / delta) / (2 * (models // 2)))
    return Certificate(keep, float(ordered[cut + 1] - ordered[cut]), radius, delta)
