"""LDAM: a margin for each class, the wider the rarer it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from jaxtyping import Float
from torch import Tensor

from steelyard import reweight
from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.class_losses import LDAMLoss
from steelyard.experiments.training.group_labels import class_counts
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["LDAM"]


@dataclass(frozen=True)
class LDAM(TrainedMethod):
    """LDAM (Cao et al. 2019, arXiv:1906.07413, equations 9 to 13; deferred re-weighting is Algorithm 1).

    Cross-entropy of ``scale (z_j - m_y [j = y])`` with margins m_y in proportion to ``n_y^(-1/4)``; the rarest class
    has `margin`. From `reweight_at` steps on, samples weigh one over the effective number of their class
    (`reweight.EffectiveNumber`). A departure that Yang et al. 2023 (LDAM) make too: the outputs are those of an
    ordinary linear layer, not cosines of normalised features and weights, so that the scale scales the learning rate.
    Evaluations take z without the scale: their loss and calibration error say little here.
    Labels needed: class; group in validation where the settings are chosen by the worst group.
    Published: margin 0.5, scale 30, SGD 0.1; CIFAR with 200 epochs and re-weighting from 160 on, beta 0.9999.

    Attributes:
        margin: the largest margin, >= 0, in units of the outputs.
        scale: > 0. Yang et al. draw 10 or 30.
        reweight_at: steps before re-weighting begins; 0 for none.
        beta: of the effective number, in [0, 1).
    """

    name: Literal["ldam"] = "ldam"
    margin: Annotated[float, Range.log10(-1, -0.1, SUBPOPBENCH)] = 0.5
    scale: Annotated[float, FIXED] = 30.0
    reweight_at: Annotated[int, FIXED] = 0
    beta: Annotated[float, FIXED] = 0.9999
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("margin", self.margin, low=0.0)
        _check.in_range("scale", self.scale, low=0.0, open_low=True)
        _check.integer("reweight_at", self.reweight_at, low=0)
        _check.in_range("beta", self.beta, low=0.0, high=1.0, open_high=True)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        counts = class_counts(problem.of_all(problem.splits.train), len(problem.splits.classes))
        loss = LDAMLoss(counts, self.margin, self.scale)
        weights = reweight.EffectiveNumber(counts, self.beta)
        rule = _Deferred(weights, self.reweight_at) if self.reweight_at else None
        return Fitted(train(problem, self.training, observe, loss=loss, rule=rule))


class _Deferred(reweight.Uniform):
    """All samples alike for the first `steps` batches; from then on their classes' weights."""

    def __init__(self, weights: reweight.EffectiveNumber, steps: int) -> None:
        self.weights, self.steps, self.done = weights, steps, 0

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return the weights, and count the batch."""
        self.done += 1
        if self.done <= self.steps:
            return super().__call__(losses, batch)
        return self.weights(losses, replace(batch, group=batch.targets))

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches were weighed."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.done = state["done"]
