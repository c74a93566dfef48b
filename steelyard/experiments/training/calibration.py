"""Estimates from counts and probabilities: calibration error, and the interval of a share."""

from __future__ import annotations

import math
import statistics

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steelyard._support import _check

__all__ = ["binomial_interval", "calibration_error", "confidence"]


def confidence(outputs: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
    """Return the probability that a model gives to the class it predicts, from one logit or a logit per class."""
    logits = outputs.float()
    if logits.shape[1] == 1:
        return logits.squeeze(1).abs().sigmoid()
    return logits.softmax(1).amax(1)


def calibration_error(probability: Float[Tensor, " n"], right: Bool[Tensor, " n"], bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, on average over samples.

    Predictions are put into bins of equal width by their probability; the error is the mean over samples of their
    bin's ``|accuracy - mean probability|`` (Naeini et al. 2015; Guo et al. 2017, equation 3). The estimate is biased
    upwards where bins hold few samples.

    Example:
        >>> right = torch.tensor([True, True, True, False])
        >>> round(calibration_error(torch.tensor([0.9, 0.9, 0.6, 0.6]), right), 6)
        0.1
    """
    _check.integer("bins", bins, low=1)
    place: Int[Tensor, " n"] = (probability.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)  # (low, high]
    gap = torch.zeros(bins, dtype=torch.float64, device=probability.device)
    gap.index_add_(0, place, right.double() - probability.double())
    return float(gap.abs().sum()) / max(len(right), 1)


def binomial_interval(right: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a share of `right` in `count` (Wilson 1927).

    Unlike the share plus or minus its standard error it is inside [0, 1] and not empty when all or none are right.
    Without a sample it is [0, 1].

    Example:
        >>> low, high = binomial_interval(56, 56)
        >>> round(low, 3), high
        (0.936, 1.0)
    """
    _check.in_range("level", level, low=0.0, high=1.0, open_low=True, open_high=True)
    if not 0 <= right <= count:
        raise ValueError(f"right must be in [0, count], got {right} of {count}")
    if not count:
        return 0.0, 1.0
    z2 = statistics.NormalDist().inv_cdf((1 + level) / 2) ** 2
    share = right / count
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    # at the ends centre and half are equal but for rounding
    return 0.0 if right == 0 else centre - half, 1.0 if right == count else centre + half
