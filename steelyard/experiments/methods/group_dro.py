"""Group DRO: the worst group's loss, by exponentiated weights of the groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch

from steelyard import reweight
from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.methods._reads import ReadsBy
from steelyard.experiments.methods.found_groups import FOUND, Given, GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.batches import sampled
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["GroupDRO"]


@dataclass(frozen=True)
class GroupDRO(ReadsBy, TrainedMethod):
    """Group DRO (Sagawa et al. 2020, arXiv:1911.08731, Algorithm 1; the adjustment is of section 3.3).

    ``min_theta max_g R_g + C / sqrt(n_g)``: at each step ``q_g <- q_g exp(step (R_g + C / sqrt(n_g)))``, normalised,
    and the loss is ``sum_g q_g R_g`` (`reweight.GroupDRO`).
    Labels needed: class and group (or environment), in training; group in validation, to choose C and the step.
    Published: step 0.01, batch 128, SGD with momentum 0.9, groups sampled alike; Waterbirds learning rate 1e-3, weight
    decay 1e-4, 300 epochs, or 1e-5 and 1.0 (strong L2); CelebA 1e-4 and 1e-4, 50 epochs, or 1e-5 and 0.1.

    Attributes:
        step: size of the exponentiated step.
        adjustment: C, the generalisation adjustment; 0 is none.
        by: the labels that make the groups.
        groups: where they come from, if `by` is "group": the data, or found (`found_groups`).
        balanced: draw batches with every group as likely (needs a batch size), as published.
        weighed: end with a weight for each training sample: that of its group at the last step, q_g n / n_g.
    """

    regression: ClassVar[bool] = True
    name: Literal["group_dro"] = "group_dro"
    step: Annotated[float, Range.log10(-3, -1, SUBPOPBENCH)] = 0.01
    adjustment: Annotated[float, FIXED] = 0.0
    by: group_labels.Field = "group"
    balanced: bool = False
    weighed: bool = False
    groups: Annotated[GroupSource, FOUND] = field(default_factory=Given)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("step", self.step, low=0.0, open_low=True)
        _check.in_range("adjustment", self.adjustment, low=0.0)
        if self.balanced and not self.training.batch_size:
            raise ValueError("balanced draws batches: it needs a training.batch_size above 0")

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        data = self.groups.label(problem) if self.by == "group" else problem.splits.train
        everything = problem.of_all(data)
        counts = group_labels.counts(everything, self.by)
        rule = reweight.GroupDRO(counts, self.step, self.adjustment, self.by)
        rows = None
        if self.balanced:
            chance = reweight.GroupWeights(counts, self.by).of(everything)
            rows = sampled(self.training.batch_size, chance, problem.seed)
        model = train(problem, self.training, observe, rule=rule, data=data, rows=rows)
        if not self.weighed:
            return Fitted(model)
        labels = everything.group if self.by == "group" else everything.environment
        assert labels is not None  # counts refuses it
        weights = (rule.q * counts.sum() / counts).float()[labels]
        return Fitted(model, reweight.Reweighting(weights, torch.ones_like(weights), [], everything.index))
