"""KNN-Shapley of each half of the training samples for the other."""

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

__all__ = ["KNNShapley"]


@dataclass(frozen=True)
class KNNShapley(Term):
    """What a sample adds to a nearest-neighbour classifier on the embeddings of a short run. Low = mislabelled.

    The samples are dealt into two halves, and each is valued by how well it classifies the other: no validation sample
    is looked at. The embeddings of a linear model are its inputs.

    Attributes:
        neighbours: K of the classifier.
        training: of the model whose last layer's inputs are the embeddings.

    References:
        Jia et al., Efficient task-specific data valuation for nearest neighbor algorithms, VLDB 2019 (halves: ours).
    """

    keep: Literal["high", "low"] = kept("knn_shapley")
    name: Literal["knn_shapley"] = "knn_shapley"
    neighbours: int = 10
    training: Training = field(default_factory=lambda: adam(20))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.integer("neighbours", self.neighbours, low=1)

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return the Shapley values ``(n,)``.

        Raises:
            ValueError: fewer than two samples.
        """
        data = problem.splits.train
        if len(data) < 2:
            raise ValueError(f"knn_shapley values one half of the samples by the other, but there is {len(data)}")
        model = train(problem, self.training, silent)
        hidden = torch.cat([read(model, part)[1] for part in data.chunks(CHUNK)])
        dealt = torch.randperm(len(data), generator=torch.Generator().manual_seed(problem.seed)).to(hidden.device)
        halves = dealt.tensor_split(2)
        found = hidden.new_empty(len(data))
        for half, other in (halves, halves[::-1]):
            found[half] = selectors.knn_shapley(
                hidden[half], data.targets[half], hidden[other], data.targets[other], neighbours=self.neighbours
            )
        return found
