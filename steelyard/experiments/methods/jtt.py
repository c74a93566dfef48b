"""Just train twice: the second time with the first model's errors repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import nn

from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.batches import shuffled
from steelyard.experiments.training.misclassified import misclassified
from steelyard.experiments.training.problem import Fitted, Observer, Problem, silent
from steelyard.experiments.training.ranges import SUBPOPBENCH, Range, Within
from steelyard.experiments.training.trainer import Training, train

__all__ = ["JTT"]

# The two trainings are alike but for their length.
_FIRST = Within({"steps": Range.linear(0.2, 0.8, SUBPOPBENCH, of="training.steps")}, like="training")


@dataclass(frozen=True)
class JTT(TrainedMethod):
    """JTT (Liu et al. 2021, arXiv:2107.09044, Algorithm 1).

    An ERM model, stopped early, has the error set E; the final model is trained from scratch on the samples with
    those of E lambda times: ``lambda sum_E l_i + sum_others l_i``.
    Labels needed: class; group in validation, to choose the first stage's length and lambda.
    Published: Waterbirds T = 60 epochs, lambda 100, learning rate 1e-5, weight decay 1.0, 300 epochs; CelebA T = 1,
    lambda 50, 1e-5, 0.1, 50 epochs; batch 64.

    Attributes:
        upweight: lambda, a whole number: the error set is repeated, so that batches see it that often.
        identification: the first training, whose last model makes the error set. It is not observed.
        training: the second one.
    """

    name: Literal["jtt"] = "jtt"
    upweight: Annotated[int, Range.log10(0, 2.5, SUBPOPBENCH, whole=True)] = 50
    identification: Annotated[Training, _FIRST] = field(default_factory=Training)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.integer("upweight", self.upweight, low=1)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train twice and return the second stage's last model; `error_set` is its size in the observed figures."""
        errors = misclassified(problem, train(problem, self.identification, silent))
        size = float(errors.sum())

        def told(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            observe(step, model, {**extra, "error_set": size})

        repeated = torch.repeat_interleave(torch.where(errors, self.upweight, 1))
        rows = shuffled(repeated, self.training.batch_size, problem.seed)
        return Fitted(train(problem, self.training, told, rows=rows))
