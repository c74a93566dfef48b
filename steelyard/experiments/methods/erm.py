"""Empirical risk minimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.trainer import Training, train

__all__ = ["ERM"]


@dataclass(frozen=True)
class ERM(TrainedMethod):
    """Empirical risk minimisation: the mean loss of the training samples, all alike.

    Labels needed: class labels. On grayscale data this is the oracle, which cannot see the colour.
    """

    regression: ClassVar[bool] = True
    name: Literal["erm"] = "erm"
    training: Training = field(default_factory=Training)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        return Fitted(train(problem, self.training, observe))
