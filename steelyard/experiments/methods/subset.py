"""A prior alone: keep the samples it puts first, and train on these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch

from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.priors import PriorSettings
from steelyard.experiments.training.batches import shuffled
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import Fixed, Range
from steelyard.experiments.training.trainer import Training, train
from steelyard.reweight import Reweighting, budget_of

__all__ = ["Subset"]


@dataclass(frozen=True)
class Subset(TrainedMethod):
    """Keep the `budget` samples of highest prior, and minimise their mean loss: what a score does without MAPLE.

    Labels needed: class labels.

    Attributes:
        budget: K, the number of training samples kept (all, if there are no more), or below 1 their share, rounded; of
            equal priors the earlier ones.
        prior: the scores, pooled as for MAPLE. Nothing begins at the prior or is anchored: leave `start` and `anchor`.
        training: on the samples kept.
    """

    budget: Annotated[int | float, Range.linear(0.2, 0.9)]
    name: Literal["subset"] = "subset"
    prior: Annotated[PriorSettings, Fixed("scores are chosen, not drawn")] = field(default_factory=PriorSettings)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if _check.in_range("budget", self.budget, low=0, open_low=True) >= 1:
            _check.integer("budget", self.budget)  # type: ignore[arg-type]
        if not self.prior.scores:
            raise ValueError("prior.scores is empty: name the scores that choose the subset")
        if self.prior.anchor or self.prior.start != "probabilities":
            raise ValueError("prior.start and prior.anchor are for MAPLE: a subset is chosen once")

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Choose, train, and return the last model with the choice: weight 1, keep-probability 1 or 0."""
        data = problem.splits.train
        budget = min(max(1, round(budget_of(self.budget, len(data)))), len(data))
        prior = self.prior.compute(problem, budget).probabilities
        kept = prior.argsort(descending=True, stable=True)[:budget].sort().values
        model = train(problem, self.training, observe, rows=shuffled(kept, self.training.batch_size, problem.seed))
        chosen = torch.zeros(len(data), device=kept.device).index_fill_(0, kept, 1.0)
        return Fitted(model, Reweighting(torch.ones_like(chosen), chosen, [], data.index))
