"""Balanced softmax: the classes' frequencies stand in the training loss, and not in the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.class_losses import BalancedSoftmaxLoss
from steelyard.experiments.training.group_labels import class_counts
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.trainer import Training, train

__all__ = ["BalancedSoftmax"]


@dataclass(frozen=True)
class BalancedSoftmax(TrainedMethod):
    """Balanced softmax (Ren et al. 2020, arXiv:2007.10740, equation 3): cross-entropy of ``z_j + log n_j``.

    n_j are the training samples of class j. The model's own outputs z are those for classes that are equally frequent.
    With equal n_j this is ERM. It knows no groups: where all classes are alike and groups are not it changes nothing.
    Labels needed: class; group in validation where selection is by the worst group. There are no hyperparameters but
    those of training.
    """

    name: Literal["balanced_softmax"] = "balanced_softmax"
    training: Training = field(default_factory=Training)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        counts = class_counts(problem.of_all(problem.splits.train), len(problem.splits.classes))
        return Fitted(train(problem, self.training, observe, loss=BalancedSoftmaxLoss(counts)))
