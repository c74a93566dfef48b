"""Progressive data expansion: a group-balanced start, then a few more samples at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch

from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.batches import expanding, group_balanced_subset
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, Range
from steelyard.experiments.training.trainer import Training, schedule, train

__all__ = ["PDE"]


@dataclass(frozen=True)
class PDE(TrainedMethod):
    """Progressive data expansion (Deng et al. 2023, arXiv:2306.04949, Algorithm 1).

    ERM on a growing set: first a random subset with as many samples of every group as the smallest group has, then
    `add` more of the others, drawn uniformly, each `every` steps. The features that the balanced start taught are meant
    to last, by the optimizer's momentum too, while the rest refines them.
    Labels needed: class and group (or environment), in training; group in validation, to choose the last model.
    Published (the authors' README, in epochs of the current set): Waterbirds batch 64, learning rate 1e-2, weight decay
    1e-2, warm-up 140, then 10 samples each 10 epochs, the rate times 0.01; CelebA 1e-2, 1e-4, warm-up 16, 50 samples
    each 10 epochs. Lengths here are in steps.

    Attributes:
        warm_up: steps on the balanced start.
        every: steps between two additions after that.
        add: samples added each time.
        late_rate: what the learning rate is multiplied by after the warm-up.
        by: the labels that are balanced at the start.
    """

    regression: ClassVar[bool] = True
    name: Literal["pde"] = "pde"
    warm_up: Annotated[int, Range.linear(0.1, 0.9, of="training.steps")] = 100
    every: Annotated[int, FIXED] = 10
    add: Annotated[int, Range.log10(0.5, 2, whole=True)] = 10
    late_rate: Annotated[float, Range.log10(-2, 0)] = 1.0
    by: group_labels.Field = "group"
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        for name in ("warm_up", "every", "add"):
            _check.integer(name, getattr(self, name), low=1)
        _check.in_range("late_rate", self.late_rate, low=0.0, high=1.0, open_low=True)

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return self.by == "environment"

    @property
    def needs_training_groups(self) -> bool:
        """Whether it reads the groups of training samples."""
        return self.by == "group"

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        data = group_labels.with_groups(problem.splits.train) if self.by == "group" else problem.splits.train
        everything = problem.of_all(data)
        group_labels.counts(everything, self.by)
        labels = everything.group if self.by == "group" else everything.environment
        assert labels is not None  # counts refuses it
        first = group_balanced_subset(labels, torch.Generator().manual_seed(problem.seed))
        rows = expanding(
            len(everything),
            first,
            self.training.batch_size,
            warm_up=self.warm_up,
            every=self.every,
            add=self.add,
            seed=problem.seed,
        )
        model = problem.model()
        optimizer = self.training.optimizer.build(model.parameters())
        scheduler = schedule(optimizer, lambda done: 1.0 if done < self.warm_up else self.late_rate)
        return Fitted(
            train(
                problem,
                self.training,
                observe,
                data=data,
                rows=rows,
                model=model,
                optimizer=optimizer,
                carry={"schedule": scheduler},
            )
        )
