"""Losses of a sample that know how frequent its class is, or how sure the model is of it.

Each is a `SampleLoss`: outputs ``(n, classes)``, or one logit ``(n, 1)``, and class ids ``(n,)`` to losses ``(n,)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._modules import class_logits

__all__ = ["BalancedSoftmaxLoss", "FocalLoss", "LDAMLoss", "soft_cross_entropy"]


def _logits(outputs: Tensor) -> Tensor:
    """Return a logit per class, in single precision at least: losses are sums of small terms."""
    return class_logits(outputs if outputs.dtype == torch.float64 else outputs.float())


class FocalLoss:
    """``(1 - p)^gamma (-log p)``, p the probability of the sample's class (Lin et al. 2017, equation 4, alpha 1).

    Args:
        gamma: >= 0; 0 is cross-entropy.

    Example:
        >>> FocalLoss(2.0)(torch.zeros(1, 2), torch.tensor([0]))  # p is 1/2
        tensor([0.1733])
    """

    def __init__(self, gamma: float | int) -> None:
        self.gamma = _check.in_range("gamma", gamma, low=0.0)

    def __call__(self, outputs: Float[Tensor, "n outputs"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the losses."""
        losses = F.cross_entropy(_logits(outputs), targets, reduction="none")
        if not self.gamma:
            return losses
        # At a loss of 0 a power below 1 has an infinite derivative, and this loss the derivative 0.
        wrong = -torch.expm1(-losses.clamp(min=torch.finfo(losses.dtype).tiny))
        return wrong**self.gamma * losses


class LDAMLoss:
    """Cross-entropy of ``scale (z_j - m_y [j = y])``, the margin m_y in proportion to ``n_y^(-1/4)``.

    Cao et al. 2019, equations 9 to 13. The largest margin, that of the rarest class, is `margin`.

    Args:
        counts: ``(classes,)`` training samples of each class, at least one.
        margin: >= 0, the largest margin; 0 is cross-entropy of ``scale z``.
        scale: > 0.
    """

    def __init__(self, counts: Int[Tensor, " classes"], margin: float | int = 0.5, scale: float | int = 30.0) -> None:
        rarity = counts.double() ** -0.25
        self.margins = (_check.in_range("margin", margin, low=0.0) * rarity / rarity.max()).float()
        self.scale = _check.in_range("scale", scale, low=0.0, open_low=True)

    def __call__(self, outputs: Float[Tensor, "n outputs"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the losses."""
        logits = _logits(outputs)
        own = F.one_hot(targets, logits.shape[1]) * self.margins.to(logits)
        return F.cross_entropy(self.scale * (logits - own), targets, reduction="none")


class BalancedSoftmaxLoss:
    """Cross-entropy of ``z_j + log n_j`` (Ren et al. 2020, equation 3): the model itself is for balanced classes.

    Args:
        counts: ``(classes,)`` n_j, training samples of each class, at least one; equal ones give cross-entropy.
    """

    def __init__(self, counts: Int[Tensor, " classes"]) -> None:
        self.log_counts = counts.double().log().float()

    def __call__(self, outputs: Float[Tensor, "n outputs"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the losses."""
        logits = _logits(outputs)
        return F.cross_entropy(logits + self.log_counts.to(logits), targets, reduction="none")


def soft_cross_entropy(outputs: Float[Tensor, "n outputs"], targets: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """Return cross-entropy by targets that are a share for each class: linear in them, so that mixed labels mix it."""
    return F.cross_entropy(_logits(outputs), targets.to(_logits(outputs).dtype), reduction="none")
