"""Ordered SGD: each step on the largest losses of its batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from steelyard import reweight
from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["OrderedSGD"]


@dataclass(frozen=True)
class OrderedSGD(TrainedMethod):
    """Ordered SGD (Kawaguchi and Lu 2020, arXiv:1907.04371, Algorithm 1).

    The gradient of a step is that of the mean of the q largest losses among the s of the batch. It minimises
    ``(1/q) sum_j gamma_j l_(j)``, l_(j) the j-th largest of all n losses (as they show; `steelyard.theory` has the
    gamma_j and the bound). Labels needed: class. The authors lower q as the training accuracy rises; here q stays.

    Attributes:
        q: losses kept of each batch, at most its size; all of them is plain SGD.
    """

    regression: ClassVar[bool] = True
    q: Annotated[int, Range.log2(2, 6, whole=True)]
    name: Literal["ordered_sgd"] = "ordered_sgd"
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.integer("q", self.q, low=1, high=self.training.batch_size or None)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        return Fitted(train(problem, self.training, observe, rule=reweight.TopQ(self.q)))
