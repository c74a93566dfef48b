"""Up-weighting and balanced sampling of groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from steelyard import reweight
from steelyard.experiments.methods._cells import CellMethod
from steelyard.experiments.methods.found_groups import FOUND, Given, GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.batches import sampled
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.trainer import Training, train

__all__ = ["UpWeighting"]


@dataclass(frozen=True)
class UpWeighting(CellMethod):
    """Every group counts the same: ``sum_i (n / n_g(i)) l_i``, or batches drawn with those chances.

    The two have one expectation; on nets that can fit everything the weights of the loss fade, the batches do not
    (Byrd and Lipton 2019, arXiv:1812.03372; Sagawa et al. 2020, arXiv:1911.08731, compare Group DRO with it).
    Labels needed: class and, as `by` says, group or environment, in training; group in validation where selection is by
    the worst group. There are no hyperparameters but those of training. SubpopBench's ReWeight and ReSample are the two
    forms; where it knows no attribute in training they balance the classes, as ``by = "class"`` does.

    Attributes:
        by: the labels that are balanced.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`).
        balance: "loss" weighs the losses, "batches" draws the batches with replacement (needs a batch size).
    """

    regression: ClassVar[bool] = True
    name: Literal["upweighting"] = "upweighting"
    by: group_labels.Cell = "group"
    balance: Literal["loss", "batches"] = "loss"
    groups: Annotated[GroupSource, FOUND] = field(default_factory=Given)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.balance == "batches" and not self.training.batch_size:
            raise ValueError("balance = 'batches' draws batches: it needs a training.batch_size above 0")

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        data = self.labelled(problem)
        everything = problem.of_all(data)
        rule = reweight.GroupWeights(group_labels.counts(everything, "group"))
        if self.balance == "loss":
            return Fitted(train(problem, self.training, observe, rule=rule, data=data))
        rows = sampled(self.training.batch_size, rule.of(everything), problem.seed)
        return Fitted(train(problem, self.training, observe, data=data, rows=rows))
