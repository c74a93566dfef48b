"""Sparse IRM: the IRM penalty on a network with a learned mask over its parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from steelyard import reweight
from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.masked_model import MaskedModel
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import Range
from steelyard.experiments.training.trainer import Anneal, Training, schedule, train

__all__ = ["SparseIRM"]


@dataclass(frozen=True)
class SparseIRM(TrainedMethod):
    """Sparse IRM (Zhou et al. 2022, ICML, Sparse Invariant Risk Minimization).

    ``min over (theta, s) of E_{m ~ Bern(s)} [R(m theta) + lambda IRMv1(m theta)]`` with ``0 <= s <= 1`` and
    ``sum s <= budget * parameters``: weights and keep-probabilities move together, each step under one relaxed mask,
    and the keep-probabilities are projected after it (`MaskedModel`). With the budget 1 it is still not plain IRMv1:
    the penalty may take any s below.
    Labels needed: class and environment, in training.
    Published for Colored MNIST (the authors' code): lambda 0 for 200 steps, then 1e4; l2 1e-3; budget 0.95; weights
    Adam 6e-4, keep-probabilities Adam 6e-3 with a cosine to 0; 1,500 steps; hidden layers of 390. Biases carry no mask
    there either. It evaluates another random mask each time; here one draw of the uniforms serves a run. Its start of
    the scores is not published; here it is the budget.

    Attributes:
        budget: largest mean of the keep-probabilities of the parameters, in (0, 1]: always a share, 1 of all.
        score_rate: Adam's step size on the keep-probabilities; it falls to 0 by a cosine over the run.
        penalty: lambda over the steps.
    """

    name: Literal["sparse_irm"] = "sparse_irm"
    budget: Annotated[float, Range.linear(0.5, 1)] = 0.95
    score_rate: Annotated[float, Range.log10(-3, -1.5)] = 6e-3
    penalty: Anneal = field(default_factory=lambda: Anneal(1e4, 0.0, 200))
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("budget", self.budget, low=0.0, high=1.0, open_low=True)
        _check.in_range("score_rate", self.score_rate, low=0.0, open_low=True)
        if self.training.optimizer.name != "adam":
            raise ValueError("sparse_irm trains weights and keep-probabilities with Adam: take optimizer.name = 'adam'")

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return True

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train weights and keep-probabilities, and return the masked model."""
        model = MaskedModel(problem.model(), self.budget, problem.seed)
        optimizer = self.training.optimizer.build(model.parameters())
        optimizer.add_param_group({"params": [model.scores], "lr": self.score_rate, "weight_decay": 0.0})
        steps = self.training.steps
        scheduler = schedule(optimizer, lambda done: 1.0, lambda done: 0.5 * (1 + math.cos(math.pi * done / steps)))
        course = model.follow(optimizer, steps, self.budget)
        trained = train(
            problem,
            self.training,
            observe,
            penalty=reweight.IRMv1(),
            anneal=self.penalty,
            model=model,
            optimizer=optimizer,
            carry={"schedule": scheduler, "mask": course},
        )
        return Fitted(trained)
