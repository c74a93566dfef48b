"""Self-confidence and normalised margin, by models that have not seen the sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard import selectors
from steelyard._support import _check
from steelyard.experiments.priors._term import CHUNK, Term, adam, kept, read
from steelyard.experiments.training.problem import Problem, silent
from steelyard.experiments.training.trainer import Training, train

__all__ = ["NormalisedMargin", "SelfConfidence"]


@dataclass(frozen=True)
class _CrossValidated(Term):
    """Softmax outputs by cross-validation: each fold is predicted by a model trained on the others.

    Attributes:
        folds: how many, >= 2; samples are dealt at random.
        training: of each fold's model.
    """

    folds: int = 5
    training: Training = field(default_factory=lambda: adam(50))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.integer("folds", self.folds, low=2)

    def probabilities(self, problem: Problem) -> Float[Tensor, "n classes"]:
        """Return softmax outputs ``(n, classes)`` of models that were not trained on the sample.

        Raises:
            ValueError: fewer samples than folds.
        """
        data = problem.splits.train
        _check.integer("folds", self.folds, low=2, high=len(data))
        dealt = torch.randperm(len(data), generator=torch.Generator().manual_seed(problem.seed))
        found: list[Tensor] = []
        for held in (folds := dealt.tensor_split(self.folds)):
            others = torch.cat([fold for fold in folds if fold is not held])
            model = train(problem, self.training, silent, data=data.take(others.sort().values))
            found += [read(model, part)[0].softmax(1) for part in data.take(held).chunks(CHUNK)]
        joined = torch.cat(found)
        return torch.empty_like(joined).index_copy_(0, dealt.to(joined.device), joined)


@dataclass(frozen=True)
class SelfConfidence(_CrossValidated):
    """The probability of the given label, by cross-validation. Low = mislabelled.

    References:
        Northcutt et al., Confident learning, JAIR 2021.
    """

    keep: Literal["high", "low"] = kept("self_confidence")
    name: Literal["self_confidence"] = "self_confidence"

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return p_y ``(n,)``."""
        return selectors.self_confidence(self.probabilities(problem), problem.splits.train.targets)


@dataclass(frozen=True)
class NormalisedMargin(_CrossValidated):
    """The lead of the given label's probability over the greatest other, by cross-validation. Low = mislabelled.

    References:
        Northcutt et al., Confident learning, JAIR 2021.
    """

    keep: Literal["high", "low"] = kept("normalised_margin")
    name: Literal["normalised_margin"] = "normalised_margin"

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return the margin, moved to [0, 1] ``(n,)``."""
        return selectors.normalised_margin(self.probabilities(problem), problem.splits.train.targets)
