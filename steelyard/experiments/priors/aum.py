"""AUM, the margin of the given label over a run."""

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
        seen: list[Tensor] = []

        def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            parts = problem.splits.train.chunks(CHUNK)
            seen.append(torch.cat([read(model, part)[0] for part in parts]))

        train(problem, self.training, observe)
        return selectors.aum(torch.stack(seen), problem.splits.train.targets)
