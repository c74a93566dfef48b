"""Variance risk extrapolation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelyard import reweight
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.trainer import Anneal, Training, train

__all__ = ["VREx"]


@dataclass(frozen=True)
class VREx(TrainedMethod):
    """V-REx (Krueger et al. 2021, arXiv:2003.00688, equation 8).

    The mean loss plus lambda times the variance over environments of the environment's mean loss.
    Labels needed: class and environment, in training. Published settings for Colored MNIST: the recipe
    `colored_mnist/vrex`.
    """

    regression: ClassVar[bool] = True
    name: Literal["vrex"] = "vrex"
    training: Training = field(default_factory=Training)
    penalty: Anneal = field(default_factory=Anneal)

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return True

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        return Fitted(train(problem, self.training, observe, penalty=reweight.VREx(), anneal=self.penalty))
