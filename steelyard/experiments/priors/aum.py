"""AUM, the margin of the given label over a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from steelyard import selectors
from steelyard.experiments.priors._term import Term, adam, kept, read_over_run
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import Training

__all__ = ["AUM"]


@dataclass(frozen=True)
class AUM(Term):
    """Area under the margin: the margin of the given label, averaged over an ordinary run (low = mislabelled).

    Departure from the paper: margins are read in eval mode at every `training.evaluate_every`-th step, for all samples
    at the same parameters, not as each batch passes.

    References:
        Pleiss et al., Identifying mislabeled data using the area under the margin ranking, NeurIPS 2020.
    """

    keep: Literal["high", "low"] = kept("aum")
    name: Literal["aum"] = "aum"
    training: Training = field(default_factory=lambda: adam(50, evaluate_every=5))

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return AUM ``(n,)``."""
        seen = read_over_run(problem, self.training, lambda logits: logits)
        return selectors.aum(seen, problem.splits.train.targets)
