"""Forgetting events of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from steelyard import selectors
from steelyard.experiments.priors._term import Term, adam, kept, read_over_run
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import Training

__all__ = ["Forgetting"]


@dataclass(frozen=True)
class Forgetting(Term):
    """How often a sample that was right is wrong again in an ordinary run. High = hard, or mislabelled.

    Departure from the paper: predictions are read in eval mode at every `training.evaluate_every`-th step, for all
    samples at the same parameters, not as each batch passes.

    References:
        Toneva et al., An empirical study of example forgetting during deep neural network learning, ICLR 2019.
    """

    keep: Literal["high", "low"] = kept("forgetting_events")
    name: Literal["forgetting_events"] = "forgetting_events"
    training: Training = field(default_factory=lambda: adam(50, evaluate_every=2))

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return the number of forgetting events ``(n,)``."""
        seen = read_over_run(problem, self.training, lambda logits: logits.argmax(1))
        return selectors.forgetting_events(seen, problem.splits.train.targets)
