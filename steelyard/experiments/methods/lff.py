"""Learning from failure: a model that is made to be biased says which samples the other should learn."""

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
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Learner, Training, train

__all__ = ["LfF"]


@dataclass(frozen=True)
class LfF(TrainedMethod):
    """LfF (Nam et al. 2020, arXiv:2007.02561, Algorithm 1).

    A biased model minimises the generalised cross-entropy ``(1 - p_y^q) / q``, and at the same steps a debiased one
    (the result) minimises ``mean_i W_i l_i`` with ``W = L_b / (L_b + L_d)`` of their losses. As in the authors' code
    the losses are averaged over visits and divided by their class's largest first (`reweight.RelativeDifficulty`).
    Labels needed: class; group in validation where the settings are chosen by the worst group.
    Published (the authors' code): q 0.7, memory 0.7, Adam 1e-4, weight decay 1e-4, batch 256.

    Attributes:
        q: of the generalised cross-entropy.
        memory: of the moving average of each sample's two losses.
    """

    name: Literal["lff"] = "lff"
    q: Annotated[float, Range.linear(0.05, 0.95, SUBPOPBENCH)] = 0.7
    memory: Annotated[float, FIXED] = 0.7
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("q", self.q, low=0.0, high=1.0)
        _check.in_range("memory", self.memory, low=0.0, high=1.0, open_high=True)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train both models side by side and return the debiased one."""
        other = replace(problem, seed=problem.seed + 1).model()  # its own initial parameters, as published
        biased = Learner(other, problem.loss, self.training, rule=reweight.GeneralisedCrossEntropy(self.q))
        difficulty = reweight.RelativeDifficulty(problem.splits.train.targets, self.memory)
        return Fitted(train(problem, self.training, observe, rule=_BiasedFirst(biased, difficulty)))


class _BiasedFirst(reweight.Rule):
    """Takes a step of the biased model on each batch, and weighs it by the losses from before that step."""

    normalise = "batch"

    def __init__(self, biased: Learner, difficulty: reweight.RelativeDifficulty) -> None:
        self.biased, self.difficulty = biased, difficulty

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        _, biased_losses = self.biased.step(batch)
        return self.difficulty(biased_losses, losses, batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the biased model's training and the losses' averages."""
        return {"biased": self.biased.state_dict(), "difficulty": self.difficulty.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.biased.load_state_dict(state["biased"])
        self.difficulty.load_state_dict(state["difficulty"])
