"""Columns shifted and scaled to mean 0 and standard deviation 1, before they are rounded to float32."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["scales_of", "standardise"]

_ROUNDED = 1e-13
"""Deviations below this share of the numbers are what float64 rounds, not what a column says."""


def standardise(numbers: Float[Tensor, "n width"], train: Int[Tensor, " k"]) -> Float[Tensor, "n width"]:
    """Return the columns shifted and scaled to mean 0 and standard deviation 1 over the rows `train`.

    A column that is constant there is only shifted.
    """
    mean, deviation = scales_of(numbers[train])
    return ((numbers.double() - mean) / deviation).float()


def scales_of(numbers: Float[Tensor, "k width"]) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """Return mean and standard deviation of each column in float64; of a constant one its value, and 1."""
    numbers = numbers.double()
    mean, deviation = numbers.mean(0), numbers.std(0, correction=0)
    low, high = numbers.amin(0), numbers.amax(0)
    varies = (high > low) & (deviation > _ROUNDED * numbers.abs().amax(0))
    return torch.where(high > low, mean, low), torch.where(varies, deviation, 1.0)
