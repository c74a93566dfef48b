"""TracIn of each sample on itself, over a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard import selectors
from steelyard.experiments.priors._term import CHUNK, Term, adam, kept, read
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import Training, train

__all__ = ["SelfInfluence"]


@dataclass(frozen=True)
class SelfInfluence(Term):
    """The squared gradient of a sample's own loss by the last layer, summed over a run. High = hard, or mislabelled.

    Read in eval mode at every `training.evaluate_every`-th step; the learning rate is the same at all of them, so it is
    left out.

    References:
        Pruthi et al., Estimating training data influence by tracing gradient descent, NeurIPS 2020.
    """

    keep: Literal["high", "low"] = kept("self_influence")
    name: Literal["self_influence"] = "self_influence"
    training: Training = field(default_factory=lambda: adam(50))

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return the self-influence ``(n,)``."""
        data, seen = problem.splits.train, []

        def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            one: list[Tensor] = []
            for part in data.chunks(CHUNK):
                logits, hidden = read(model, part)
                gradients = selectors.cross_entropy_gradients(logits.softmax(1), part.targets)
                one.append(selectors.self_influence(gradients[None], hidden[None], hidden.new_ones(1)))
            seen.append(torch.cat(one))

        train(problem, self.training, observe)
        return torch.stack(seen).sum(0)
