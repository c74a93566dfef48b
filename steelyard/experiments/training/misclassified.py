"""Which training samples a model gets wrong: JTT's error set, and a stand-in for who contradicts a shortcut."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from steelyard._support._modules import evaluating
from steelyard.experiments.training.problem import Problem

__all__ = ["misclassified"]


def misclassified(problem: Problem, model: nn.Module) -> Bool[Tensor, " n"]:
    """Return which training samples (of all ranks) `model` gets wrong, in evaluation mode.

    It is left in the mode it was in.
    """
    with evaluating(model), torch.no_grad():
        predicted = [problem.head.predict(model(chunk.inputs)) for chunk in problem.splits.train.chunks(10_000)]
    return problem.ranks.gather(torch.cat(predicted) != problem.splits.train.targets)
