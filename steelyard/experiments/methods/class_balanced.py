"""Class-balanced loss: samples weigh one over the effective number of samples of their class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from steelyard import reweight
from steelyard._support import _check
from steelyard.experiments.methods._cells import CellMethod
from steelyard.experiments.methods.found_groups import FOUND, Given, GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["ClassBalanced"]


@dataclass(frozen=True)
class ClassBalanced(CellMethod):
    """Class-balanced loss (Cui et al. 2019, arXiv:1901.05555, equation 10).

    ``sum_i (1 - beta) / (1 - beta^n_y(i)) l_i``, divided by the weights of the batch (`reweight.EffectiveNumber`): beta
    0 is ERM, beta towards 1 `upweighting` of classes. Once n is far above 1 / (1 - beta), more samples of a class no
    longer lower the weight of each.
    Labels needed: class; group or environment too where `by` says so, as in Yang et al. 2023 (CBLoss, by group where
    attributes are known in training).
    Published: beta 0.9, 0.99, 0.999 or 0.9999, by data set.

    Attributes:
        beta: in [0, 1).
        by: the labels whose counts are taken.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`).
    """

    name: Literal["class_balanced"] = "class_balanced"
    beta: Annotated[float, Range.below_one(-5, -2, SUBPOPBENCH)] = 0.9999
    by: group_labels.Cell = "class"
    groups: Annotated[GroupSource, FOUND] = field(default_factory=Given)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("beta", self.beta, low=0.0, high=1.0, open_high=True)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        data = self.labelled(problem)
        rule = reweight.EffectiveNumber(group_labels.counts(problem.of_all(data), "group"), self.beta)
        return Fitted(train(problem, self.training, observe, rule=rule, data=data))
