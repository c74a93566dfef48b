"""A learning problem where every term of Theorem 1, and its left-hand side, are known: thresholds on [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard.theory.corruption import Corruption, require_fixed
from steelyard.theory.thresholds import ThresholdErrors, threshold_errors

__all__ = ["ThresholdProblem"]


@dataclass(frozen=True)
class ThresholdProblem:
    """x uniform on [0, 1]; y = 1[x > boundary], flipped with probability `noise`; the 0-1 loss, so M = 1.

    `noise` belongs to the distribution that the risk is taken over; what a corruption adds on top does not.

    Args:
        boundary: in [0, 1]. noise: in [0, 1/2). orientations: 2 adds the reversed classifiers to Theta.
    """

    boundary: float = 0.5
    noise: float = 0.0
    orientations: int = 1

    def __post_init__(self) -> None:
        _check.in_range("boundary", self.boundary, low=0.0, high=1.0)
        _check.in_range("noise", self.noise, low=0.0, high=0.5, open_high=True)
        _check.choice("orientations", self.orientations, (1, 2))

    def sample(self, draws: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs ``(draws, n)`` float64 and targets ``(draws, n)`` int64."""
        inputs = torch.rand(draws, n, generator=generator, dtype=torch.float64)
        flips = torch.rand(draws, n, generator=generator) < self.noise
        return inputs, ((inputs > self.boundary) ^ flips).long()

    def errors(self, draws: int, n: int, corruption: Corruption, generator: torch.Generator) -> ThresholdErrors:
        """Draw samples, corrupt them, and count the errors of every classifier on both; O(draws n log n).

        Raises:
            ValueError: the corruption looks across samples, which Theorem 1 does not cover.
        """
        inputs, targets = self.sample(draws, n, generator)
        noisy_inputs, noisy_targets = require_fixed(corruption)(inputs, targets, generator)
        moved = None if noisy_inputs is inputs else noisy_inputs
        return threshold_errors(inputs, targets, moved, noisy_targets, orientations=self.orientations)

    def risk(self, thresholds: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Return E l of 1[x > t]: noise + (1 - 2 noise) |t - boundary|, t cut to [0, 1]."""
        distance = (thresholds.double().clamp(0, 1) - self.boundary).abs()
        return self.noise + (1 - 2 * self.noise) * distance

    def worst_risk(self, table: ThresholdErrors) -> Float[Tensor, "*draws orientations_k"]:
        """Return, for each classifier that the sample can tell apart, the largest E l among those it cannot.

        Between neighbouring thresholds t_k and t_{k+1} the sample's losses do not change and the risk is piecewise
        linear, so the supremum over the interval is at one of its ends: with it, statements "for all theta" are checked
        over the whole continuum.
        """
        left = table.thresholds.clamp(0, 1)
        right = torch.cat([left[..., 1:], torch.ones_like(left[..., :1])], dim=-1)
        forward = torch.maximum(self.risk(left), self.risk(right))
        if self.orientations == 1:
            return forward
        inside = (left <= self.boundary) & (self.boundary <= right)
        least = torch.minimum(self.risk(left), self.risk(right)).masked_fill(inside, self.noise)
        return torch.cat([forward, 1 - least], dim=-1)
