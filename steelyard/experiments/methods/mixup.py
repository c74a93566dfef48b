"""Mixup: training on convex combinations of pairs of samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.class_losses import soft_cross_entropy
from steelyard.experiments.training.mixing import MixBatch, check_mixing
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["Mixup"]


@dataclass(frozen=True)
class Mixup(TrainedMethod):
    """Mixup (Zhang et al. 2018, arXiv:1710.09412, equation 1): ``x = lambda x_i + (1 - lambda) x_j``, labels alike.

    lambda is drawn from Beta(alpha, alpha) for each batch, which is mixed with itself in another order, as in the
    authors' code. The loss is cross-entropy by the mixed labels, which is ``lambda l(y_i) + (1 - lambda) l(y_j)``.
    Labels needed: class; group in validation where the settings are chosen by the worst group.
    Published: alpha 0.2 (ImageNet) to 1 (CIFAR).

    Attributes:
        alpha: >= 0; 0 is ERM.

    Raises (in `fit`):
        ValueError: several processes, or inputs that are no floating-point numbers.
    """

    name: Literal["mixup"] = "mixup"
    alpha: Annotated[float, Range.log10(-1, 1, SUBPOPBENCH)] = 0.2
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("alpha", self.alpha, low=0.0)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        check_mixing(problem, self.name)
        mix = MixBatch(self.alpha, len(problem.splits.classes), problem.seed)
        return Fitted(train(problem, self.training, observe, perturb=mix, loss=soft_cross_entropy))
