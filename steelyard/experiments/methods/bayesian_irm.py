"""Bayesian IRM: the IRM penalty averaged over what each environment's best scale may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch

from steelyard import reweight
from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, Range
from steelyard.experiments.training.trainer import Anneal, Training, train

__all__ = ["BayesianIRM"]


@dataclass(frozen=True)
class BayesianIRM(TrainedMethod):
    """Bayesian IRM (Lin et al. 2022, CVPR), in the form of its authors' code.

    The mean loss plus lambda times the mean over draws and environments of ``(d R_e(s * outputs) / d s at s_e)^2`` with
    ``s_e ~ N(1, (c / n)^2)``, n the training samples (`reweight.BayesianIRM`).
    Labels needed: class and environment, in training.
    Published for Colored MNIST: c 1200, 10 draws, lambda 0 for 200 steps and then 1e4, l2 1e-3, Adam 4e-4, 1,500 steps,
    hidden layers of 390; c 1500 and lambda from step 40 on for CIFAR-MNIST. The code also divides the rate by ten
    half way, and takes the mean loss at the last draw's scales; neither is done here.

    Attributes:
        coefficient: c. The spread c / n falls with the samples, as a posterior's does.
        draws: scales drawn for each environment at each step.
        penalty: lambda over the steps.
    """

    regression: ClassVar[bool] = True
    name: Literal["bayesian_irm"] = "bayesian_irm"
    coefficient: Annotated[float, Range.log10(2, 4)] = 1200.0
    draws: Annotated[int, FIXED] = 10
    penalty: Anneal = field(default_factory=lambda: Anneal(1e4, 0.0, 200))
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("coefficient", self.coefficient, low=0.0)
        _check.integer("draws", self.draws, low=1)

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return True

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        spread = self.coefficient / len(problem.of_all(problem.splits.train))
        penalty = reweight.BayesianIRM(spread, torch.Generator().manual_seed(problem.seed), self.draws)
        return Fitted(train(problem, self.training, observe, penalty=penalty, anneal=self.penalty))
