"""Focal loss: what the model is sure of counts less."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log10
from typing import Annotated, Literal

from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.class_losses import FocalLoss
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["Focal"]


@dataclass(frozen=True)
class Focal(TrainedMethod):
    """Focal loss (Lin et al. 2017, arXiv:1708.02002, equation 4): ``mean_i (1 - p_i)^gamma (-log p_i)``.

    p_i is the probability of the sample's class. Its factor alpha, a weight for each class, is left out, as in Yang et
    al. 2023 (Focal). Wrong labels are what a model is least sure of: they count most.
    Labels needed: class; group in validation where the settings are chosen by the worst group.
    Published: gamma 2 for detection, with little difference from 0.5 to 5.

    Attributes:
        gamma: >= 0; 0 is ERM.
    """

    name: Literal["focal"] = "focal"
    gamma: Annotated[float, Range.log10(log10(0.5), log10(5), SUBPOPBENCH)] = 1.0
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("gamma", self.gamma, low=0.0)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        return Fitted(train(problem, self.training, observe, loss=FocalLoss(self.gamma)))
