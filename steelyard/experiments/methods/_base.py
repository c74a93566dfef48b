"""What the methods that train by `Training` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from steelyard.experiments.methods._reads import Reads
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.trainer import Training

__all__ = ["TrainedMethod"]


class TrainedMethod(Reads, ABC):
    """A method whose observed steps are those of its `training`: a dataclass of settings, and `fit`.

    Attributes:
        regression: whether it runs where the target is a number: it needs no classes.
        training: how the last model is trained.
    """

    regression: ClassVar[bool] = False
    training: Training

    @property
    def last_step(self) -> int:
        """The number of the last step that is observed."""
        return self.training.steps

    @abstractmethod
    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train on `problem`, tell `observe` of each step that is to be measured, and return what came out."""
