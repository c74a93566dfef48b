"""Threshold classifiers x -> 1[x > t] on the line under the 0-1 loss: every term of Theorem 1 without a search.

The n + 1 classifiers that differ on a sample are reached by t = -inf and t = each x_i, so suprema and infima over the
whole class are maxima over n + 1 numbers, all had from one sort and cumulative sums: O(n log n) a draw.

``orientations=2`` adds the reversed classifiers 1[x <= t], whose errors are n minus those of 1[x > t].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard.theory.estimate import Estimate
from steelyard.theory.ordered import top_q_weights

__all__ = [
    "ThresholdErrors",
    "threshold_complexity",
    "threshold_complexity_distinct",
    "threshold_errors",
]


@dataclass(frozen=True)
class ThresholdErrors:
    """The errors of all the classifiers that two samples (clean and corrupted) can tell apart.

    Attributes:
        thresholds: ``(*draws, k)``, ascending; the first is -inf.
        clean, corrupted: ``(*draws, k)`` error counts of 1[x > t] on the clean and on the corrupted sample.
        n: samples a draw.
        orientations: 1, or 2 if the reversed classifiers belong to the class.
    """

    thresholds: Float[Tensor, "*draws k"]
    clean: Int[Tensor, "*draws k"]
    corrupted: Int[Tensor, "*draws k"]
    n: int
    orientations: int = 1

    def top_q(self, s: int, q: int) -> Float[Tensor, "*draws orientations_k"]:
        """Return L_q on the corrupted sample for every classifier ``(*draws, orientations * k)``."""
        return self._lookup(s, q)[self._both(self.corrupted)]

    def risk(self) -> Float[Tensor, "*draws orientations_k"]:
        """Return L, the mean loss on the clean sample, for every classifier."""
        return self._both(self.clean).double() / self.n

    def factor(self, s: int, q: int) -> Float[Tensor, "*draws"]:
        """Return, per draw, inf_t [L_q(t; g(D)) - L(t; D)]: exact; its mean over draws is Q_{n,q}."""
        return (self.top_q(s, q) - self.risk()).amin(-1)

    def _both(self, counts: Tensor) -> Tensor:
        return counts if self.orientations == 1 else torch.cat([counts, self.n - counts], dim=-1)

    def _lookup(self, s: int, q: int) -> Tensor:
        gamma = top_q_weights(self.n, s, q)
        return torch.cat([gamma.new_zeros(1), gamma.cumsum(0)]) / q


def threshold_errors(
    inputs: Float[Tensor, "*draws n"],
    targets: Int[Tensor, "*draws n"],
    corrupted_inputs: Float[Tensor, "*draws n"] | None = None,
    corrupted_targets: Int[Tensor, "*draws n"] | None = None,
    *,
    orientations: int = 1,
) -> ThresholdErrors:
    """Count the errors of every threshold classifier on D and on g(D); None: that part is not corrupted.

    Args:
        inputs: ``(*draws, n)`` positions on the line. targets: ``(*draws, n)`` labels 0 or 1.
        corrupted_inputs, corrupted_targets: the same samples after g.
        orientations: 1 for 1[x > t] alone, 2 to add 1[x <= t].

    Raises:
        ValueError: targets outside {0, 1}, orientations not 1 or 2.

    Example:
        >>> table = threshold_errors(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]))
        >>> table.thresholds.tolist()[1:], table.clean.tolist()
        ([0.10000000149011612, 0.8999999761581421], [1, 0, 1])
    """
    _check.choice("orientations", orientations, (1, 2))
    for name, labels in (("targets", targets), ("corrupted_targets", corrupted_targets)):
        if labels is not None and not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(f"{name} must be 0 or 1 for threshold classifiers")
    noisy_inputs = inputs if corrupted_inputs is None else corrupted_inputs
    noisy_targets = targets if corrupted_targets is None else corrupted_targets
    points = inputs if corrupted_inputs is None else torch.cat([inputs, noisy_inputs], dim=-1)
    lowest = torch.full((*points.shape[:-1], 1), -math.inf, dtype=points.dtype)
    thresholds = torch.cat([lowest, points.sort(dim=-1).values], dim=-1)
    return ThresholdErrors(
        thresholds,
        _errors(inputs, targets, thresholds),
        _errors(noisy_inputs, noisy_targets, thresholds),
        inputs.shape[-1],
        orientations,
    )


def threshold_complexity(
    inputs: Float[Tensor, " n"],
    targets: Int[Tensor, " n"],
    *,
    draws: int,
    generator: torch.Generator,
    orientations: int = 1,
) -> Estimate:
    """Return R^_n of the 0-1 loss of threshold classifiers by Monte Carlo over signs; each draw is exact.

    Ties among the inputs are allowed. Cost: O(n log n + draws n).
    """
    draws = _check.integer("draws", draws, low=2)
    _check.choice("orientations", orientations, (1, 2))
    ordered, order = inputs.sort()
    reachable = torch.ones(len(inputs) + 1, dtype=torch.bool)
    reachable[1:-1] = ordered[1:] != ordered[:-1]  # a threshold cannot part equal inputs
    step = (targets[order] * 2 - 1).double()  # t passing sample i adds its loss if y = 1, removes it if y = 0
    values = []
    for start in range(0, draws, chunk := max(1, 4_000_000 // len(inputs))):
        signs = torch.randint(0, 2, (min(chunk, draws - start), len(inputs)), generator=generator).double() * 2 - 1
        first = (signs * (step < 0)).sum(1, keepdim=True)
        sums = torch.cat([first, first + (signs * step).cumsum(1)], dim=1)[:, reachable]
        best = sums.amax(1)
        values.append(best if orientations == 1 else torch.maximum(best, signs.sum(1) - sums.amin(1)))
    sample = torch.cat(values) / len(inputs)
    return Estimate(float(sample.mean()), "exact", float(sample.std()) / math.sqrt(draws), f"{draws} draws of signs")


def threshold_complexity_distinct(n: int) -> Estimate:
    """Return R^_n of the 0-1 loss of 1[x > t] on n distinct inputs, whatever the labels: closed form, O(n).

    As t passes a sample, the sum of xi_i l_i changes by xi_i (y = 1) or -xi_i (y = 0): a fair step of +-1 either way.
    So n R^_n is the mean maximum of a simple random walk W of n steps, by the reflection principle

        E max_k W_k = E|W_n| - (1 - P(W_n = 0)) / 2,

    and R^_n ~ sqrt(2 / (pi n)). (The walk's start, a sum of signs, has mean zero.)

    Example:
        >>> threshold_complexity_distinct(1).value      # E max(0, xi)
        0.5
    """
    n = _check.integer("n", n, low=1)
    half = (n + 1) // 2
    central = math.exp(float(torch.log1p(-0.5 / torch.arange(1, half + 1, dtype=torch.float64)).sum()))  # C(2h,h)/4^h
    at_zero = central if n % 2 == 0 else 0.0
    return Estimate((2 * half * central - (1 - at_zero) / 2) / n, "exact", note="mean maximum of a random walk")


def _errors(inputs: Tensor, targets: Tensor, thresholds: Tensor) -> Tensor:
    """Errors of 1[x > t]: positives at or below t, and negatives above it. O(n log n)."""
    ordered, order = inputs.sort(dim=-1)
    labels = targets.gather(-1, order)
    zero = torch.zeros((*labels.shape[:-1], 1), dtype=torch.long)
    positives = torch.cat([zero, labels.cumsum(-1)], dim=-1)
    at_or_below = torch.searchsorted(ordered, thresholds, right=True)
    positives_below = positives.gather(-1, at_or_below)
    negatives = inputs.shape[-1] - labels.sum(-1, keepdim=True)
    return positives_below + negatives - (at_or_below - positives_below)
