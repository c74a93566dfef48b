"""Invariant risk minimisation, the practical version 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelyard import reweight
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.trainer import Anneal, Training, train

__all__ = ["IRMv1"]


@dataclass(frozen=True)
class IRMv1(TrainedMethod):
    """IRMv1 (Arjovsky et al. 2019, arXiv:1907.02893, equation (IRMv1) of section 3).

    The mean loss plus lambda times the mean over environments of ``(d R_e(s * outputs) / d s at s = 1)^2``.
    Labels needed: class and environment, in training. Published settings for Colored MNIST: the recipe
    `colored_mnist/irmv1`.
    """

    regression: ClassVar[bool] = True
    name: Literal["irmv1"] = "irmv1"
    training: Training = field(default_factory=Training)
    penalty: Anneal = field(default_factory=Anneal)

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return True

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        return Fitted(train(problem, self.training, observe, penalty=reweight.IRMv1(), anneal=self.penalty))
