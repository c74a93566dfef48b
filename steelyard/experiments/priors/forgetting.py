"""Forgetting events of a run."""

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
        seen: list[Tensor] = []

        def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            parts = problem.splits.train.chunks(CHUNK)
            seen.append(torch.cat([read(model, part)[0].argmax(1) for part in parts]))

        train(problem, self.training, observe)
        return selectors.forgetting_events(torch.stack(seen), problem.splits.train.targets)
