"""Square-root re-weighting: half-way between all samples alike and all groups alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from steelyard import reweight
from steelyard.experiments.methods._cells import CellMethod
from steelyard.experiments.methods.found_groups import FOUND, Given, GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.trainer import Training, train

__all__ = ["SqrtReweighting"]


@dataclass(frozen=True)
class SqrtReweighting(CellMethod):
    """Square-root re-weighting: ``sum_i sqrt(n / n_g(i)) l_i``, divided by the weights of the batch.

    From Mahajan et al. 2018 (arXiv:1805.00932, section 2.2), who draw images with such chances. The losses are weighed
    in Yang et al. 2023 (arXiv:2302.12254, SqrtReWeight: by group where attributes are known in training, else by
    class), divided by the number of samples. The few samples of the smallest groups count less than in `upweighting`.
    Labels needed: class and, as `by` says, group or environment, in training; group in validation where selection is by
    the worst group. There are no hyperparameters but those of training.

    Attributes:
        by: the labels whose counts n_g are taken.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`).
    """

    regression: ClassVar[bool] = True
    name: Literal["sqrt_reweighting"] = "sqrt_reweighting"
    by: group_labels.Cell = "group"
    groups: Annotated[GroupSource, FOUND] = field(default_factory=Given)
    training: Training = field(default_factory=Training)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        data = self.labelled(problem)
        rule = reweight.GroupWeights(group_labels.counts(problem.of_all(data), "group"), power=0.5)
        return Fitted(train(problem, self.training, observe, rule=rule, data=data))
